"""tokenizer.bin: what run.c makes of it, against the tokenizers that it comes from."""

from __future__ import annotations

import ast
import json
import struct
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as HubTokenizer
from tokenizers import decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE

from ctcli.storage.llama2c import encode_tokenizer
from ctcli.storage.tokenizers import UnfitTokenizerError, read_sentencepiece, read_tokenizer_json
from tests.conftest import ROOT, Ctcli
from tests.helpers.exporting import export, refusal
from tests.helpers.llama2c import Session, Tokenizer, read_run_c
from tests.helpers.llamas import SMALL, make_model, save_hf

WORDS = ["the", " the", "cat", " cat", "hat", " h", "at", "ca", "th", " t", "he", "!!", "  "]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def sentencepiece_json(merges: bool = True) -> dict[str, Any]:
    """tokenizer.json as transformers converts a sentencepiece BPE: three markers, bytes, pieces."""
    pieces = ["<unk>", "<s>", "</s>", *BYTES, *(word.replace(" ", "\u2581") for word in WORDS)]
    pieces += ["\u2581", *"abcdefghijklmnopqrstuvwxyz!.é"]
    vocabulary = {piece: token for token, piece in enumerate(pieces)}
    splits = [
        (piece[:i], piece[i:])
        for piece in pieces[259:]
        for i in range(1, len(piece))
        if piece[:i] in vocabulary and piece[i:] in vocabulary
    ]
    tokenizer = HubTokenizer(
        BPE(
            vocabulary,
            splits if merges else [],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    found: dict[str, Any] = json.loads(tokenizer.to_str())
    return found


def message(*fields: tuple[int, int | float | bytes]) -> bytes:
    """A protobuf message; values below 128, lengths below 16384."""
    raw = b""
    for number, value in fields:
        if isinstance(value, bytes):
            wire, content = 2, bytes([len(value) % 128 | 128, len(value) // 128]) + value
        elif isinstance(value, float):
            wire, content = 5, struct.pack("<f", value)
        else:
            wire, content = 0, bytes([value])
        tag = number << 3 | wire
        raw += (bytes([tag]) if tag < 128 else bytes([tag % 128 | 128, tag // 128])) + content
    return raw


def sentencepiece_model(kind: int = 2) -> bytes:
    """tokenizer.model with the pieces of `sentencepiece_json`."""
    vocabulary = sentencepiece_json()["model"]["vocab"]
    pieces = [
        (1, message((1, piece.encode()), (2, float(259 - token)), (3, 6 if token < 259 else 1)))
        for piece, token in vocabulary.items()
    ]
    trainer = message((1, b"input"), (3, kind), (40, 0), (41, 1), (42, 2))
    return message(*pieces, (2, trainer), (3, NORMALIZER))


NORMALIZER = message((1, b"identity"), (3, 1))


@cache  # Hypothesis allows little time for an example
def tokenizer_of(content: bytes, size: int) -> Tokenizer:
    """What run.c makes of a tokenizer.json."""
    vocabulary = read_tokenizer_json(content)
    return Tokenizer(encode_tokenizer(vocabulary.pieces(size)), size)


SENTENCEPIECE = json.dumps(sentencepiece_json()).encode()
PYLM = (ROOT / "fixtures" / "pylm" / "tokenizer.json").read_bytes()
HUB = HubTokenizer.from_str(SENTENCEPIECE.decode())
SIZE = len(sentencepiece_json()["model"]["vocab"])


@given(st.text(st.sampled_from("theca !\u00e9\u4e16."), max_size=12))
def test_run_c_encodes_as_a_sentencepiece_tokenizer_does(text: str) -> None:
    run_c = tokenizer_of(SENTENCEPIECE, SIZE)
    expected = HUB.encode(text).ids if text else []
    assert run_c.encode(text) == [1, *expected]
    assert run_c.rest == 0


def test_markers_are_never_joined_from_a_prompts_characters() -> None:
    run_c = tokenizer_of(SENTENCEPIECE, SIZE)
    text = "<s>"
    assert run_c.encode(text)[2:] == [ord("<") + 3, run_c.lookup[b"s"], ord(">") + 3]
    assert run_c.texts[:3] == [b"<unk>", b"\n<s>\n", b"\n</s>\n"]


def test_tokenizer_model_gives_its_own_pieces_and_scores() -> None:
    """As llama2.c's tokenizer.py writes them."""
    vocabulary = read_sentencepiece(sentencepiece_model())
    pieces = sentencepiece_json()["model"]["vocab"]
    expected = [
        (piece.replace("\u2581", " ").encode(), float(259 - token))
        for piece, token in pieces.items()
    ]
    expected[1:3] = [(b"\n<s>\n", 258.0), (b"\n</s>\n", 257.0)]
    assert vocabulary.pieces(SIZE) == expected
    assert list(vocabulary.caveats(SIZE)) == []
    content = encode_tokenizer(expected)
    longest = max(len(text) for text, _ in expected)
    assert content.startswith(struct.pack("<ifi", longest, 259.0, 5) + b"<unk>")
    assert len(content) == 4 + sum(8 + len(text) for text, _ in expected)


def test_a_vocabulary_is_filled_up_or_cut_to_the_models() -> None:
    more = tokenizer_of(SENTENCEPIECE, SIZE + 3)
    assert more.encode("the cat") == tokenizer_of(SENTENCEPIECE, SIZE).encode("the cat")
    assert more.decode([5, SIZE, SIZE + 1]) == b""
    vocabulary = read_tokenizer_json(SENTENCEPIECE)
    assert list(vocabulary.caveats(SIZE - 2)) == [
        "2 of its tokens lie beyond the model's vocabulary and are left out"
    ]


# -- bytes ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pylm_files(pylm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pylm")
    export(pylm, folder / "out.bin", version=0, tokenizer=True)
    return folder


@given(st.text(st.characters(min_codepoint=2, max_codepoint=127), min_size=1))
def test_run_c_takes_ascii_for_pylms_tokens(text: str) -> None:
    """But for byte 1, which to run.c is what a text begins with."""
    run_c = tokenizer_of(PYLM, 256)
    tokens = run_c.encode(text)
    assert tokens == [1, ord(" "), *text.encode()]
    printed = "".join(char for char in text if char.isprintable() or char in "\t\n\v\f\r")
    assert run_c.decode(tokens) == printed.encode()


def test_bytes_that_are_no_text_are_written_as_numbers() -> None:
    """Other readers decode a token as UTF-8, and none can hold a NUL."""
    texts = [text for text, _ in read_tokenizer_json(PYLM).pieces(256)]
    as_numbers = [b"<0x%02X>" % byte for byte in (0, *range(128, 256))]
    assert texts == [as_numbers[0], *(bytes([byte]) for byte in range(1, 128)), *as_numbers[1:]]


def test_run_c_continues_a_prompt_with_pylm(pylm_files: Path) -> None:
    """What is given to it begins with byte 1 and a space, which the model has never seen."""
    run_c = Tokenizer((pylm_files / "tokenizer.bin").read_bytes(), 256)
    session = Session(read_run_c((pylm_files / "out.bin").read_bytes()))
    tokens = run_c.encode("class Window:\n    def __init__(self, ")
    logits = [session.forward(token) for token in tokens][-1]
    for _ in range(200):
        tokens.append(int(logits.argmax()))
        logits = session.forward(tokens[-1])
        if tokens[-1] == ord("\n") and tokens[-2] != ord(":"):
            break
    text = run_c.decode(tokens)
    assert text.startswith(b"class Window:\n    def __init__(self, ")
    (window,) = ast.parse(text).body
    assert isinstance(window, ast.ClassDef)


def test_what_does_not_hold_for_pylm_is_said(cli: Ctcli, pylm: Path, tmp_path: Path) -> None:
    done = cli("export-bin", pylm, tmp_path / "out.bin", "--tokenizer", "--dry-run")
    lines = [line.removeprefix("warning: ") for line in done.stderr.splitlines()]
    assert lines == [
        "tokenizer.bin: run.c begins each prompt with token 1, here '\\x01', and a space.",
        "tokenizer.bin: run.c takes characters of a prompt that are not ASCII for wrong tokens.",
    ]


def byte_level_json(**changes: Any) -> bytes:
    """A byte-level BPE that joins h+e and the, with a token of its own for an added text."""
    tokens = [
        *sorted(pre_tokenizers.ByteLevel.alphabet()),
        "he",
        "the",
        "\u0120the",
        "\u00c3\u00a9",
        "zz",
    ]
    tokenizer = HubTokenizer(
        BPE(
            {token: i for i, token in enumerate(tokens)},
            [("h", "e"), ("t", "he"), ("\u0120", "the"), ("\u00c3", "\u00a9")],
        )
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["xy"])
    content = json.loads(tokenizer.to_str())
    content["model"] |= changes
    return json.dumps(content).encode()


def test_byte_level_merges_become_scores() -> None:
    content = byte_level_json()
    run_c, hub = tokenizer_of(content, 262), HubTokenizer.from_str(content.decode())
    for text in ("the hen", " the", "thethe", "\u00e9"):
        assert run_c.encode(text)[1:] == hub.encode(f" {text}").ids, text
    assert run_c.texts[-1] == b"xy"
    for text in ("xy", "zz"):  # an added token, and one that no merge makes
        assert run_c.encode(text)[2:] == [run_c.lookup[char.encode()] for char in text]
    vocabulary = read_tokenizer_json(content)
    assert any("does not split words" in caveat for caveat in vocabulary.caveats(262))


def test_merges_as_text_are_read_as_well() -> None:
    content = json.loads(byte_level_json())
    content["model"]["merges"] = [" ".join(pair) for pair in content["model"]["merges"]]
    expected = read_tokenizer_json(byte_level_json()).pieces(262)
    assert read_tokenizer_json(json.dumps(content).encode()).pieces(262) == expected


# -- refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"type": "Unigram"}, "no BPE but Unigram"),
        ({"type": "WordPiece"}, "no BPE but WordPiece"),
        ({"end_of_word_suffix": "</w>"}, "prefixes or suffixes"),
        ({"vocab": [["a", 0.0]]}, "malformed"),
        ({"vocab": {"a": "b"}}, "malformed"),
        ({"merges": [1]}, "malformed"),
    ],
)
def test_tokenizers_of_another_kind_are_refused(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(UnfitTokenizerError, match=reason):
        read_tokenizer_json(byte_level_json(**changes))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"model": null}', b"\xff"])
def test_a_broken_tokenizer_json_is_refused(content: bytes) -> None:
    with pytest.raises(UnfitTokenizerError, match="malformed"):
        read_tokenizer_json(content)


@given(st.binary(max_size=40))
def test_what_is_no_tokenizer_model_is_refused(content: bytes) -> None:
    with pytest.raises(UnfitTokenizerError):
        read_sentencepiece(content)


WHOLE_MODEL = sentencepiece_model()


@given(st.integers(1, len(WHOLE_MODEL) - 1))
def test_a_tokenizer_model_that_was_cut_short_is_refused(length: int) -> None:
    """Only what follows pieces and trainer, the normalizer, may be missing."""
    whole = WHOLE_MODEL
    needed = len(whole) - len(message((3, NORMALIZER)))
    if length == needed:
        assert read_sentencepiece(whole[:length]) == read_sentencepiece(whole)
    else:
        with pytest.raises(UnfitTokenizerError):
            read_sentencepiece(whole[:length])


def test_a_tokenizer_without_bytes_or_space_is_refused() -> None:
    plain = json.loads(byte_level_json())
    plain["pre_tokenizer"] = plain["decoder"] = None
    with pytest.raises(UnfitTokenizerError, match="no bytes to fall back to"):
        read_tokenizer_json(json.dumps(plain).encode())
    vocabulary = read_tokenizer_json(byte_level_json(vocab={"a": 0, "b": 1}, merges=[]))
    with pytest.raises(UnfitTokenizerError, match="no token for a space"):
        list(vocabulary.caveats(2))


def test_the_first_tokenizer_that_fits_is_taken(tmp_path: Path) -> None:
    source = save_hf(tmp_path / "source", make_model(replace(SMALL, vocab_size=262)))
    assert (
        "there is neither tokenizer.model nor tokenizer.json" in refusal(source, tokenizer=True)[0]
    )
    (source / "tokenizer.model").write_bytes(sentencepiece_model(kind=1))
    (source / "tokenizer.json").write_bytes(b"{}")
    first, second = refusal(source, tokenizer=True)
    assert "tokenizer.model does not fit: it is no BPE but sentencepiece's model type 1." in first
    assert "tokenizer.json does not fit: it is malformed" in second
    (source / "tokenizer.json").write_bytes(byte_level_json())
    export(source, tmp_path / "a.bin", tokenizer=True)
    expected = encode_tokenizer(read_tokenizer_json(byte_level_json()).pieces(262))
    assert (tmp_path / "tokenizer.bin").read_bytes() == expected
