"""Vocabularies out of tokenizer.model and tokenizer.json, as llama2.c's readers want them.

run.c begins a prompt with token 1 and a space, cuts it into characters, and then joins the two
neighbours whose joint text is the token with the highest score, again and again. It takes a
character that is no token for its UTF-8 bytes, and byte b for token b + 3. It prints a token's
text, and for `<0xNN>` that byte.

tokenizer.model: https://github.com/google/sentencepiece, sentencepiece_model.proto.
tokenizer.json: https://huggingface.co/docs/tokenizers.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ctcli.storage.strict_json import parse_json

_SPACE = "\u2581"  # a space, as sentencepiece writes it
_BPE = 2  # sentencepiece's number of the model type
_UNIGRAM = 1  # its default
_FIXED_BYTES = {1: 8, 5: 4}  # by protobuf's wire type
# No score that run.c compares with is lower: what has it is never made by joining.
_NEVER_JOINED = -1e10
# Prints nothing. run.c cannot read a token without bytes.
_FILLER = b"<0x00>"
# Tokens 1 and 2 as llama2.c's own tokenizer.py writes them, so that no prompt spells them.
_MARKERS = {1: ("<s>", "\n<s>\n"), 2: ("</s>", "\n</s>\n")}
_BOS = (b"<s>", b"\n<s>\n")


class UnfitTokenizerError(ValueError):
    """A tokenizer that run.c cannot imitate; the message says why."""


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer as run.c knows it.

    Attributes:
        tokens: bytes and score of every token, by its number.
        bos: token that begins a text, if there is one.
        is_split: whether texts are cut by rules that run.c lacks before neighbours are joined.
    """

    tokens: Mapping[int, tuple[bytes, float]]
    bos: int | None
    is_split: bool

    def pieces(self, size: int) -> list[tuple[bytes, float]]:
        """Exactly `size` tokens: readers take as many as the model has."""
        found = (self.tokens.get(token, (b"", _NEVER_JOINED)) for token in range(size))
        return [(text or _FILLER, score) for text, score in found]

    def caveats(self, size: int) -> Iterator[str]:
        """What a reader with `size` tokens does otherwise than the tokenizer.

        Raises:
            UnfitTokenizerError: it cannot encode at all.
        """
        pieces = [text for text, _ in self.pieces(size)]
        texts = set(pieces)
        if b" " not in texts:
            raise UnfitTokenizerError("it has no token for a space, with which run.c begins")
        if beyond := sum(token >= size for token in self.tokens):
            yield f"{beyond} of its tokens lie beyond the model's vocabulary and are left out"
        if self.bos != 1:
            first = "".join(text.decode(errors="replace") for text in pieces[1:2])
            yield f"run.c begins each prompt with token 1, here {first!r}, and a space"
        if pieces[3:259] != [b"<0x%02X>" % byte for byte in range(256)]:
            ascii_only = all(bytes([char]) in texts for char in (*b"\t\n", *range(32, 127)))
            which = "that are not ASCII" if ascii_only else "that are no token"
            yield f"run.c takes characters of a prompt {which} for wrong tokens"
        if self.is_split:
            yield "run.c does not split words first, so it may cut a prompt into other tokens"


def read_sentencepiece(content: bytes) -> Vocabulary:
    """Read tokenizer.model, exactly as llama2.c's tokenizer.py does.

    Raises:
        UnfitTokenizerError: no sentencepiece model, or not one of kind BPE.
    """
    try:
        fields = list(_fields(content))
        pieces = [dict(_fields(value)) for number, value in fields if number == 1]
        trainer = dict(_fields(next(value for number, value in fields if number == 2)))
        tokens = {
            token: (
                _text_of(piece[1].decode(), token),
                *struct.unpack("<f", piece.get(2, b"\0" * 4)),
            )
            for token, piece in enumerate(pieces)
        }
        kind, bos = trainer.get(3, _UNIGRAM), trainer.get(41, 1)
    except (ValueError, LookupError, StopIteration, TypeError, AttributeError, struct.error) as bad:
        raise UnfitTokenizerError("it is not a sentencepiece model") from bad
    if kind != _BPE:
        raise UnfitTokenizerError(f"it is no BPE but sentencepiece's model type {kind}")
    return Vocabulary(tokens, bos, is_split=False)


def read_tokenizer_json(content: bytes) -> Vocabulary:
    """Read tokenizer.json: BPE in sentencepiece's manner or over bytes.

    Raises:
        UnfitTokenizerError: not one of these.
    """
    try:
        return _bpe_of(parse_json(content))
    except UnfitTokenizerError:
        raise
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as bad:
        raise UnfitTokenizerError(f"it is malformed: {bad!r}") from bad


def _bpe_of(tokenizer: Mapping[str, Any]) -> Vocabulary:
    model = tokenizer["model"]
    is_bytes = _mentions(tokenizer, "ByteLevel")
    if model["type"] != "BPE":
        raise UnfitTokenizerError(f"it is no BPE but {model['type']}")
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        raise UnfitTokenizerError("its tokens have prefixes or suffixes")
    if not is_bytes and not model.get("byte_fallback"):
        raise UnfitTokenizerError("it has no bytes to fall back to")
    added = {int(token["id"]): token["content"] for token in tokenizer.get("added_tokens") or ()}
    ranks = _ranks(model.get("merges") or [])
    tokens = {token: (_text_of(text, token), _NEVER_JOINED) for token, text in added.items()}
    for piece, token in model["vocab"].items():
        if token not in added:
            text = _text_of_bytes(piece) if is_bytes else _text_of(piece, token)
            tokens[int(token)] = text, _score(piece, ranks)
    bos = next((token for token, (text, _) in tokens.items() if text in _BOS), None)
    return Vocabulary(tokens, bos, is_split=is_bytes and bool(ranks))


def _score(piece: str, ranks: Mapping[str, int]) -> float:
    """What ranks higher is joined first, as in sentencepiece, whose scores fall by one a merge."""
    return float(-ranks[piece]) if piece in ranks else _NEVER_JOINED


def _ranks(merges: Iterable[str | list[str]]) -> dict[str, int]:
    """The rank of the first merge that makes each token."""
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(merges):
        pair = merge.split(" ", 1) if isinstance(merge, str) else merge
        ranks.setdefault("".join(pair), rank)
    return ranks


def _mentions(tokenizer: Mapping[str, Any], kind: str) -> bool:
    """Whether the pre-tokenizer or decoder is of a kind, or a sequence with one that is."""
    parts = [tokenizer.get("pre_tokenizer") or {}, tokenizer.get("decoder") or {}]
    for part in tuple(parts):
        parts += part.get("pretokenizers") or part.get("decoders") or []
    return any(part.get("type") == kind for part in parts)


def _text_of(piece: str, token: int) -> bytes:
    marker, spelled = _MARKERS.get(token, ("", ""))
    return (spelled if piece == marker else piece).replace(_SPACE, " ").encode()


def _text_of_bytes(piece: str) -> bytes:
    """The bytes that a byte-level token stands for; as <0xNN> where run.c needs that."""
    text = bytes(_BYTE_OF[char] for char in piece)
    is_no_text = len(text) == 1 and (text == b"\0" or text >= b"\x80")
    return b"<0x%02X>" % text[0] if is_no_text else text


def _byte_characters() -> dict[str, int]:
    """GPT-2's character for each byte: itself if it prints, else the next one from 256 on."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = [byte for byte in range(256) if byte not in printable]
    codes = {byte: byte for byte in printable} | {b: 256 + i for i, b in enumerate(others)}
    return {chr(code): byte for byte, code in codes.items()}


_BYTE_OF = _byte_characters()


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """Numbers and values of a protobuf message: integers, and bytes of all else.

    Raises:
        LookupError: no such message.
    """
    position = 0
    while position < len(message):
        tag, position = _varint(message, position)
        value, position = _varint(message, position) if tag & 7 in (0, 2) else (0, position)
        if tag & 7:
            length = value if tag & 7 == 2 else _FIXED_BYTES[tag & 7]
            yield tag >> 3, message[position : position + length]
            position += length
        else:
            yield tag >> 3, value
    if position > len(message):
        raise IndexError(position)


def _varint(message: bytes, position: int) -> tuple[int, int]:
    """A number in groups of seven bits, lowest first, and where it ends."""
    value = shift = 0
    while True:
        byte = message[position]
        value |= (byte & 127) << shift
        position, shift = position + 1, shift + 7
        if byte < 128:
            return value, position
