"""GPTQ's integers: packed along the columns and transposed, with zero points along the rows.

Layouts: https://github.com/ModelCloud/GPTQModel, `gptqmodel/nn_modules/qlinear`. The first format
stores each zero point less one; `gptq_v2` stores it as it is. GPTQModel itself makes the first from
the second by a subtraction from whole words (3 bits apart), and undoes that when it reads.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from ctcli.formats.sources.coded import (
    Coded,
    MadeWhenRead,
    Source,
    SourceError,
    SourceFormat,
    dtype_of,
    part,
)
from ctcli.formats.sources.packed import SCALES, Packing, groups_of, words_scheme
from ctcli.formats.sources.words import Words
from ctcli.lazy.nodes import LazyTensor
from ctcli.lazy.tensors import Stored
from ctcli.models.config import table
from ctcli.models.modules import Module

# Who writes it, and what is added to a stored zero point.
_OFFSETS = {"gptq": 1, "gptq_v2": 0}
_AUTOROUND = {"auto_gptq": 1, "gptq": 1, "gptqmodel": 0, "": 0}
_BITS = range(2, 9)
_ACT_ORDER = "its columns are in another order (desc_act), which compressed-tensors cannot read"


class Gptq(SourceFormat):
    """See `SourceFormat`."""

    def weights(self, module: Module[LazyTensor], source: Source) -> Iterator[Coded]:
        """A `qweight` that has as many columns as its scales have."""
        codes, scales, zeros = (part(module, leaf) for leaf in ("qweight", "scales", "qzeros"))
        if codes is None:
            return
        if scales is None or zeros is None:
            missing = "scales" if scales is None else "qzeros"
            raise SourceError(f"it has a qweight, and no {missing}")
        shapes = [tensor.spec.shape for tensor in (codes, scales, zeros)]
        if any(len(shape) != 2 for shape in shapes):
            raise SourceError(f"its qweight has the shape {list(shapes[0])}, and is no matrix")
        if "g_idx" in module.parts or codes.spec.shape[1] == scales.spec.shape[1]:
            yield _read(module, (codes, scales, zeros), source)


def _read(
    module: Module[LazyTensor], tensors: tuple[Stored, Stored, Stored], source: Source
) -> Coded:
    codes, scales, zeros = tensors
    said = settings(source.said, module.name)
    offset = _offset(said)
    (words, across), (count, rows) = codes.spec.shape, scales.spec.shape
    check_dtypes(module)
    bits = 32 * zeros.spec.shape[1] // max(1, rows)
    packing = Packing(bits, offset, carries=_is_gptqmodel(said))
    if bits not in _BITS or zeros.spec.shape != (count, packing.words(rows)):
        raise SourceError(
            f"its qzeros {list(zeros.spec.shape)} are not those of scales "
            f"{list(scales.spec.shape)} with 2 to 8 bits"
        )
    if said.get("bits", bits) != bits:
        raise SourceError(f"it has {bits} bits, and config.json says {said['bits']}")
    columns, rest = divmod(32 * words, bits)
    order = part(module, "g_idx")
    if across != rows or rest or (order and order.spec.shape != (columns,)):
        beside = f" and g_idx {list(order.spec.shape)}" if order else ""
        raise SourceError(
            f"its qweight {list(codes.spec.shape)} does not fit scales {list(scales.spec.shape)}"
            + beside
        )
    groups = groups_of(count, columns, said.get("group_size"))
    weight = Words(module.name, (rows, columns), packing, groups, codes, scales, zeros, order)
    leaves = ("qweight", "qzeros", "scales", *(["g_idx"] if order else []))
    coded = Coded(
        module.tensor("weight"),
        f"GPTQ, {bits} bits, {groups.words}",
        tuple(module.tensor(leaf) for leaf in leaves),
        weight.floats(source.dtype),
        is_exact=False,
    )
    if columns % groups.size:
        return replace(coded, refusal="its last group has fewer columns than the others")
    if said.get("desc_act") and order and groups.count > 1 and not _is_in_order(order, weight):
        return replace(coded, refusal=_ACT_ORDER)
    is_symmetric = said.get("sym") is True
    return replace(
        coded,
        scheme=words_scheme(bits, groups, is_symmetric),
        stored=MadeWhenRead(partial(weight.stored, is_symmetric)),
    )


def settings(said: Mapping[str, Any], module: str) -> Mapping[str, Any]:
    """What config.json says of a module: the first expression that fits it counts.

    GPTQModel's `dynamic` has expressions behind `+:`, or `-:` for modules that are left alone;
    AutoRound's `extra_config` names, or expressions.

    Raises:
        SourceError: it should have been left alone.
    """
    for pattern, given in table(said.get("dynamic")).items():
        if re.match(pattern.removeprefix("+:").removeprefix("-:"), module):
            if pattern.startswith("-:"):
                raise SourceError("it is quantized, and config.json leaves its module alone")
            return {**said, **table(given)}
    extra = table(said.get("extra_config"))
    named = extra.get(module)
    if named is None:
        named = next((given for name, given in extra.items() if _fits(name, module)), None)
    return {**said, **table(named)}


def _fits(pattern: str, module: str) -> bool:
    try:
        return re.fullmatch(pattern, module) is not None
    except re.error:
        return False


def packing_of(said: Mapping[str, Any]) -> str | None:
    """How AutoRound packed a checkpoint, in the other tools' words; None: others wrote it."""
    if "auto-round" not in str(said.get("quant_method")) and "packing_format" not in said:
        return None
    if said.get("rotation_config"):
        raise SourceError("its weights are rotated (rotation_config)")
    name = str(said.get("packing_format", "auto_round:auto_gptq"))
    return name.removeprefix("auto_round").removeprefix(":")


def _offset(said: Mapping[str, Any]) -> int:
    """What is added to a stored zero point.

    Raises:
        SourceError: it is another format than the tensors show, or none that is read.
    """
    packed = packing_of(said)
    if packed is not None:
        if packed not in _AUTOROUND:
            raise SourceError(f"its tensors are GPTQ's, and packing_format is auto_round:{packed}")
        return _AUTOROUND[packed]
    method = said.get("quant_method", "gptq")
    if method != "gptq":
        raise SourceError(f"its tensors are GPTQ's, and quant_method is {method}")
    form = said.get("checkpoint_format") or said.get("format") or "gptq"
    if said.get("is_marlin_format"):
        form = "marlin"
    if form not in _OFFSETS:
        raise SourceError(f"checkpoint_format {form} is not read")
    return _OFFSETS[form]


def _is_gptqmodel(said: Mapping[str, Any]) -> bool:
    """Whether GPTQModel says that it wrote the checkpoint."""
    found = table(said.get("meta")).get("quantizer")
    return any(str(name).startswith("gptqmodel:") for name in (found or ()))


def check_dtypes(module: Module[LazyTensor]) -> None:
    """Refuse other integers than I32 and other scales than floats.

    Raises:
        SourceError: says which.
    """
    for leaf in ("qweight", "qzeros", "g_idx"):
        if (found := dtype_of(module, leaf)) not in ("I32", ""):
            raise SourceError(f"its {leaf} is {found}, and not I32")
    if (found := dtype_of(module, "scales")) not in SCALES:
        raise SourceError(f"its scales are {found}, and no floats")


def _is_in_order(order: Stored, weight: Words) -> bool:
    """Whether the groups are runs of columns nevertheless."""
    count = weight.groups.count
    found = struct.unpack(f"<{weight.shape[1]}i", order.file.read(order.start, order.spec.nbytes))
    return all(
        group in (at := i // weight.groups.size, at - count) for i, group in enumerate(found)
    )


GPTQ = Gptq()
