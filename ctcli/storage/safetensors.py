"""The safetensors format: reading headers with suspicion, writing them as the package does.

Format: https://huggingface.co/docs/safetensors — eight bytes of little-endian header length, a
JSON header, then the tensors' bytes without gaps. The package reads and writes whole files; here
only headers are parsed, so that tensors can be copied or computed in pieces.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from ctcli.checkpoint.value import Shard
from ctcli.errors import CtcliError
from ctcli.lazy.nodes import LazyTensor
from ctcli.lazy.tensors import SourceFile, Stored, TensorSpec
from ctcli.ops.dtypes import DTYPE_RANK, DTYPES
from ctcli.storage.naming import told_by
from ctcli.storage.strict_json import Pairs, parse_json, unique

LENGTH_BYTES = 8
MAX_HEADER_BYTES = 100_000_000  # the package's own limit
_ALIGNMENT = 8
_KEYS = {"dtype", "shape", "data_offsets"}
_LARGEST = 2**63 - 1  # of a size or an offset
_LONGEST_NAME = 2_000  # characters; the time that patterns take depends on it
_WHICH_BITS = 32
_WHICH = (1 << _WHICH_BITS) - 1
_INTEGERS = {int}  # JSON's true is a bool, which is none of them
_FIRST_READ = 64 * 1024  # holds the whole header of most shards
_HINT = "Fetch the file again, or compare its checksum with the publisher's."


@dataclass(frozen=True)
class WeightsFile:
    """A safetensors file whose header has been read and found sound."""

    file: SourceFile
    header: bytes
    shard: Shard


def read_weights_file(file: SourceFile) -> WeightsFile:
    """Read and check the header of `file`.

    Raises:
        CtcliError: the file is truncated, or its header is not a valid one; lists every problem.
    """
    header = _read_header_bytes(file)
    make = _Entries()
    try:
        entries, metadata = _parse_json(header, make)
        tensors = _tensors(entries, make.specs, file, LENGTH_BYTES + len(header))
    except _HeaderError as bad:
        raise CtcliError([f"{file.name}: {problem}" for problem in bad.problems], _HINT) from bad
    return WeightsFile(file, header, Shard(file.name, tensors, metadata))


def encode_header(specs: Mapping[str, TensorSpec], metadata: Mapping[str, str]) -> bytes:
    """Encode a file's start (length and JSON, space-padded) for tensors in the order given."""
    quote = json.encoder.encode_basestring
    entries = []
    if metadata:
        strings = (f"{quote(key)}:{quote(value)}" for key, value in metadata.items())
        entries.append(f'"__metadata__":{{{",".join(strings)}}}')
    offset = 0
    for name, spec in specs.items():
        end = offset + spec.nbytes
        looks = _looks(spec.dtype, spec.shape)
        entries.append(f'{quote(name)}:{{{looks},"data_offsets":[{offset},{end}]}}')
        offset = end
    text = f"{{{','.join(entries)}}}".encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(LENGTH_BYTES, "little") + text


def in_file_order(tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """Tensors as they lie in a file: wide dtypes first, then by name, as the package does it."""
    by_name = sorted(tensors)  # code points have the order of their UTF-8 bytes
    by_dtype = sorted(by_name, key=lambda name: -DTYPE_RANK[tensors[name].spec.dtype])
    return {name: tensors[name] for name in by_dtype}


@lru_cache(maxsize=4096)
def _looks(dtype: str, shape: tuple[int, ...]) -> str:
    """What a header says of all tensors that look so."""
    return f'"dtype":"{dtype}","shape":[{",".join(map(str, shape))}]'


class _HeaderError(Exception):
    def __init__(self, *problems: str) -> None:
        self.problems = problems
        super().__init__(*problems)


def _read_header_bytes(file: SourceFile) -> bytes:
    first = file.read(0, _FIRST_READ)
    if said := told_by(first):
        raise CtcliError(f"{file.name}: {said[0]}.", said[1])
    length = int.from_bytes(first[:LENGTH_BYTES], "little")
    problem = None
    if len(first) < LENGTH_BYTES:
        problem = f"only {file.size} bytes long, no safetensors file."
    elif length > MAX_HEADER_BYTES:
        problem = (
            f"no safetensors file, or a damaged one: its header claims {length} bytes, and the "
            f"limit is {MAX_HEADER_BYTES}."
        )
    elif LENGTH_BYTES + length > file.size:
        problem = f"its header claims {length} bytes, but the file has {file.size}: truncated."
    if problem:
        raise CtcliError(f"{file.name}: {problem}", _HINT)
    end = LENGTH_BYTES + length
    header = first[LENGTH_BYTES:end]
    return header + file.read(len(first), end - len(first)) if end > len(first) else header


def _parse_json(header: bytes, make: _Entries) -> tuple[dict[str, Any], dict[str, str]]:
    try:
        entries = parse_json(header, make)
    except ValueError as error:
        raise _HeaderError(f"its header is not JSON: {error}.") from error
    if not isinstance(entries, dict):
        raise _HeaderError("its header is not a JSON object.")
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise _HeaderError("its __metadata__ is not a table of strings.")
    if not all(map(_is_unicode, (*metadata, *metadata.values()))):
        raise _HeaderError("its __metadata__ is not valid Unicode.")
    return entries, metadata


def _tensors(
    entries: dict[str, Any], specs: Sequence[TensorSpec], file: SourceFile, start: int
) -> dict[str, Stored]:
    """The tensors of a file, whose data begins at `start`; they take their entries' place."""
    problems = []
    for name, entry in entries.items():
        if problem := _name_problem(name) or ("" if type(entry) is _Place else _refused(entry)):
            problems.append(f"tensor {name!r}: {problem}")
        else:
            entries[name] = Stored(specs[entry & _WHICH], file, start + (entry >> _WHICH_BITS))
    if problems := problems or _gaps_and_overlaps(entries, start, file.size):
        raise _HeaderError(*problems)
    return entries


class _Place(int):
    """The entry of a sound tensor in one number: where its data begins, and which spec it has.

    A tuple would lie among the parser's own, whose memory could not be used again.
    """

    __slots__ = ()


class _Entries:
    """Makes entries of a header while it is parsed: of a sound one, a `_Place`.

    The tables and lists of hundreds of thousands of tensors would take most of the memory. Specs
    are shared by all that are equal.
    """

    def __init__(self) -> None:
        self.specs: list[TensorSpec] = []
        # By the text of the shape: true and 1.0, which are no sizes, are equal to 1.
        self._which: dict[tuple[str, str], int] = {}

    def __call__(self, pairs: Pairs) -> Any:
        table = unique(pairs)
        if len(table) != len(_KEYS) or table.keys() != _KEYS:
            return table
        dtype, shape, offsets = table["dtype"], table["shape"], table["data_offsets"]
        if not (isinstance(dtype, str) and isinstance(offsets, list) and len(offsets) == 2):
            return table
        begin, end = offsets
        if type(begin) is not int or type(end) is not int:
            return table
        key = dtype, str(shape)
        which = self._which.get(key)
        if which is None:
            if dtype not in DTYPES or not _is_counts(shape) or _exceeds_any_file(shape):
                return table
            which = self._which[key] = len(self.specs)
            self.specs.append(TensorSpec(dtype, tuple(shape)))
        is_sound = not _place_problem(self.specs[which], begin, end)
        return _Place(begin << _WHICH_BITS | which) if is_sound else table


def _place_problem(spec: TensorSpec, begin: int, end: int) -> str:
    """What is wrong with the place of a tensor; empty: nothing."""
    if not 0 <= begin <= end <= _LARGEST:
        return f"its offsets {begin}..{end} are reversed."
    if 8 * (end - begin) != spec.bits:
        return (
            f"{spec.dtype} of shape {[*spec.shape]} has {spec.bits / 8:g} bytes, but its "
            f"offsets hold {end - begin}."
        )
    if 8 * begin % DTYPES[spec.dtype].bits:
        return f"its offset {begin} is not aligned to {spec.dtype}."
    return ""


def _refused(entry: Any) -> str:
    """What is wrong with an entry that is not sound."""
    if not isinstance(entry, dict) or entry.keys() != _KEYS:
        return "its entry is not dtype, shape and data_offsets."
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        return f"unknown dtype {dtype!r}."
    if not _is_counts(shape):
        return f"its shape {shape!r} is not a list of sizes."
    if not _is_counts(offsets) or len(offsets) != 2:
        return f"its data_offsets {offsets!r} are not two positions."
    if _exceeds_any_file(shape):
        return f"its shape {shape} is larger than any file."
    return _place_problem(TensorSpec(dtype, tuple(shape)), *offsets)


def _name_problem(name: str) -> str:
    """What is wrong with a name; empty: nothing."""
    if len(name) > _LONGEST_NAME:
        return f"the name is longer than {_LONGEST_NAME:,} characters."
    return "" if _is_unicode(name) else "the name is not valid Unicode."


def _is_counts(value: Any) -> bool:
    if not isinstance(value, list) or not {*map(type, value)} <= _INTEGERS:
        return False
    return not value or (min(value) >= 0 and max(value) <= _LARGEST)


def _exceeds_any_file(shape: list[int]) -> bool:
    """Whether the sizes but for zeros multiply to too much; stops early, as there may be many."""
    product = 1
    for size in shape:
        product *= size or 1
        if product > _LARGEST:
            return True
    return False


def _is_unicode(text: str) -> bool:
    """Whether JSON's escapes did not smuggle in half a character."""
    return text.isascii() or not any("\ud800" <= char <= "\udfff" for char in text)


def _by_position(found: Mapping[str, Stored]) -> Iterable[tuple[str, Stored]]:
    """The tensors in the order of their bytes: mostly the header's own."""
    before = 0
    for spec, _, begin in found.values():
        if begin < before:
            return sorted(found.items(), key=lambda item: (item[1].start, item[1].spec.nbytes))
        before = begin + spec.nbytes
    return found.items()


def _gaps_and_overlaps(found: Mapping[str, Stored], start: int, size: int) -> list[str]:
    """What is wrong with the places of tensors in a file of `size` bytes with data from `start`."""
    problems = []
    position, before = start, ""
    for name, (spec, _, begin) in _by_position(found):
        if begin < position:
            problems.append(f"tensor {name!r} overlaps tensor {before!r}.")
        elif begin > position:
            problems.append(f"{begin - position} bytes before tensor {name!r} belong to none.")
        position, before = max(position, begin + spec.nbytes), name
    end, data_bytes = position - start, size - start
    if end > data_bytes:
        problems.append(f"its tensors end at byte {end}, its data at {data_bytes}: truncated.")
    elif end < data_bytes:
        problems.append(f"{data_bytes - end} bytes at its end belong to no tensor.")
    return problems
