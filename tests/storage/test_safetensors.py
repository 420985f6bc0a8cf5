"""Safetensors headers, read and written, and copied bytes: the package is the oracle."""

from __future__ import annotations

import json
import math
import os
import re
import struct
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as save_numpy
from safetensors.torch import save, save_file

from ctcli.errors import CtcliError
from ctcli.lazy.tensors import Stored, TensorSpec
from ctcli.ops.dtypes import DTYPES
from ctcli.storage.index import find_index, parse_index
from ctcli.storage.local import LocalFile, list_local
from ctcli.storage.safetensors import WeightsFile, encode_header, in_file_order, read_weights_file
from ctcli.storage.transfer import BUFFER_BYTES, buffered_copy, copy_bytes
from tests.helpers.checkpoints import write_raw

# Every dtype that torch and the package both hold; numpy's are among them.
TAGS = {getattr(torch, dtype.torch_name): tag for tag, dtype in DTYPES.items() if dtype.torch_name}
TAGS[torch.float4_e2m1fn_x2] = "F4"
NOWHERE = LocalFile("", Path(), 0, "")
FORMAT = {"format": "pt"}
Copier = Callable[[int, int, int, int, int], int]
Tensors = Mapping[str, torch.Tensor]


def read(path: Path) -> WeightsFile:
    return read_weights_file(list_local(path.parent).files[path.name])


def entry(dtype: Any = "U8", shape: Any = (1,), offsets: Any = (0, 1)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def framed(header: Any, data_bytes: int = 1) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + bytes(data_bytes)


def one(dtype: Any = "U8", shape: Any = (1,), offsets: Any = (0, 1), nbytes: int = 1) -> bytes:
    return framed({"a": entry(dtype, shape, offsets)}, nbytes)


def two(first: tuple[Any, ...], second: tuple[Any, ...], nbytes: int) -> bytes:
    return framed({"a": entry(*first), "b": entry(*second)}, nbytes)


def raw_bytes(tensor: torch.Tensor) -> bytes:
    return tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def spec_of(tensor: torch.Tensor) -> TensorSpec:
    shape = list(tensor.shape)
    if tensor.dtype == torch.float4_e2m1fn_x2:
        shape[-1] *= 2  # the file counts values, torch pairs of them
    return TensorSpec(TAGS[tensor.dtype], tuple(shape))


def ordered_specs(tensors: Tensors) -> dict[str, TensorSpec]:
    stored = {name: Stored(spec_of(t), NOWHERE, 0) for name, t in tensors.items()}
    return {n: t.spec for n, t in in_file_order(stored).items()}


@st.composite
def random_tensors(draw: st.DrawFn) -> torch.Tensor:
    dtype = draw(st.sampled_from(list(TAGS)))
    least = 1 if dtype == torch.float4_e2m1fn_x2 else 0
    shape = draw(st.lists(st.integers(0, 5), min_size=least, max_size=3))
    nbytes = math.prod(shape) * dtype.itemsize
    if not nbytes:
        return torch.empty(shape, dtype=dtype)
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    values = random.integers(0, 2 if dtype == torch.bool else 256, nbytes, dtype=np.uint8)
    return torch.from_numpy(values).view(dtype).reshape(shape)


NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
TENSORS = st.dictionaries(
    NAMES.filter(lambda name: name != "__metadata__"), random_tensors(), max_size=8
)


@given(TENSORS)
def test_an_encoded_header_and_its_order_are_the_packages(tensors: Tensors) -> None:
    specs = ordered_specs(tensors)
    data = b"".join(raw_bytes(tensors[name]) for name in specs)
    assert encode_header(specs, FORMAT) + data == save(dict(tensors), FORMAT)


def test_an_encoded_header_of_every_dtype_at_once_is_the_packages() -> None:
    every = {f"{i}.{d}": torch.empty(8, dtype=d) for i in (10, 2) for d in TAGS}
    assert len(TAGS) == 20
    assert save(every, FORMAT).startswith(encode_header(ordered_specs(every), FORMAT))


@pytest.mark.parametrize(
    "dtype", ["bool", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8", "c8"]
)
def test_an_encoded_header_of_a_numpy_dtype_is_the_packages(dtype: str, tmp_path: Path) -> None:
    raw = save_numpy({"scalar": np.zeros((), dtype), "odd": np.zeros((3, 5), dtype)})
    (tmp_path / "x.safetensors").write_bytes(raw)
    shard = read(tmp_path / "x.safetensors").shard
    assert raw.startswith(encode_header({n: t.spec for n, t in shard.tensors.items()}, {}))
    assert shard.nbytes == 16 * np.dtype(dtype).itemsize


@given(TENSORS)
def test_every_file_of_the_package_reads_back(tensors: Tensors) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x.safetensors")
        save_file(dict(tensors), path, FORMAT)
        found, content = read(path), path.read_bytes()
    assert found.shard.metadata == FORMAT
    assert {n: t.spec for n, t in found.shard.tensors.items()} == ordered_specs(tensors)
    for name, tensor in found.shard.tensors.items():
        assert isinstance(tensor, Stored)
        data = content[tensor.start : tensor.start + tensor.spec.nbytes]
        assert data == raw_bytes(tensors[name])


def test_the_package_knows_the_same_dtypes_in_the_same_order(tmp_path: Path) -> None:
    path = write_raw(tmp_path / "x.safetensors", {"a": entry("?")}, b"0")
    with pytest.raises(SafetensorError, match="expected one of") as caught, safe_open(path, "np"):
        pass
    _, _, listed = str(caught.value).partition("expected one of")
    assert re.findall("`(.*?)`", listed) == list(DTYPES)


def test_a_header_longer_than_one_read_is_read_whole(tmp_path: Path) -> None:
    many = {f"layer.{i}.{'x' * 200}": torch.zeros(1, dtype=torch.uint8) for i in range(1000)}
    save_file(many, tmp_path / "x.safetensors")
    assert len(read(tmp_path / "x.safetensors").shard.tensors) == 1000


TWICE = b'{"a":%(e)b,"a":%(e)b}' % {b"e": json.dumps(entry()).encode()}
FIELD_TWICE = b'{"a":{"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}}'
SOUND = {"a": entry()}

# What a file holds, and what is said about it.
UNSOUND = {
    "empty file": (b"", "only 0 bytes long"),
    "seven bytes": (b"1234567", "only 7 bytes long"),
    "header longer than file": (struct.pack("<Q", 100) + b"{}", "claims 100 bytes, but"),
    "header over 100 MB": (struct.pack("<Q", 10**8 + 1) + b"{}", "the limit is 100000000"),
    "largest length": (b"\xff" * 8 + b"{}", "claims 18446744073709551615 bytes"),
    "no header": (bytes(8), "not JSON"),
    "not JSON": (framed(b'{"a"'), "not JSON"),
    "padded with zeros": (framed(b"{}\0\0", 0), "not JSON"),
    "byte order mark": (framed(b"\xef\xbb\xbf{}", 0), "not JSON"),
    "not UTF-8": (framed(b'{"\xe9":0}'), "not JSON"),
    "surrogate in UTF-8": (framed(b'{"\xed\xa0\x80":0}'), "not JSON"),
    "control character": (framed(b'{"\x01":0}'), "not JSON"),
    "not an object": (framed([]), "not a JSON object"),
    "nested too deeply": (framed(b"[" * 100_000), "nested too deeply"),
    "number of 5000 digits": (framed(b'{"a":' + b"9" * 5000 + b"}"), "not JSON"),
    "tensor twice": (framed(TWICE), "'a' appears twice"),
    "field twice": (framed(FIELD_TWICE), "'dtype' appears twice"),
    "metadata twice": (framed(b'{"__metadata__":{},"__metadata__":{}}', 0), "appears twice"),
    "metadata key twice": (framed(b'{"__metadata__":{"x":"1","x":"2"}}', 0), "'x' appears twice"),
    "metadata a list": (framed({"__metadata__": []}, 0), "its __metadata__ is not"),
    "metadata null": (framed({"__metadata__": None}, 0), "its __metadata__ is not"),
    "metadata number": (framed({"__metadata__": {"x": 1}}, 0), "its __metadata__ is not"),
    "surrogate in metadata": (framed({"__metadata__": {"x": "\ud800"}}, 0), "__metadata__"),
    "surrogate in its key": (framed({"__metadata__": {"\udfff": "x"}}, 0), "__metadata__"),
    "surrogate in a name": (framed({"\ud800": entry()}), r"tensor '\ud800': the name"),
    "entry null": (framed({"a": None}), "tensor 'a': its entry"),
    "entry a list": (framed({"a": ["U8", [1], [0, 1]]}), "tensor 'a': its entry"),
    "entry cut short": (framed({"a": {"dtype": "U8", "shape": [1]}}), "tensor 'a': its entry"),
    "entry with another key": (framed({"a": {**entry(), "x": 1}}), "tensor 'a': its entry"),
    "unknown dtype": (one("F7"), "tensor 'a': unknown dtype 'F7'"),
    "dtype in lower case": (one("u8"), "tensor 'a': unknown dtype 'u8'"),
    "dtype not a string": (one(["U8"]), "tensor 'a': unknown dtype ['U8']"),
    "shape null": (one(shape=None), "tensor 'a': its shape None"),
    "shape a number": (one(shape=1), "tensor 'a': its shape 1"),
    "size negative": (one(shape=[-1, -1]), "tensor 'a': its shape [-1, -1]"),
    "size a float": (one(shape=[1.0]), "tensor 'a': its shape [1.0]"),
    "size a bool": (one(shape=[True]), "tensor 'a': its shape [True]"),
    "size NaN": (one(shape=[float("nan")]), "tensor 'a': its shape [nan]"),
    "size infinite": (one(shape=[float("inf")]), "tensor 'a': its shape [inf]"),
    "size over the file": (one(shape=[2**63]), "tensor 'a'"),
    "size of 400 digits": (one(shape=[10**400]), "tensor 'a'"),
    "size over 64 bits": (one(shape=[2**64, 0], offsets=[0, 0], nbytes=0), "tensor 'a'"),
    "product over 64 bits": (one("U8", [2**40, 2**40, 0], [0, 0], 0), "tensor 'a'"),
    "one offset": (one(offsets=[0]), "tensor 'a': its data_offsets [0]"),
    "three offsets": (one(offsets=[0, 1, 1]), "tensor 'a': its data_offsets [0, 1, 1]"),
    "offset negative": (one(offsets=[-1, 0]), "tensor 'a': its data_offsets [-1, 0]"),
    "offset a float": (one(offsets=[0, 1.0]), "tensor 'a': its data_offsets [0, 1.0]"),
    "offset a bool": (one(offsets=[False, True]), "tensor 'a': its data_offsets [False"),
    "offsets reversed": (one(offsets=[1, 0]), "tensor 'a': its offsets 1..0"),
    "offsets far outside": (one(offsets=[2**70, 2**70 + 1]), "tensor 'a'"),
    "shape over offsets": (one("F32", [3], [0, 8], 8), "tensor 'a': F32 of shape [3] has 12 bytes"),
    "half a byte": (one("F4", [3], [0, 2], 2), "tensor 'a': F4 of shape [3] has 1.5 bytes"),
    "not aligned": (two(("U8", [1], [0, 1]), ("F32", [1], [1, 5]), 5), "tensor 'b': its offset 1 "),
    "overlap": (two(("U8", [2], [0, 2]), ("U8", [2], [1, 3]), 3), "tensor 'b' overlaps tensor 'a'"),
    "same place": (two(("U8", [1], [0, 1]), ("U8", [1], [0, 1]), 1), "'b' overlaps tensor 'a'"),
    "empty inside": (two(("U8", [2], [0, 2]), ("U8", [0], [1, 1]), 2), "'b' overlaps tensor 'a'"),
    "hole": (two(("U8", [1], [0, 1]), ("U8", [1], [3, 4]), 4), "2 bytes before tensor 'b'"),
    "hole at the start": (one(offsets=[1, 2], nbytes=2), "1 bytes before tensor 'a'"),
    "trailing bytes": (one(nbytes=4), "3 bytes at its end belong to no tensor"),
    "data cut short": (one("F32", [4], [0, 16], 15), "end at byte 16, its data at 15: truncated"),
}

# What the package accepts and we do not, and why.
STRICTER = {
    "tensor twice": "readers differ in which of the two they take",
    "metadata key twice": "readers differ in which of the two they take",
    "metadata null": "the format wants a table of strings",
    "entry a list": "the format wants an object, and other readers look its keys up",
    "entry with another key": "a rewritten header would lose it",
    "not aligned": "readers that map a file and cast in place need aligned values",
}


@pytest.mark.parametrize("case", UNSOUND)
def test_an_unsound_file_is_refused_by_name(case: str, tmp_path: Path) -> None:
    path = tmp_path / "model-00007.safetensors"
    content, problem = UNSOUND[case]
    path.write_bytes(content)
    with pytest.raises(CtcliError) as caught:
        read(path)
    assert caught.value.problems[0].startswith("model-00007.safetensors: ")
    assert problem in caught.value.problems[0]
    assert "Fetch the file again" in caught.value.hint
    assert package_accepts(path) == (case in STRICTER)


def package_accepts(path: Path) -> bool:
    try:
        with safe_open(path, "np"):
            return True
    except (SafetensorError, OverflowError):
        return False


def test_all_problems_of_a_header_are_listed(tmp_path: Path) -> None:
    header = {"a": entry("F7"), "b": entry(shape=[-1]), "c": entry(), "d": entry(shape=[5])}
    header |= {"e": {}, "\udfff": entry()}
    path = write_raw(tmp_path / "x.safetensors", header, b"0")
    with pytest.raises(CtcliError) as caught:
        read(path)
    found = [re.findall(r"^x.safetensors: tensor '(.*?)'", line) for line in caught.value.problems]
    assert found == [["a"], ["b"], ["d"], ["e"], [r"\udfff"]]


def test_all_overlaps_and_holes_are_listed(tmp_path: Path) -> None:
    places = {"a": [1, 2], "b": [1, 2], "c": [4, 5]}
    path = write_raw(tmp_path / "x.safetensors", {n: entry(offsets=p) for n, p in places.items()})
    with pytest.raises(CtcliError) as caught:
        read(path)
    assert [line.removeprefix("x.safetensors: ") for line in caught.value.problems] == [
        "1 bytes before tensor 'a' belong to none.",
        "tensor 'b' overlaps tensor 'a'.",
        "2 bytes before tensor 'c' belong to none.",
        "its tensors end at byte 5, its data at 0: truncated.",
    ]


NUMBERS = st.integers(-2, 20) | st.sampled_from([2**31, 2**40, 2**63, 2**64, 10**20, 0.5, -0.0])
ODD_VALUES = st.recursive(
    NUMBERS | st.none() | st.booleans() | st.sampled_from(["U8", "F4", "BF16", "", "\ud800"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.just("shape"), inner),
    max_leaves=4,
)


@st.composite
def damaged_headers(draw: st.DrawFn) -> bytes:
    """A sound header in which a value was replaced, or a few bytes of its text."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in draw(st.lists(st.sampled_from("abc"), unique=True, min_size=1)):
        shape = draw(st.lists(st.integers(0, 3), max_size=3))
        begin, end = end, end + math.prod(shape)
        header[name] = {"dtype": "U8", "shape": shape, "data_offsets": [begin, end]}
    name = draw(st.sampled_from(list(header)))
    field = draw(st.sampled_from(list(header[name])))
    if isinstance(header[name][field], list) and header[name][field] and draw(st.booleans()):
        last = len(header[name][field]) - 1
        header[name][field][draw(st.integers(0, last))] = draw(ODD_VALUES)
    else:
        header[name][field] = draw(ODD_VALUES)
    text = bytearray(json.dumps(header).encode())
    for _ in range(draw(st.integers(0, 2))):
        text[draw(st.integers(0, len(text) - 1))] = draw(st.sampled_from(b'[]{}",:0123.eE\\u '))
    return framed(bytes(text), end)


@settings(max_examples=300)
@given(damaged_headers())
def test_no_file_is_accepted_that_the_package_refuses(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x.safetensors")
        path.write_bytes(content)
        try:
            ours = read(path).shard
        except CtcliError:
            return
        assert package_accepts(path)
        with safe_open(path, "np") as theirs:
            assert set(theirs.keys()) == ours.tensors.keys()
            for name, tensor in ours.tensors.items():
                found = theirs.get_slice(name)
                assert TensorSpec(found.get_dtype(), tuple(found.get_shape())) == tensor.spec


def test_the_index_of_the_top_folder_is_found_and_the_default_one_first() -> None:
    default, variant = "model.safetensors.index.json", "a.safetensors.index.json"
    assert find_index(["model.safetensors", f"sub/{default}"]) is None
    assert find_index([variant, f"sub/{default}"]) == variant
    assert find_index([variant, default]) == default
    with pytest.raises(CtcliError, match=r"several index files.*: a\.saf.*, b\.saf"):
        find_index([variant, "b.safetensors.index.json"])


def test_a_huge_number_in_an_index_is_ordered() -> None:
    files = {"a": f"{'9' * 5000}.safetensors", "b": "8.safetensors"}
    index = parse_index("i", json.dumps({"weight_map": files}).encode())
    assert index.files == [files["b"], files["a"]]


SHM = Path("/dev/shm")  # another file system on Linux, so that the kernel cannot copy
DATA = np.random.default_rng(0).bytes(2 * BUFFER_BYTES + 12345)
Places = tuple[int, int]


@pytest.fixture(scope="module", params=[None, *([SHM] if SHM.is_dir() else [])], ids=str)
def places(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Places]:
    """Descriptors of a source that holds `DATA` and of a target, perhaps not on the same disk."""
    source = tmp_path_factory.mktemp("places") / "source"
    source.write_bytes(DATA)
    with (
        source.open("rb") as read_from,
        tempfile.TemporaryFile(dir=request.param or source.parent) as write_to,
    ):
        yield read_from.fileno(), write_to.fileno()


def copy_with_buffer(source: int, start: int, target: int, offset: int, nbytes: int) -> int:
    done = 0
    while done < nbytes:
        done += buffered_copy(source, start + done, target, offset + done, nbytes - done)
    return done


def copy_with_kernel(source: int, start: int, target: int, offset: int, nbytes: int) -> int:
    counts: list[int] = []
    copy_bytes(source, start, target, offset, nbytes, counts.append)
    return sum(counts)


@pytest.mark.parametrize("copy", [copy_with_buffer, copy_with_kernel])
@settings(max_examples=40)
@given(st.integers(0, len(DATA)), st.integers(0, len(DATA)), st.integers(0, len(DATA)))
@example(0, len(DATA), 0)
@example(1, BUFFER_BYTES, 4097)
def test_a_copied_range_is_equal_and_nothing_else_is_touched(
    places: Places, copy: Copier, one_end: int, other_end: int, offset: int
) -> None:
    source, target = places
    start, end = sorted((one_end, other_end))
    for length in (0, 2 * len(DATA)):
        os.ftruncate(target, length)
    assert copy(source, start, target, offset, end - start) == end - start
    expected = (bytes(offset) + DATA[start:end]).ljust(2 * len(DATA), b"\0")
    assert os.pread(target, 3 * len(DATA), 0) == expected
    assert os.lseek(source, 0, os.SEEK_CUR) == os.lseek(target, 0, os.SEEK_CUR) == 0


@pytest.mark.parametrize("copy", [copy_with_buffer, copy_with_kernel])
@pytest.mark.parametrize("missing", [1, BUFFER_BYTES, 10 * len(DATA)])
@pytest.mark.parametrize("start", [0, len(DATA) - 1, len(DATA)])
def test_a_source_that_ends_too_early_is_an_error(
    places: Places, copy: Copier, missing: int, start: int
) -> None:
    with pytest.raises(EOFError):
        copy(places[0], start, places[1], 0, len(DATA) - start + missing)
