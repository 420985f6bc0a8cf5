"""llama2.c's .bin files (https://github.com/karpathy/llama2.c, export.py, run.c, runq.c).

Little-endian, without gaps. Version 0 is what run.c reads, version 2 what runq.c reads; version 1
has no reader in that repository.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Literal

from ctcli.checkpoint.value import Origin
from ctcli.errors import CtcliError
from ctcli.lazy.nodes import LazyTensor
from ctcli.storage.destination import ONE_FILE
from ctcli.storage.layout import Layout, OutputFile, output_file

Version = Literal[0, 1, 2]

_MAGIC = 0x616B3432  # "ak42"
_HEADER_BYTES = 256  # of versions 1 and 2
# What both readers compute with, whatever the model was made for.
ROPE_THETA = 10000.0
NORM_EPS = 1e-5

_MATRICES = ("wq", "wk", "wv", "wo")
_FEED_FORWARD = ("w1", "w2", "w3")
_BY_LAYER = {"attention_norm", "ffn_norm", *_MATRICES, *_FEED_FORWARD}
TABLES = ("freqs_cos", "freqs_sin")
# The order of the tensors, by version; one that every layer has stands for those of all layers.
_ORDER_0 = (
    "token_embedding",
    "attention_norm",
    *_MATRICES,
    "ffn_norm",
    *_FEED_FORWARD,
    "norm",
    *TABLES,
    "classifier",
)
_ORDER_1 = (
    "attention_norm",
    "ffn_norm",
    "norm",
    "token_embedding",
    *_MATRICES,
    *_FEED_FORWARD,
    "classifier",
)
_ORDERS = {0: _ORDER_0, 1: _ORDER_1, 2: _ORDER_1}


@dataclass(frozen=True)
class Header:
    """What a file says of itself. group_size: in version 2 only."""

    version: Version
    dim: int
    hidden_dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    vocab_size: int
    max_seq_len: int
    shared_classifier: bool
    group_size: int | None

    def encode(self) -> bytes:
        """The bytes before the first tensor."""
        sizes = astuple(self)[1:8]
        if self.version == 0:
            # The sign of vocab_size, the sixth, says whether the classifier is separate.
            vocabulary = self.vocab_size * (1 if self.shared_classifier else -1)
            return struct.pack("<7i", *sizes[:5], vocabulary, sizes[6])
        head = struct.pack("<Ii7iB", _MAGIC, self.version, *sizes, self.shared_classifier)
        if self.group_size is not None:
            head += struct.pack("<i", self.group_size)
        return head.ljust(_HEADER_BYTES, b"\0")

    def tensors(self) -> Iterator[tuple[str, int | None]]:
        """llama2.c's name of each tensor, with its layer where it has one, in the file's order."""
        for name in _ORDERS[self.version]:
            if name in _BY_LAYER:
                yield from ((name, layer) for layer in range(self.n_layers))
            elif name != "classifier" or not self.shared_classifier:
                yield name, None


def encode_tokenizer(pieces: list[tuple[bytes, float]]) -> bytes:
    """tokenizer.bin: for each token in order its bytes, which readers end with NUL, and score."""
    longest = max(len(piece) for piece, _ in pieces)
    entries = (struct.pack("<fi", score, len(piece)) + piece for piece, score in pieces)
    return struct.pack("<i", longest) + b"".join(entries)


@dataclass(frozen=True)
class BinFile:
    """A model that is one .bin file.

    Attributes:
        header: what the file says of itself.
        tensors: in the file's order.
        beside: files that go beside it, by name.
        origin: the source.
        warnings: what a user should know.
    """

    header: Header
    tensors: Sequence[LazyTensor]
    beside: Mapping[str, bytes]
    origin: Origin
    warnings: tuple[str, ...]

    def lay_out(self, name: str) -> Layout:
        """Fix the offset and origin of every byte; the file is called `name`.

        Raises:
            CtcliError: a file beside it has that name.
        """
        if name in self.beside:
            raise CtcliError(f"{name}: it is written beside the .bin file.", "Name that otherwise.")
        file = output_file(name, self.header.encode(), self.tensors)
        others = (OutputFile(other, content) for other, content in self.beside.items())
        return Layout((file, *others), (), ONE_FILE)
