"""gpt-oss: MXFP4 experts of a layer in one tensor.

`experts.gate_up_proj_blocks` U8 [E, 2 I, H / 32, 16] with `gate_up_proj_scales` [E, 2 I, H / 32],
`down_proj` likewise; two codes to a byte, the low nibble first. transformers' parameter
`gate_up_proj` is transposed, [E, H, 2 I], gate and up in turn. OpenAI's own files have the blocks
as `mlp1_weight.blocks`, and the parameter `mlp1_weight` as it lies, [E, 2 I, H]. Layouts:
transformers' `integrations/mxfp4.py`; https://github.com/openai/gpt-oss, `torch/weights.py`.
"""

from __future__ import annotations

from collections.abc import Iterator

from ctcli.formats.sources.coded import Coded, Source, SourceError, SourceFormat, part
from ctcli.formats.sources.decoding import Scaled, decoded, scale_input
from ctcli.lazy.nodes import COLUMNS, Computed, Input, LazyTensor, Stacked
from ctcli.lazy.tensors import Stored, TensorSpec
from ctcli.models.modules import Module

_ROLES = ("gate_up_proj", "down_proj")
_TILE = (1, 32)
# vLLM 0.32, `model_executor/models/gpt_oss.py`; transformers 5.17 has no linears for them.
_REFUSAL = (
    "vLLM and transformers load gpt-oss's MXFP4 as it is, and not from compressed-tensors' tensors"
)


class GptOss(SourceFormat):
    """See `SourceFormat`."""

    def weights(self, module: Module[LazyTensor], source: Source) -> Iterator[Coded]:
        """The packed weights below a module of experts, or the one that has a module's name."""
        for role in _ROLES:
            blocks, scales = part(module, f"{role}_blocks"), part(module, f"{role}_scales")
            if blocks and scales:
                names = tuple(module.tensor(f"{role}_{leaf}") for leaf in ("blocks", "scales"))
                yield _read(module.tensor(role), names, blocks, scales, source, True)
        blocks, scales = part(module, "blocks"), part(module, "scales")
        if blocks and scales:
            names = (module.tensor("blocks"), module.tensor("scales"))
            yield _read(module.name, names, blocks, scales, source, False)


def _read(
    name: str,
    names: tuple[str, ...],
    blocks: Stored,
    scales: Stored,
    source: Source,
    is_transposed: bool,
) -> Coded:
    shape, grid = blocks.spec.shape, scales.spec.shape
    if (blocks.spec.dtype, scales.spec.dtype) != ("U8", "U8"):
        found = f"{blocks.spec.dtype} and {scales.spec.dtype}"
        raise SourceError(f"its blocks and scales are {found}, and not U8")
    if len(shape) != 4 or shape[3] != 16 or grid != shape[:3]:
        raise SourceError(f"its blocks {list(shape)} and scales {list(grid)} do not go together")
    parts = [
        _expert(f"{name}.{expert}", blocks, scales, source.dtype, expert, is_transposed)
        for expert in range(shape[0])
    ]
    spec = TensorSpec(source.dtype, (shape[0], *parts[0].spec.shape))
    method = "MXFP4, in packed experts"
    floats = Stacked(spec, tuple(parts))
    return Coded(name, method, names, floats, is_exact=True, refusal=_REFUSAL)


def _expert(
    module: str, blocks: Stored, scales: Stored, dtype: str, expert: int, is_transposed: bool
) -> Computed:
    """One expert's matrix, [rows, columns] or turned."""
    _, rows, groups, _ = blocks.spec.shape
    columns = 32 * groups
    codes = _piece(blocks, expert, (rows, columns // 2))
    scale = _piece(scales, expert, (rows, groups))
    if not is_transposed:
        shape = (rows, columns)
        inputs = {
            "codes": Input(codes, (rows, columns // 2), each=(1, 16)),
            "scale": scale_input(scale, _TILE, shape),
        }
        return decoded(module, inputs, Scaled("F32", 4, "e2m1", "U8", _TILE), shape, _TILE, dtype)
    # Turned, the two codes of a byte are in two rows.
    inputs = {
        "codes": Input(codes, (rows, columns // 2), "transposed", each=(1, 16)),
        "scale": Input(scale, (rows, groups), "transposed", each=(1, 1)),
    }
    kernel = Scaled("F32", 4, "e2m1", "U8", (32, 1), pairs_rows=True)
    # Rows of codes are read in one go; columns of them would be pieces of a few bytes.
    return decoded(module, inputs, kernel, (columns, rows), (32, 1), dtype, COLUMNS)


def _piece(tensor: Stored, expert: int, shape: tuple[int, int]) -> Stored:
    """One expert's part of a tensor of bytes, as a matrix."""
    spec = TensorSpec("U8", shape)
    return Stored(spec, tensor.file, tensor.start + expert * spec.nbytes)


GPT_OSS = GptOss()
