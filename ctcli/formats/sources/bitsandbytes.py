"""bitsandbytes' weights: NF4 and FP4, whose scales may be quantized themselves, and int8.

Layouts: https://github.com/bitsandbytes-foundation/bitsandbytes, `bitsandbytes/functional.py`.
Elements lie in blocks of a flat array, whatever the rows are. compressed-tensors has no
counterpart.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ctcli.formats.sources.coded import Coded, Source, SourceError, SourceFormat, part
from ctcli.formats.sources.decoding import HINT, Decoding, decoded, viewed
from ctcli.lazy.nodes import Input, LazyTensor, NonFiniteError, Shape, Where
from ctcli.lazy.tensors import Stored
from ctcli.models.config import shown, table
from ctcli.models.modules import Module

if TYPE_CHECKING:
    from ctcli.lazy.nodes import Blocks
    from ctcli.ops.decoding import Codes

_STATE = "bitsandbytes__"
_FLOATS = ("F32", "F16", "BF16")
_LEAVES = ("absmax", "quant_map")
_NESTED = ("nested_absmax", "nested_quant_map")
_REFUSAL = "compressed-tensors has no such codes"
# What bitsandbytes multiplies rows by after their SCB: 1/127, in float32.
_STEP = 7.874015718698502e-3


class BitsAndBytes(SourceFormat):
    """See `SourceFormat`."""

    def weights(self, module: Module[LazyTensor], source: Source) -> Iterator[Coded]:
        """A weight with `absmax` below its own name, or with an `SCB` beside it."""
        weight = part(module, "weight")
        if weight is None:
            return
        below = source.modules.get(module.tensor("weight"))
        if below and "absmax" in below.parts:
            yield _four_bits(module, weight, below, source)
        elif scale := part(module, "SCB"):
            yield _int8(module, weight, scale, source.dtype)


@dataclass(frozen=True)
class Blocked:
    """A flat array in blocks, as rows of a matrix.

    Attributes:
        shape: [rows, columns] of the weight.
        size: elements of a block.
        rows: rows whose blocks are theirs alone.
    """

    shape: Shape
    size: int
    rows: int

    @property
    def each(self) -> int:
        """Elements of so many rows."""
        return self.rows * self.shape[1]

    @property
    def blocks(self) -> int:
        """Blocks of so many rows."""
        return -(-self.each // self.size)

    @property
    def down(self) -> int:
        """How many times there are so many rows."""
        return self.shape[0] // self.rows


def _blocked(shape: Shape, size: int) -> Blocked:
    """All rows, if no fewer have blocks, and bytes, of their own."""
    rows = size // math.gcd(size, shape[1])
    return Blocked(shape, size, rows if shape[0] % rows == 0 else shape[0])


@dataclass(frozen=True)
class DecodeBlocks(Decoding):
    """Decode blocks of codes of four bits, the first of two in the upper half of a byte.

    Inputs: `codes`; `absmax`, of each block; `values`, what codes stand for; where absmax is
    quantized, `of_absmax`, what its codes stand for, and `scale`, of some blocks each.

    Attributes:
        blocked: how blocks lie in rows.
        absmax: safetensors tag of the scales.
        nested: how many blocks share one scale of their scales; 0: these are floats.
        offset: added to quantized scales.
    """

    blocked: Blocked
    absmax: str
    nested: int
    offset: float

    def codes(self, blocks: Blocks, where: Where) -> Codes:
        """See `Decoding`."""
        import numpy as np

        from ctcli.ops import decoding

        blocked, scales = self.blocked, blocks["absmax"]
        if self.nested:
            row = np.arange(where.rows.start // blocked.rows, -(-where.rows.stop // blocked.rows))
            column = np.arange(scales.shape[1]) + where.columns.start // blocked.size
            of = (row[:, None] * blocked.blocks + column) // self.nested
            product = blocks["of_absmax"].reshape(-1)[scales] * blocks["scale"].reshape(-1)[of]
            scales = product + np.float32(self.offset)
        else:
            scales = decoding.scales_of(scales, self.absmax)
        stream = blocks["codes"] << np.uint8(4) | blocks["codes"] >> np.uint8(4)
        values = decoding.Elements(np.ascontiguousarray(blocks["values"].reshape(-1)))
        return decoding.Codes(stream, 4, values, scales, None, (1, blocked.size))


def _four_bits(
    module: Module[LazyTensor], weight: Stored, below: Module[LazyTensor], source: Source
) -> Coded:
    states = source.modules.get(below.tensor("quant_state"))
    leaf = next((leaf for leaf in (states.parts if states else ()) if leaf.startswith(_STATE)), "")
    if states is None or not (stored := part(states, leaf)):
        raise SourceError("it has an absmax, and no quant_state")
    state = _state(stored)
    shape, size = _shape(state), _positive(state, "blocksize")
    blocked, count = _blocked(shape, size), math.prod(shape)
    if weight.spec.nbytes != -(-count // 2):
        raise SourceError(
            f"its weight has {weight.spec.nbytes} bytes, and {list(shape)} takes {-(-count // 2)}"
        )
    across = weight.spec.nbytes // blocked.down
    codes = viewed(weight, "U8", (blocked.down, across))
    values = _sized(below, "quant_map", 16)
    is_row = blocked.rows == 1
    scales, kernel = _scales(below, state, blocked, source.dtype)
    inputs = {
        "codes": Input(codes, (blocked.down, across), each=(1, size // 2 if is_row else 0)),
        "values": Input(values, (1, 16), each=(0, 0)),
        **scales,
    }
    floats = decoded(
        module.name, inputs, kernel, shape, (blocked.rows, size if is_row else shape[1])
    )
    names = [below.tensor(leaf) for leaf in (*_LEAVES, *_NESTED) if leaf in below.parts]
    nested = ", nested scales" if kernel.nested else ""
    return Coded(
        module.tensor("weight"),
        f"bitsandbytes {leaf.removeprefix(_STATE).upper()}, blocks of {size}{nested}",
        (module.tensor("weight"), *names, states.tensor(leaf)),
        floats,
        is_exact=False,
        refusal=_REFUSAL,
    )


def _scales(
    below: Module[LazyTensor], state: Mapping[str, Any], blocked: Blocked, dtype: str
) -> tuple[dict[str, Input], DecodeBlocks]:
    """The inputs for the scales of blocks, and the kernel that reads them."""
    absmax = _sized(below, "absmax", blocked.down * blocked.blocks, "")
    tag = absmax.spec.dtype
    shape = (blocked.down, blocked.blocks)
    inputs = {"absmax": Input(absmax, shape, each=(1, int(blocked.rows == 1)))}
    if "nested_absmax" not in below.parts:
        if tag not in _FLOATS:
            raise SourceError(f"its absmax is {tag}, and it has no nested_absmax")
        return inputs, DecodeBlocks(dtype, blocked, tag, 0, 0.0)
    size, offset = _positive(state, "nested_blocksize"), state.get("nested_offset")
    if not isinstance(offset, int | float) or tag != "U8":
        raise SourceError(f"its absmax is {tag}, and its nested_offset {shown(offset)}")
    count = -(-math.prod(shape) // size)
    scale, values = _sized(below, "nested_absmax", count), _sized(below, "nested_quant_map", 256)
    inputs["scale"] = Input(scale, (1, count), each=(0, 0))
    inputs["of_absmax"] = Input(values, (1, 256), each=(0, 0))
    return inputs, DecodeBlocks(dtype, blocked, tag, size, float(offset))


def _state(stored: Stored) -> Mapping[str, Any]:
    """What bitsandbytes says of a weight: JSON in a tensor.

    Raises:
        SourceError: it is none.
    """
    try:
        return table(json.loads(stored.file.read(stored.start, stored.spec.nbytes)))
    except ValueError as error:
        raise SourceError("its quant_state is not valid JSON") from error


def _shape(state: Mapping[str, Any]) -> Shape:
    found = state.get("shape")
    if isinstance(found, list) and [type(n) for n in found] == [int, int] and min(found) > 0:
        return found[0], found[1]
    raise SourceError(f"its quant_state says shape {shown(found)}, which is no matrix")


def _positive(state: Mapping[str, Any], key: str) -> int:
    found = state.get(key)
    if type(found) is int and found > 0 and found % 2 == 0:
        return found
    raise SourceError(f"its quant_state says {key} {shown(found)}")


def _sized(module: Module[LazyTensor], leaf: str, count: int, dtype: str = "F32") -> Stored:
    """One of a module's tensors, which has so many elements (of a dtype).

    Raises:
        SourceError: it has not.
    """
    found = part(module, leaf)
    if found is None:
        raise SourceError(f"it has no {leaf}")
    if math.prod(found.spec.shape) != count or found.spec.dtype not in (dtype or found.spec.dtype):
        spec = found.spec
        raise SourceError(f"its {leaf} is {spec.dtype} {list(spec.shape)}, and not {count} {dtype}")
    return found


@dataclass(frozen=True)
class DecodeInt8(Decoding):
    """Decode rows of bytes, `codes`, with one scale each, `scale`: 127 stands for it."""

    def codes(self, blocks: Blocks, where: Where) -> Codes:
        """See `Decoding`; still to be divided by 127."""
        import numpy as np

        from ctcli.ops import decoding

        stream = np.ascontiguousarray(blocks["codes"])
        scales = decoding.scales_of(blocks["scale"], "F32")
        return decoding.Codes(
            stream, 8, decoding.signed_elements(), scales, None, (1, max(1, len(where.columns)))
        )

    def __call__(self, blocks: Blocks, where: Where) -> tuple[Blocks, Sequence[float]]:
        """See `Decoding`: the products are rounded before they are divided."""
        import numpy as np

        from ctcli.ops.bits import fits, from_floats
        from ctcli.ops.decoding import decoded as products

        found, _ = products(self.codes(blocks, where), len(where.columns), "F32")
        found *= np.float32(_STEP)
        if not fits(found, self.target):
            raise NonFiniteError(HINT)
        return {"weight": found if self.target == "F32" else from_floats(found, self.target)}, ()


def _int8(module: Module[LazyTensor], weight: Stored, scale: Stored, dtype: str) -> Coded:
    shape = weight.spec.shape
    if weight.spec.dtype != "I8" or len(shape) != 2:
        raise SourceError(f"it has an SCB, and its weight is {weight.spec.dtype} {list(shape)}")
    _sized(module, "SCB", shape[0])
    layout = part(module, "weight_format")
    if layout and any(layout.file.read(layout.start, layout.spec.nbytes)):
        raise SourceError("its weight_format is not that of rows")
    inputs = {"codes": Input(weight, shape), "scale": Input(scale, (shape[0], 1), each=(1, 0))}
    leaves = ("weight", "SCB", *(["weight_format"] if layout else []))
    return Coded(
        module.tensor("weight"),
        "bitsandbytes int8, a scale for each row",
        tuple(module.tensor(leaf) for leaf in leaves),
        decoded(module.name, inputs, DecodeInt8(dtype), shape),
        is_exact=False,
        refusal="its scales divided by 127 are rounded, and compressed-tensors does not divide",
    )


BITSANDBYTES = BitsAndBytes()
