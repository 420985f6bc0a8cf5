"""FP8 weights of model makers and tools: DeepSeek, Qwen, GLM, Kimi, Mistral; `fbgemm`, ModelOpt.

A weight E4M3 [N, K] with a scale for each tile, named `weight_scale_inv`, `weight_scale` or
`scale`: W = q * s, whatever the name says. Scales are floats or powers of two (E8M0: as F8_E8M0, as
U8, or as F32). Layout: https://github.com/deepseek-ai/DeepSeek-V3, `README_WEIGHTS.md`;
transformers' `integrations/finegrained_fp8.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from ctcli.formats.sources.coded import Coded, Source, SourceError, SourceFormat, part
from ctcli.formats.sources.decoding import (
    Scaled,
    decoded,
    granule_of,
    grid_of,
    scale_input,
    viewed,
)
from ctcli.formats.sources.scales import Powers, scaled
from ctcli.lazy.nodes import Input, LazyTensor, Shape
from ctcli.lazy.tensors import Stored
from ctcli.models.modules import Module
from ctcli.patterns import matches
from ctcli.schemes.arguments import QuantizationArgs, Scheme
from ctcli.schemes.presets import preset

_SCALES = ("weight_scale_inv", "weight_scale", "scale")
INPUT_SCALES = ("activation_scale", "input_scale", "input_scale_ub")
_EXPONENTS = ("U8", "F8_E8M0")
_FLOAT_SCALES = ("F32", "BF16", "F16")
_BLOCKS = (128, 64, 32, 16)
_ONE_SCALE, _BLOCK = "FP8, one scale", "FP8, blocks of {}x{}"
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
    rows, columns = shape = weight.spec.shape[0], weight.spec.shape[1]
    tag, grid = scale.spec.dtype, scale.spec.shape
    if tag not in (*_EXPONENTS, *_FLOAT_SCALES):
        raise SourceError(f"its {leaf} is {tag}, which is no scale")
    count, block = 1, _block_size(source)
    if math.prod(grid) == 1:
        is_block = block is not None and grid_of(block, shape) == (1, 1)
        tile, method = (block, _BLOCK) if block and is_block else (shape, _ONE_SCALE)
    elif tag in _EXPONENTS and grid == (rows, -(-columns // 32)):
        tile, method = (1, 32), "MXFP8"
    elif math.prod(grid) == grid[0] == rows:
        tile, method = (1, columns), "FP8, a scale for each row"
    else:
        tile, count = _blocks(module.name, grid, shape, source)
        method = _BLOCK
    method = method.format(*tile)
    inputs = {"codes": Input(weight, shape), "scale": scale_input(scale, tile, shape)}
    kernel = Scaled(source.dtype, 8, "e4m3", tag, tile)
    granule = granule_of(tile, shape)
    if count > 1:
        down = rows // count
        each = (-(-down // tile[0]), int(tile[1] < columns))
        inputs["scale"] = Input(scale, (count * each[0], -(-columns // tile[1])), each=each)
        kernel, granule = replace(kernel, part=down), (down, granule[1])
        method += f" in {count} parts of the rows"
    floats = decoded(module.name, inputs, kernel, shape, granule)
    parts = _parts(module, "weight", leaf)
    coded = Coded(module.tensor("weight"), method, parts, floats, is_exact=tag in _EXPONENTS)
    if count > 1:
        return replace(coded, refusal="its blocks begin anew in each part of the rows")
    return _convertible(coded, module, scale, tile)


def _blocks(name: str, grid: tuple[int, ...], shape: Shape, source: Source) -> tuple[Shape, int]:
    """Rows and columns of the blocks, and into how many parts the rows are cut before.

    Raises:
        SourceError: the scales fit the weight in no way, or in several.
    """
    if len(grid) == 4:  # NVIDIA's, [row blocks, 1, column blocks, 1]
        grid = grid[::2]
    said = _said_size(source.said)
    sizes = [said] if said else [(b, b) for b in _BLOCKS] + [(1, b) for b in _BLOCKS]
    given = next((n for p, n in source.presharded.items() if matches(p, name)), None)
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
        message += f", whose rows may be {able[0]} or {able[1]} parts: give --presharded PATTERN=C"
    raise SourceError(message)


def _block_size(source: Source) -> Shape | None:
    """Rows and columns of the blocks that the checkpoint has; None: it has none, or nobody says."""
    if found := _said_size(source.said):
        return found
    if not str(source.said.get("quant_algo")).lower().startswith("fp8_pb"):
        return None
    for module in source.modules.values():
        weight, scale = part(module, "weight"), part(module, "weight_scale")
        if weight and scale and len(scale.spec.shape) == 4 and math.prod(scale.spec.shape) > 1:
            shape = weight.spec.shape[0], weight.spec.shape[1]
            return _blocks(module.name, scale.spec.shape, shape, source)[0]
    return None


def _said_size(said: Mapping[str, Any]) -> Shape | None:
    found = said.get("weight_block_size")
    if isinstance(found, list) and [type(size) for size in found] == [int, int] and min(found) > 0:
        return found[0], found[1]
    return None


def _convertible(coded: Coded, module: Module[LazyTensor], scale: Stored, tile: Shape) -> Coded:
    """With the compressed-tensors scheme that holds the same bytes."""
    weight, tag = part(module, "weight"), scale.spec.dtype
    assert weight, "it was read"
    shape = weight.spec.shape[0], weight.spec.shape[1]
    inputs = next((t for leaf in INPUT_SCALES[:2] if (t := part(module, leaf))), None)
    if coded.method == "MXFP8":
        if shape[1] % 32:
            return replace(coded, refusal="its columns are no multiple of 32")
        exponents = viewed(scale, "U8", scale.spec.shape)
        return replace(
            coded, scheme=preset("MXFP8"), stored={"weight": weight, "weight_scale": exponents}
        )
    grid: tuple[int, ...] = (1,) if coded.method == _ONE_SCALE else grid_of(tile, shape)
    floats: LazyTensor = viewed(scale, tag, grid)
    if tag in _EXPONENTS:
        exponents = viewed(scale, tag, grid)
        floats = scaled(module.name, "weight_scale", exponents, Powers())
    stored: dict[str, LazyTensor] = {"weight": weight, "weight_scale": floats}
    if grid == (1,):
        scheme = preset("FP8") if inputs else _TENSOR
        if inputs:
            stored["input_scale"] = viewed(inputs, inputs.spec.dtype, (1,))
        return replace(coded, scheme=scheme, stored=stored)
    scheme = preset("FP8_DYNAMIC")
    if tile != (1, shape[1]):
        block = preset("FP8_BLOCK")
        width = replace(block.input_activations or block.weights, group_size=tile[1])
        weights = replace(block.weights, block_structure=tile)
        scheme = replace(block, weights=weights, input_activations=width)
    return replace(coded, scheme=scheme, stored=stored)


def _parts(module: Module[LazyTensor], *leaves: str) -> tuple[str, ...]:
    """The names of some tensors of a module, and of the scales of its inputs."""
    found = (*leaves, *(leaf for leaf in INPUT_SCALES if leaf in module.parts))
    return tuple(module.tensor(leaf) for leaf in found)


FLOAT8 = Float8()
