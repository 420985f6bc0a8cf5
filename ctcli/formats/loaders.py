"""What loaders demand of a quantized checkpoint: vLLM 0.32, transformers 5.17 with
compressed-tensors 0.19, and SGLang 0.5.23. The rules follow their source; loads of small models
confirmed those of the first two.

Everything here needs headers and config.json alone. Values (equal global scales, ...) are not
looked at.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, get_args

from ctcli.formats import sglang
from ctcli.formats.declared import Declaration
from ctcli.formats.groups import Group
from ctcli.lazy.tensors import TensorSpec
from ctcli.models.experts import EXPERT, is_expert
from ctcli.models.fused import FusedSet, fused_sets
from ctcli.models.protected import is_embedding, is_head
from ctcli.schemes import words
from ctcli.schemes.arguments import QuantizationArgs, Scheme

Loader = Literal["vllm", "transformers", "sglang"]
LOADERS: tuple[Loader, ...] = get_args(Loader)
NAMES: Mapping[Loader, str] = {"vllm": "vLLM", "transformers": "transformers", "sglang": "SGLang"}
"""As their makers write them."""
FORMATS = (
    "pack-quantized",
    "int-quantized",
    "float-quantized",
    "naive-quantized",
    "nvfp4-pack-quantized",
    "mxfp4-pack-quantized",
    "mxfp8-quantized",
)
# vLLM takes these as weights to multiply by quantized activations.
_WITH_ACTIVATIONS = ("int-quantized", "float-quantized", "naive-quantized", "nvfp4-pack-quantized")
_ANY = "any machine"
_AMX = "a GPU, or a CPU with AMX"
_GPU = "a GPU"
_HOPPER = "a GPU of compute capability 9.0"
ONLINE = _GPU
"""What vLLM needs to rotate inputs while it runs."""

# vLLM widens FP8 keys of an indexer before it merges them with the weights.
_INDEXER = ("wk", "weights_proj")
# Each does what those before it do.
MACHINES = (_ANY, _AMX, _GPU, _HOPPER)


@dataclass(frozen=True)
class Contents:
    """What a checkpoint holds, as far as loaders care.

    Attributes:
        declared: what its config.json says.
        shapes: [rows, columns] of every linear, head and embedding before packing, by module.
        names: of all tensors.
    """

    declared: Declaration
    shapes: Mapping[str, tuple[int, ...]]
    names: Collection[str]

    @classmethod
    def of(
        cls, declared: Declaration, weights: Mapping[str, tuple[int, ...]], names: Collection[str]
    ) -> Contents:
        """The same from the shapes of unpacked tensors by their own names."""
        leaf = ".weight"
        shapes = {
            name.removesuffix(leaf): shape
            for name, shape in weights.items()
            if name.endswith(leaf) and len(shape) == 2
        }
        return cls(declared, shapes, names)

    @classmethod
    def stored(cls, declared: Declaration, specs: Mapping[str, TensorSpec]) -> Contents:
        """The same from tensors as they are stored: of packed weights, rows alone are right."""
        unpacked = {
            name.replace(".weight_packed", ".weight"): spec.shape for name, spec in specs.items()
        }
        return cls.of(declared, unpacked, specs.keys())

    def is_quantized(self, module: str) -> bool:
        """Whether a module's weight is stored quantized: every format has scales."""
        return f"{module}.weight_scale" in self.names

    # What all loaders ask of each of perhaps ten thousands of modules is found once.
    @cached_property
    def embeddings(self) -> tuple[str, ...]:
        """Those of the modules that are embeddings."""
        return tuple(module for module in self.shapes if is_embedding(module))

    @cached_property
    def linears(self) -> tuple[str, ...]:
        """The others."""
        embeddings = {*self.embeddings}
        return tuple(module for module in self.shapes if module not in embeddings)

    @cached_property
    def groups(self) -> Mapping[str, Group | None]:
        """The group that quantizes each module; None where it is left alone."""
        return {module: self.declared.group_of(module) for module in self.shapes}

    @cached_property
    def fused_sets(self) -> tuple[FusedSet, ...]:
        """The linears that servers merge."""
        return tuple(fused_sets(self.linears))

    @cached_property
    def uses(self) -> tuple[tuple[Scheme, bool], ...]:
        """The schemes of modules that are quantized, each with whether these are experts'."""
        found = {
            (group.name, is_expert(module)): group.scheme
            for module, group in self.groups.items()
            if group
        }
        return tuple(dict.fromkeys((scheme, experts) for (_, experts), scheme in found.items()))


def problems(loader: Loader, contents: Contents) -> list[str]:
    """Why a loader does not load the checkpoint, or computes something else; none: it takes it.

    What cannot be read in config.json counts, as nobody can say what becomes of it.
    """
    declared = contents.declared
    found = [*declared.problems]
    if loader == "sglang":
        found += _sglang_kernels(contents)
    else:
        found += [
            f"{group.name}: {problem}."
            for group in declared.groups
            for problem in scheme_problems(loader, group.scheme)
        ]
    found += [
        f"{module}: an embedding, and those are not taken quantized."
        for module in contents.embeddings
        if contents.is_quantized(module)
    ]
    if loader == "transformers":
        return found + _transformers_transforms(declared)
    if declared.sparsity:
        found.append("sparsity_config: sparse weights are not read any more.")
    found += _class_problems(loader, contents)
    found += _vllm_transforms(contents) if loader == "vllm" else _unrotated(declared)
    for fused in contents.fused_sets:
        found += _fused_problems(loader, fused, contents)
    return found + _expert_problems(loader, contents)


def scheme_problems(loader: Loader, scheme: Scheme) -> list[str]:
    """Why a loader has nothing to compute such linears, outside of experts, with."""
    if loader == "sglang":
        return [] if sglang.needs(scheme, experts=False) else [_no_kernel(scheme)]
    if loader == "transformers":
        known = scheme.format in FORMATS
        return [] if known else [f"the format {scheme.format} is unknown to compressed-tensors"]
    if machine(scheme):
        return []
    others = [layout for layout in FORMATS if machine(replace(scheme, format=layout))]
    remedy = f"; it takes them {' or '.join(others)}" if others else ""
    return [f"vLLM has no kernel for {_in_words(scheme)}{remedy}"]


def _in_words(scheme: Scheme) -> str:
    inputs = scheme.input_activations
    what = words(scheme.weights) + (f" with inputs {words(inputs)}" if inputs else "")
    return f"{what}, {scheme.format}"


def _no_kernel(scheme: Scheme, *, experts: bool = False) -> str:
    of = "experts of " if experts else ""
    return f"SGLang has no kernel for {of}{_in_words(scheme)}"


def _sglang_kernels(contents: Contents) -> list[str]:
    return [
        f"{scheme.name}: {_no_kernel(scheme, experts=experts)}."
        for scheme, experts in contents.uses
        if not sglang.needs(scheme, experts=experts)
    ]


def capability(uses: Iterable[tuple[Scheme, bool]]) -> str | None:
    """What SGLang needs to run linears; None: it cannot, or there are none.

    Args:
        uses: each scheme, and whether it is one of experts.
    """
    needs = [sglang.needs(scheme, experts=experts) for scheme, experts in uses]
    found = [need for need in needs if need]
    complete = found and len(found) == len(needs)
    return f"a GPU of compute capability {max(found)}" if complete else None


def machine_for(schemes: Iterable[Scheme], declared: Declaration) -> str | None:
    """What vLLM needs to run all schemes; None: it cannot, or there is nothing to run."""
    needs = [machine(scheme) for scheme in schemes]
    if any("input" in places for places in declared.transforms.values()):
        needs.append(ONLINE)
    found = [need for need in needs if need]
    return max(found, key=MACHINES.index, default=None) if len(found) == len(needs) else None


def machine(scheme: Scheme) -> str | None:
    """What vLLM needs to run such linears: `any machine`, `a GPU`, ...; None: it cannot."""
    weights, inputs = scheme.weights, scheme.input_activations
    if weights.type == "float" and weights.num_bits == 4:
        return _fp4_machine(weights, inputs)
    if weights.scale_dtype == "torch.uint8" and weights.num_bits != 6:
        return _GPU if (weights.strategy, weights.group_size) == ("group", 32) else None
    if scheme.format == "pack-quantized":
        return _packed_machine(weights, inputs)
    if scheme.format not in _WITH_ACTIVATIONS or not weights.symmetric:
        return None
    if weights.type == "float":
        return _fp8_machine(weights, inputs)
    return _int_machine(weights, inputs) if inputs else None


def _fp4_machine(weights: QuantizationArgs, inputs: QuantizationArgs | None) -> str | None:
    kind = (weights.strategy, weights.group_size)
    if kind == ("tensor_group", 16) and weights.symmetric:
        given = inputs and (inputs.num_bits, inputs.strategy, inputs.group_size)
        return _GPU if given in (None, (4, *kind)) else None
    is_known = inputs is None or inputs.num_bits == 4
    return _GPU if kind == ("group", 32) and weights.symmetric and is_known else None


def _packed_machine(weights: QuantizationArgs, inputs: QuantizationArgs | None) -> str | None:
    if weights.type != "int" or weights.strategy not in ("channel", "group"):
        return None
    if inputs is None:
        return _ANY if weights.num_bits == 4 else _GPU
    if not inputs.symmetric or inputs.dynamic is not True:
        return None
    if inputs.type == "float":
        kind = (weights.num_bits, weights.strategy, weights.group_size, weights.symmetric)
        fits = kind == (4, "group", 128, True)
        return _HOPPER if fits and (inputs.num_bits, inputs.strategy) == (8, "token") else None
    if inputs.num_bits not in (4, 8) or inputs.strategy not in ("token", "group"):
        return None
    # Where there is no kernel for 8-bit inputs, they stay in 16 bits.
    return _ANY if (weights.num_bits, inputs.num_bits) == (4, 8) else _GPU


def _fp8_machine(weights: QuantizationArgs, inputs: QuantizationArgs | None) -> str | None:
    if weights.strategy not in ("tensor", "channel", "block"):
        return None
    if inputs is None or inputs.type != "float" or not inputs.dynamic:
        return _GPU
    return _AMX if weights.strategy == "block" else _ANY


def _int_machine(weights: QuantizationArgs, inputs: QuantizationArgs) -> str | None:
    by_token = inputs.strategy == "token" and inputs.dynamic is True
    if inputs.num_bits != 8 or inputs.type != "int":
        return None
    if weights.num_bits == 8:
        static = inputs.strategy == "tensor" and inputs.dynamic is False
        return _ANY if weights.strategy in ("tensor", "channel") and (by_token or static) else None
    four = weights.num_bits == 4 and weights.strategy in ("channel", "group")
    return _ANY if four and by_token else None


def _class_problems(loader: Loader, contents: Contents) -> list[str]:
    """Where a server's reading of the class Linear is not that of others."""
    name = NAMES[loader]
    groups = contents.declared.groups
    rivals = [group.name for group in groups if group.takes_linears]
    found = []
    if len(rivals) > 1:
        found.append(
            f"{', '.join(rivals)}: all of them target Linear, and {name} uses the last one for all."
        )
    for module in contents.shapes:
        if not is_head(module) or not contents.is_quantized(module):
            continue
        naming = next((group for group in groups if group.names(module)), None)
        if naming is None:
            found.append(
                f"{module}: it is quantized, and no target names it; {name}'s heads are no Linear."
            )
        elif loader == "sglang" and naming.scheme.weights.block_structure:
            found.append(f"{module}: SGLang takes no scales of blocks for a head.")
    return found


def _fused_problems(loader: Loader, fused: FusedSet, contents: Contents) -> list[str]:
    """What a server demands of linears that it merges."""
    name = NAMES[loader]
    groups = {module: contents.groups[module] for module in fused.tensors}
    if fused.members == _INDEXER and _is_fp8(next(iter(groups.values()))):
        return []
    if len(_kinds(groups.values())) > 1:
        how = ", ".join(
            f"{module.rpartition('.')[2]} {group.name if group else 'left alone'}"
            for module, group in groups.items()
        )
        return [f"{fused.name}: {name} merges its members, but: {how}."]
    group = next(iter(groups.values()))
    block = group.scheme.weights.block_structure if group else None
    if not block:
        return []
    # The scales of what comes next begin with a new block.
    followed = fused.tensors if is_expert(fused.parent) else fused.tensors[:-1]
    return [
        f"{module}: its {contents.shapes[module][0]} rows are no multiple of {block[0]}, and "
        f"{name} puts other rows below them."
        for module in followed
        if contents.shapes[module][0] % block[0]
    ]


def _expert_problems(loader: Loader, contents: Contents) -> list[str]:
    """Where experts of a layer, which servers compute at once, differ."""
    groups: dict[str, list[Group | None]] = defaultdict(list)
    for module in contents.linears:
        if match := EXPERT.fullmatch(module):
            groups[match["parent"]].append(contents.groups[module])
    return [
        f"{parent}: {NAMES[loader]} wants all linears of its experts quantized alike, or none."
        for parent, found in groups.items()
        if len(_kinds(found)) > 1
    ]


def _is_fp8(group: Group | None) -> bool:
    weights = group.scheme.weights if group else None
    return weights is not None and (weights.type, weights.num_bits) == ("float", 8)


def _kinds(groups: Iterable[Group | None]) -> set[Scheme | None]:
    """The schemes of some groups, whatever their names."""
    different = {group.name if group else None: group for group in groups}
    return {replace(group.scheme, name="") if group else None for group in different.values()}


def _vllm_transforms(contents: Contents) -> list[str]:
    found = [
        f"{name}: vLLM has no place for this matrix, and stops at it."
        for name in contents.names
        if name.endswith(("_q_attn.weight", "_k_cache.weight"))
    ]
    rotated = {
        name.rpartition(".")[0].rpartition(".")[0].rpartition(".")[2]
        for name in contents.names
        if name.endswith(("_input.weight", "_output.weight"))
    }
    return found + [
        f"{module}: vLLM does not rotate the inputs of a linear with a bias."
        for module in contents.shapes
        if module.rpartition(".")[2] in rotated and f"{module}.bias" in contents.names
    ]


def _transformers_transforms(declared: Declaration) -> list[str]:
    if declared.transforms and not declared.groups:
        return ["transform_config: rotations without quantization are not loaded."]
    return _unrotated(declared)


def _unrotated(declared: Declaration) -> list[str]:
    """The rotations that a loader leaves out, and that are not exact without it."""
    return [
        f"{name}: this rotation is not applied at run time: it computes something else."
        for name, locations in declared.transforms.items()
        if {"input", "output"} & {*locations}
    ]
