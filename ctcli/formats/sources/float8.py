"""FP8 weights of model makers and tools: DeepSeek, Qwen, GLM, Kimi, Mistral; `fbgemm`, ModelOpt.

A weight E4M3 [N, K] with a scale for each tile, named `weight_scale_inv`, `weight_scale` or
`scale`: W = q * s, whatever the name says. Scales are floats or powers of two (E8M0: as F8_E8M0, as
U8, or as F32). Layout: https://github.com/deepseek-ai/DeepSeek-V3, `README_WEIGHTS.md`;
transformers' `integrations/finegrained_fp8.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from ctcli.formats.sources.coded import Coded, Source, SourceError, SourceFormat, part
from ctcli.formats.sources.decoding import (
    Scaled,
    decoded,
    granule_of,
    grid_of,
    viewed,
)
from ctcli.formats.sources.scales import Powers, scaled
from ctcli.lazy.nodes import Input, LazyTensor, Shape
from ctcli.lazy.tensors import Stored, TensorSpec
from ctcli.models.modules import Module
from ctcli.patterns import matches
from ctcli.schemes.arguments import QuantizationArgs, Scheme
from ctcli.schemes.presets import preset

_SCALES = ("weight_scale_inv", "weight_scale", "scale")
_STATIC = ("activation_scale", "input_scale")
INPUT_SCALES = (*_STATIC, "input_scale_ub")
_EXPONENTS = ("U8", "F8_E8M0")
_FLOAT_SCALES = ("F32", "BF16", "F16")
_BLOCKS = (128, 64, 32, 16)
_TENSOR = Scheme("FP8A16", QuantizationArgs(8, "float", "tensor"), None, "naive-quantized")


class Float8(SourceFormat):
    """See `SourceFormat`."""

    def weights(self, module: Module[LazyTensor], source: Source) -> Iterator[Coded]:
        """A weight with one scale tensor beside it."""
        weight, leaf = part(module, "weight"), next((s for s in _SCALES if part(module, s)), "")
        scale = part(module, leaf)
        if weight is None or scale is None or len(weight.spec.shape) != 2:
            return
        if weight.spec.dtype == "F8_E4M3":
            yield float8(module, weight, leaf, scale, source)
        elif weight.spec.dtype == "F8_E5M2":
            raise SourceError("its weight is F8_E5M2, which no tool is known to write")


def float8(
    module: Module[LazyTensor], weight: Stored, leaf: str, scale: Stored, source: Source
) -> Coded:
    """An E4M3 weight of two dimensions.

    Args:
        module: its module.
        weight: the codes.
        leaf: what its scales are called in the module.
        scale: the scales.
        source: the rest.

    Raises:
        SourceError: the scales are not those of such a weight.
    """
    shape = weight.spec.shape[0], weight.spec.shape[1]
    if scale.spec.dtype not in (*_EXPONENTS, *_FLOAT_SCALES):
        raise SourceError(f"its {leaf} is {scale.spec.dtype}, which is no scale")
    given = next((n for p, n in source.presharded.items() if matches(p, module.name)), None)
    static = next((t for leaf in _STATIC if (t := part(module, leaf))), None)
    layout = _layout(scale.spec, shape, _block_size(source), given, static is not None)
    inputs = {
        "codes": Input(weight, shape),
        "scale": Input(scale, layout.grid, each=layout.each),
    }
    stored: dict[str, LazyTensor] = {"weight": weight, "weight_scale": scale}
    if layout.scales != scale.spec:
        is_computed = layout.scales.dtype == "F32" and scale.spec.dtype != "F32"
        tag = scale.spec.dtype if is_computed else layout.scales.dtype
        same = viewed(scale, tag, layout.scales.shape)
        stored["weight_scale"] = same
        if is_computed:
            stored["weight_scale"] = scaled(module.name, "weight_scale", same, Powers())
    if static:
        stored["input_scale"] = viewed(static, static.spec.dtype, (1,))
    return Coded(
        module.tensor("weight"),
        layout.method,
        _parts(module, "weight", leaf),
        decoded(module.name, inputs, layout.kernel, shape, layout.granule, source.dtype),
        is_exact=scale.spec.dtype in _EXPONENTS,
        scheme=layout.scheme,
        stored=stored if layout.scheme else {},
        refusal=layout.refusal,
    )


@dataclass(frozen=True)
class _Layout:
    """What all weights of one shape with scales of one shape have in common.

    Attributes:
        method: for people.
        kernel: decodes.
        granule: rows and columns that belong together.
        grid: rows and columns of the scales.
        each: those of them that belong to a granule.
        scales: the scales' dtype and shape in compressed-tensors.
        scheme: that of compressed-tensors; None: there is none.
        refusal: why.
    """

    method: str
    kernel: Scaled
    granule: Shape
    grid: Shape
    each: Shape
    scales: TensorSpec
    scheme: Scheme | None
    refusal: str


@lru_cache(maxsize=1024)
def _layout(
    scale: TensorSpec, shape: Shape, said: Shape | None, given: int | None, is_static: bool
) -> _Layout:
    """How a weight of such a shape is cut into tiles.

    Args:
        scale: of its scales.
        shape: of the weight.
        said: rows and columns of a block, as config.json has it.
        given: the number of parts of its rows, as the user has it.
        is_static: whether there is a scale of its inputs.

    Raises:
        SourceError: the scales fit the weight in no way, or in several.
    """
    rows, columns = shape
    count, is_exponent, grid, refusal = 1, scale.dtype in _EXPONENTS, scale.shape, ""
    if len(grid) == 4:  # NVIDIA's, [row blocks, 1, column blocks, 1]
        grid = grid[::2]
    if said == (1, 32) and is_exponent:
        said = None  # MXFP8, as below
    if said and (grid or (1, 1)) == grid_of(said, shape):
        tile, method, scheme = said, f"FP8, blocks of {said[0]}x{said[1]}", _blocks_scheme(said)
    elif math.prod(grid) == 1:
        tile, method, scheme = shape, "FP8, one scale", preset("FP8") if is_static else _TENSOR
    elif is_exponent and grid == (rows, -(-columns // 32)):
        tile, method, scheme = (1, 32), "MXFP8", preset("MXFP8")
        refusal = "its columns are no multiple of 32" if columns % 32 else ""
    elif math.prod(grid) == grid[0] == rows:
        tile, method, scheme = (1, columns), "FP8, a scale for each row", preset("FP8_DYNAMIC")
    else:
        tile, count = _blocks(grid, shape, said, given)
        method, scheme = f"FP8, blocks of {tile[0]}x{tile[1]}", _blocks_scheme(tile)
    granule, tiles = granule_of(tile, shape), grid_of(tile, shape)
    by_tensor = math.prod(grid) == 1 and scheme.weights.strategy == "tensor"
    each = (int(tile[0] < rows), int(tile[1] < columns))
    kernel = Scaled("F32", 8, "e4m3", scale.dtype, tile)
    if count > 1:
        down = rows // count
        each = (-(-down // tile[0]), each[1])
        tiles = (count * each[0], tiles[1])
        kernel, granule = replace(kernel, part=down), (down, granule[1])
        method += f" in {count} parts of the rows"
        refusal = "its blocks begin anew in each part of the rows"
    # compressed-tensors has floats for scales of such tiles.
    scales = TensorSpec("F32" if is_exponent else scale.dtype, (1,) if by_tensor else tiles)
    if method == "MXFP8":
        scales = TensorSpec("U8", tiles)
    found = None if refusal else scheme
    return _Layout(method, kernel, granule, tiles, each, scales, found, refusal)


def _blocks_scheme(tile: Shape) -> Scheme:
    block = preset("FP8_BLOCK")
    assert block.input_activations, "in groups"
    return replace(
        block,
        weights=replace(block.weights, block_structure=tile),
        input_activations=replace(block.input_activations, group_size=tile[1]),
    )


def _blocks(
    grid: tuple[int, ...], shape: Shape, said: Shape | None, given: int | None
) -> tuple[Shape, int]:
    """Rows and columns of the blocks, and into how many parts the rows are cut before.

    Raises:
        SourceError: the scales fit the weight in no way, or in several.
    """
    sizes = [said] if said else [(b, b) for b in _BLOCKS] + [(1, b) for b in _BLOCKS]
    fitting = next((tile for tile in sizes if grid_of(tile, shape) == grid), None)
    if fitting and given is None:
        return fitting, 1
    tile = said or (128, 128)
    counts = [given] if given else range(2, 257)
    able = [
        count
        for count in counts
        if shape[0] % count == 0 and grid == (count * -(-(shape[0] // count) // tile[0]), grid[1])
    ]
    if len(able) == 1 and grid[1] == grid_of(tile, shape)[1]:
        return tile, able[0]
    message = f"its scales {list(grid)} are not those of blocks of its weight {list(shape)}"
    if len(able) > 1:
        message += f", whose rows may be {able[0]} or {able[1]} parts: "
        message += "--presharded PATTERN=C tells dequantize, convert and verify how many"
    raise SourceError(message)


def _block_size(source: Source) -> Shape | None:
    """Rows and columns of the blocks that the checkpoint has; None: it has none, or nobody says."""
    if found := _said_size(source.said):
        return found
    if not str(source.said.get("quant_algo")).lower().startswith("fp8_pb"):
        return None
    # NVIDIA writes one block's scale as that of a tensor.
    for module in source.modules.values():
        weight, scale = part(module, "weight"), part(module, "weight_scale")
        if weight and scale and len(scale.spec.shape) == 4 and math.prod(scale.spec.shape) > 1:
            shape = weight.spec.shape[0], weight.spec.shape[1]
            return _blocks(scale.spec.shape[::2], shape, None, None)[0]
    return None


def _said_size(said: Mapping[str, Any]) -> Shape | None:
    found = said.get("weight_block_size")
    if isinstance(found, list) and [type(size) for size in found] == [int, int] and min(found) > 0:
        return found[0], found[1]
    return None


def _parts(module: Module[LazyTensor], *leaves: str) -> tuple[str, ...]:
    """The names of some tensors of a module, and of the scales of its inputs."""
    found = (*leaves, *(leaf for leaf in INPUT_SCALES if leaf in module.parts))
    return tuple(module.tensor(leaf) for leaf in found)


FLOAT8 = Float8()
