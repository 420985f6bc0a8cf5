"""What a loader demands of a whole checkpoint: its own rules, and those of tensor parallelism.

vLLM cuts the linears that write the residual stream by columns and the others by rows, one shard a
machine; scales are cut with them, so that no group and no block may lie on two machines.
"""

from __future__ import annotations

from collections.abc import Iterator

from ctcli.formats.architectures import strangers
from ctcli.formats.declared import QUANT_METHOD
from ctcli.formats.loaders import Contents, problems
from ctcli.models.config import size_of, text_config
from ctcli.verifying.findings import Finding
from ctcli.verifying.linear import QuantizedModule
from ctcli.verifying.options import VerifyOptions
from ctcli.verifying.quantized import QuantizedModules
from ctcli.verifying.structure import Snapshot

# Last component of a module's name: how vLLM spreads it.
_BY_COLUMNS = ("o_proj", "out_proj", "down_proj", "w2", "fc2", "dense_4h_to_h")
_BY_ROWS = (
    *("q_proj", "k_proj", "v_proj", "qkv_proj", "q_b_proj", "kv_b_proj"),
    *("gate_proj", "up_proj", "gate_up_proj", "w1", "w3", "fc1", "dense_h_to_4h"),
)
_WHOLE = ("q_a_proj", "kv_a_proj_with_mqa", "wq_a", "wkv_a_with_mqa", "gate", "shared_expert_gate")
_HEADS_OF_KEYS = ("k_proj", "v_proj")


def loader_findings(
    snapshot: Snapshot, quantization: QuantizedModules, options: VerifyOptions
) -> tuple[list[Finding], list[str]]:
    """What the loader would not take, and what could not be checked."""
    declared, loader = quantization.declared, options.target
    if loader is None or declared is None:
        return [], []
    if declared.method != QUANT_METHOD:
        return [], [f"what {loader} demands of {declared.method}: it is not known"]
    if quantization.shapes is None:
        return [], [f"what {loader} demands, since shapes are not known"]
    contents = Contents.of(declared, quantization.shapes, snapshot.tensors.keys())
    findings = []
    for problem in problems(loader, contents):
        where, _, message = problem.partition(": ")
        findings.append(Finding("loader", where, message))
    unknown = [f"the architecture: {line}" for line in strangers(snapshot.config, (loader,))]
    if options.tp == 1:
        return findings, unknown
    spread, uncut = _tensor_parallel(snapshot, quantization, options.tp)
    return findings + spread, unknown + uncut


def _tensor_parallel(
    snapshot: Snapshot, quantization: QuantizedModules, machines: int
) -> tuple[list[Finding], list[str]]:
    findings, unknown = [], []
    heads = size_of(text_config(snapshot.config), "num_key_value_heads") or machines
    for module in quantization.modules.values():
        leaf = module.name.rpartition(".")[2]
        rows, columns = module.shape
        if leaf in _BY_COLUMNS:
            problem = _cut(columns, machines, _least_columns(module), "columns")
        elif leaf in _BY_ROWS:
            # Where there are fewer key heads than machines, several hold the same.
            parts = min(machines, heads) if leaf in _HEADS_OF_KEYS else machines
            problem = _cut(rows, parts, _least_rows(module), "rows")
        else:
            problem = None
            if leaf not in _WHOLE:
                unknown.append(f"tensor parallelism of {module.name}: how it is cut is not known")
        if problem:
            findings.append(Finding("loader", module.name, f"{problem}."))
    for name in quantization.declared.transforms if quantization.declared else ():
        message = "it is applied at run time, for which vLLM needs one machine."
        findings.append(Finding("loader", name, message))
    return findings, unknown


def _least_columns(module: QuantizedModule) -> Iterator[tuple[int, str]]:
    """What the columns of a machine have to be multiples of."""
    weights = module.scheme.weights
    if weights.group_size:
        yield weights.group_size, "the group size"
    if weights.block_structure:
        yield weights.block_structure[1], "the block's columns"
    if module.scheme.format == "pack-quantized" and 32 % weights.num_bits == 0:
        yield 32 // weights.num_bits, "the elements of a packed word"


def _least_rows(module: QuantizedModule) -> Iterator[tuple[int, str]]:
    """What the rows of a machine have to be multiples of."""
    weights = module.scheme.weights
    if weights.block_structure:
        yield weights.block_structure[0], "the block's rows"
    packed = module.outputs.get("weight_zero_point")
    if packed and packed.spec.dtype == "I32" and 32 % weights.num_bits == 0:
        yield 32 // weights.num_bits, "the zero points of a packed word"


def _cut(size: int, parts: int, multiples: Iterator[tuple[int, str]], what: str) -> str | None:
    """Why a size cannot be cut; None: it can."""
    if size % parts:
        return f"its {size} {what} do not divide into {parts} parts"
    for multiple, of in multiples:
        if size // parts % multiple:
            return f"a machine's {size // parts} {what} are no multiple of {multiple}, {of}"
    return None
