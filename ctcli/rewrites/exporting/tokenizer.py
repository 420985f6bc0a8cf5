"""tokenizer.bin for run.c and runq.c, out of a checkpoint's own tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ctcli.lazy.tensors import SourceFile, content_of
from ctcli.storage.llama2c import encode_tokenizer
from ctcli.storage.tokenizers import UnfitTokenizerError, read_sentencepiece, read_tokenizer_json

TOKENIZER_NAME = "tokenizer.bin"
# The original's own source comes first.
_READERS = {"tokenizer.model": read_sentencepiece, "tokenizer.json": read_tokenizer_json}


@dataclass(frozen=True)
class Tokenizer:
    """tokenizer.bin, what run.c does otherwise than the tokenizer, or why there can be none."""

    content: bytes
    caveats: tuple[str, ...]
    problems: tuple[str, ...]


def read_tokenizer(files: Mapping[str, SourceFile | bytes], vocab_size: int) -> Tokenizer:
    """Make tokenizer.bin out of the first of a checkpoint's tokenizers that fits.

    Args:
        files: the checkpoint's.
        vocab_size: tokens of the model.
    """
    problems = []
    for name, read in _READERS.items():
        file = files.get(name)
        if file is None:
            continue
        try:
            vocabulary = read(file if isinstance(file, bytes) else content_of(file))
            caveats = [f"{TOKENIZER_NAME}: {text}." for text in vocabulary.caveats(vocab_size)]
        except UnfitTokenizerError as unfit:
            problems.append(f"--tokenizer: {name} does not fit: {unfit}.")
        else:
            return Tokenizer(encode_tokenizer(vocabulary.pieces(vocab_size)), tuple(caveats), ())
    none = f"--tokenizer: there is neither {' nor '.join(_READERS)}."
    return Tokenizer(b"", (), tuple(problems or [none]))
