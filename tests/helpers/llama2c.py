"""llama2.c in numpy: its writer's layouts, and its readers' order of reading and arithmetic."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
MATRICES = ("wq", "wk", "wv", "wo", "w1", "w2", "w3")
EPS = np.float32(1e-5)


@dataclass(frozen=True)
class Config:
    dim: int
    hidden_dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    vocab_size: int
    max_seq_len: int

    @property
    def head_size(self) -> int:
        return self.dim // self.n_heads

    @property
    def kv_dim(self) -> int:
        return self.head_size * self.n_kv_heads

    def integers(self, separate: bool = False) -> list[int]:
        vocab = -self.vocab_size if separate else self.vocab_size
        heads = [self.n_heads, self.n_kv_heads, vocab, self.max_seq_len]
        return [self.dim, self.hidden_dim, self.n_layers, *heads]

    def shapes(self) -> dict[str, tuple[int, int]]:
        """Rows and columns of the matrices of a layer."""
        dim, hidden, kv = self.dim, self.hidden_dim, self.kv_dim
        shapes = [(dim, dim), (kv, dim), (kv, dim), (dim, dim), *[(hidden, dim), (dim, hidden)]]
        return dict(zip(MATRICES, [*shapes, (hidden, dim)], strict=True))


@dataclass(frozen=True)
class Model:
    """Weights in float32, by llama2.c's names, rotary rows side by side; a list for each layer."""

    config: Config
    embedding: Floats
    layers: Mapping[str, Sequence[Floats]]
    norm: Floats
    classifier: Floats | None


def quantize_q80(matrix: Floats, group: int) -> tuple[NDArray[np.int8], Floats]:
    """int8 codes and float32 scales, flat."""
    groups = matrix.reshape(-1, group)
    scales = np.abs(groups).max(axis=1) / np.float32(127)
    divisors = np.where(scales > 0, scales, np.float32(1))[:, None]
    codes = np.clip(np.rint(groups / divisors), -127, 127).astype(np.int8)
    return codes.reshape(-1), scales


def write(model: Model, version: int, group: int = 32) -> bytes:
    """The file of a version."""
    return (write_v0, write_v1, lambda m: write_v2(m, group))[version](model)


def write_v0(model: Model) -> bytes:
    config, layers = model.config, model.layers
    parts = [struct.pack("<7i", *config.integers(model.classifier is not None))]
    parts += [model.embedding.tobytes()]
    for name in ("attention_norm", "wq", "wk", "wv", "wo", "ffn_norm", "w1", "w2", "w3"):
        parts += [tensor.tobytes() for tensor in layers[name]]
    parts += [model.norm.tobytes()]
    exponents = np.arange(0, config.head_size, 2) / config.head_size
    frequencies = (10000.0**-exponents).astype(np.float32)
    positions = np.arange(config.max_seq_len, dtype=np.float32)
    angles = (positions[:, None] * frequencies).astype(np.float64)
    parts += [np.cos(angles).astype("<f4").tobytes(), np.sin(angles).astype("<f4").tobytes()]
    if model.classifier is not None:
        parts += [model.classifier.tobytes()]
    return b"".join(parts)


def write_v1(model: Model) -> bytes:
    head = struct.pack("<Ii", 0x616B3432, 1) + struct.pack("<7i", *model.config.integers())
    head += bytes([model.classifier is None])
    norms, matrices = _in_order(model)
    return head.ljust(256, b"\0") + b"".join(tensor.tobytes() for tensor in (*norms, *matrices))


def write_v2(model: Model, group: int) -> bytes:
    head = struct.pack("<Ii", 0x616B3432, 2) + struct.pack("<7i", *model.config.integers())
    head += bytes([model.classifier is None]) + struct.pack("<i", group)
    norms, matrices = _in_order(model)
    parts = [tensor.tobytes() for tensor in norms]
    for matrix in matrices:
        codes, scales = quantize_q80(matrix, group)
        parts += [codes.tobytes(), scales.tobytes()]
    return head.ljust(256, b"\0") + b"".join(parts)


def _in_order(model: Model) -> tuple[list[Floats], list[Floats]]:
    layers = model.layers
    norms = [*layers["attention_norm"], *layers["ffn_norm"], model.norm]
    matrices = [model.embedding] + [tensor for name in MATRICES for tensor in layers[name]]
    return norms, matrices + ([] if model.classifier is None else [model.classifier])


class Matrix(Protocol):
    """A weight of a reader."""

    def times(self, x: Floats) -> Floats: ...


@dataclass(frozen=True)
class FloatMatrix:
    values: Floats

    def times(self, x: Floats) -> Floats:
        return self.values @ x


@dataclass(frozen=True)
class Q80Matrix:
    """runq.c's: x is quantized too, and each group summed in integers."""

    codes: NDArray[np.int8]
    scales: Floats

    @property
    def values(self) -> Floats:
        rows, groups = self.scales.shape
        values: Floats = self.codes.reshape(rows, groups, -1) * self.scales[:, :, None]
        return values.reshape(rows, -1)

    def times(self, x: Floats) -> Floats:
        rows, groups = self.scales.shape
        grouped = x.reshape(groups, -1)
        x_scales = np.abs(grouped).max(axis=1) / np.float32(127)
        quotients = grouped / x_scales[:, None]
        codes = np.copysign(np.floor(np.abs(quotients) + 0.5), quotients).astype(np.int32)
        sums = np.einsum("rgj,gj->rg", self.codes.reshape(rows, groups, -1).astype(np.int32), codes)
        found: Floats = (sums * self.scales * x_scales).sum(axis=1).astype(np.float32)
        return found


@dataclass(frozen=True)
class Reader:
    """A model as a reader maps it; `rest` is what it left of the file."""

    config: Config
    embedding: Floats
    layers: Mapping[str, Sequence[Any]]
    norm: Floats
    classifier: Matrix
    rest: int


class _Cursor:
    def __init__(self, content: bytes, position: int) -> None:
        self.content, self.position = content, position

    def take(self, dtype: str, *shape: int) -> NDArray[Any]:
        count = int(np.prod(shape))
        found = np.frombuffer(self.content, dtype, count, self.position)
        self.position += found.nbytes
        return found.reshape(shape)


def read_run_c(content: bytes) -> Reader:
    """As run.c's read_checkpoint and memory_map_weights."""
    dim, hidden, n, heads, kv_heads, vocab, max_seq_len = struct.unpack_from("<7i", content)
    config = Config(dim, hidden, n, heads, kv_heads, abs(vocab), max_seq_len)
    cursor = _Cursor(content, 28)
    layers: dict[str, list[Any]] = {}
    shapes = config.shapes()
    embedding = cursor.take("<f4", config.vocab_size, dim)
    layers["attention_norm"] = [cursor.take("<f4", dim) for _ in range(n)]
    for name in ("wq", "wk", "wv", "wo"):
        layers[name] = [FloatMatrix(cursor.take("<f4", *shapes[name])) for _ in range(n)]
    layers["ffn_norm"] = [cursor.take("<f4", dim) for _ in range(n)]
    for name in ("w1", "w2", "w3"):
        layers[name] = [FloatMatrix(cursor.take("<f4", *shapes[name])) for _ in range(n)]
    norm = cursor.take("<f4", dim)
    cursor.position += 2 * 4 * max_seq_len * config.head_size // 2  # the frequency tables
    classifier = embedding if vocab > 0 else cursor.take("<f4", config.vocab_size, dim)
    rest = len(content) - cursor.position
    return Reader(config, embedding, layers, norm, FloatMatrix(classifier), rest)


def read_runq_c(content: bytes) -> Reader:
    """As runq.c's read_checkpoint and memory_map_weights."""
    magic, version, *integers = struct.unpack_from("<Ii7i", content)
    assert (magic, version) == (0x616B3432, 2)
    shared, group = content[36], struct.unpack_from("<i", content, 37)[0]
    config = Config(*integers)
    cursor = _Cursor(content, 256)
    layers: dict[str, list[Any]] = {}
    n, dim, shapes = config.n_layers, config.dim, config.shapes()
    for name in ("attention_norm", "ffn_norm"):
        layers[name] = [cursor.take("<f4", dim) for _ in range(n)]
    norm = cursor.take("<f4", dim)

    def quantized(rows: int, columns: int) -> Q80Matrix:
        codes = cursor.take("i1", rows, columns)
        return Q80Matrix(codes, cursor.take("<f4", rows, columns // group))

    embedding = quantized(config.vocab_size, dim)
    for name in MATRICES:
        layers[name] = [quantized(*shapes[name]) for _ in range(n)]
    classifier = embedding if shared else quantized(config.vocab_size, dim)
    rest = len(content) - cursor.position
    return Reader(config, embedding.values, layers, norm, classifier, rest)


class Session:
    """A reader's forward pass, one token after another."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self.caches: list[tuple[list[Floats], list[Floats]]] = [
            ([], []) for _ in range(reader.config.n_layers)
        ]

    def forward(self, token: int) -> Floats:
        """Logits after `token`."""
        reader, layers = self.reader, self.reader.layers
        x = reader.embedding[token].copy()
        for i in range(reader.config.n_layers):
            x = x + self._attention(i, _rmsnorm(x, layers["attention_norm"][i]))
            h = _rmsnorm(x, layers["ffn_norm"][i])
            gate = layers["w1"][i].times(h)
            gate = gate / (1 + np.exp(-gate)) * layers["w3"][i].times(h)
            x = x + layers["w2"][i].times(gate)
        return reader.classifier.times(_rmsnorm(x, reader.norm))

    def _attention(self, i: int, x: Floats) -> Floats:
        config, layers = self.reader.config, self.reader.layers
        keys, values = self.caches[i]
        position = len(keys)
        q = _rotated(layers["wq"][i].times(x), position, config.head_size)
        keys.append(_rotated(layers["wk"][i].times(x), position, config.head_size))
        values.append(layers["wv"][i].times(x))
        heads = []
        for head in range(config.n_heads):
            kv = head // (config.n_heads // config.n_kv_heads) * config.head_size
            part = slice(kv, kv + config.head_size)
            query = q[head * config.head_size : (head + 1) * config.head_size]
            scores = np.stack([key[part] @ query for key in keys]) / np.sqrt(config.head_size)
            weights = np.exp(scores - scores.max())
            weights /= weights.sum()
            heads.append(weights @ np.stack([value[part] for value in values]))
        wo: Matrix = layers["wo"][i]
        return wo.times(np.concatenate(heads).astype(np.float32))


def _rmsnorm(x: Floats, weight: Floats) -> Floats:
    normed: Floats = (x / np.sqrt(np.mean(x * x) + EPS) * weight).astype(np.float32)
    return normed


def _rotated(x: Floats, position: int, head_size: int) -> Floats:
    """Neighbours rotate together."""
    frequencies = 10000.0 ** -(np.arange(0, head_size, 2) / head_size)
    turn = np.exp(1j * position * frequencies)
    pairs = x.astype(np.float32).view(np.complex64).reshape(-1, head_size // 2)
    turned: Floats = (pairs * turn).astype(np.complex64).reshape(-1).view(np.float32)
    return turned


class Tokenizer:
    """As run.c's build_tokenizer, encode and decode, for a model of `size` tokens."""

    def __init__(self, content: bytes, size: int) -> None:
        (self.longest,) = struct.unpack_from("<i", content)
        position = 4
        self.texts: list[bytes] = []
        self.scores: list[float] = []
        for _ in range(size):
            score, length = struct.unpack_from("<fi", content, position)
            assert 0 < length <= self.longest, "fread of nothing, or more than was announced"
            raw = content[position + 8 : position + 8 + length]
            self.texts.append(raw.partition(b"\0")[0])
            self.scores.append(score)
            position += 8 + length
        self.rest = len(content) - position
        self.lookup = {text: token for token, text in reversed(list(enumerate(self.texts)))}

    def encode(self, text: str) -> list[int]:
        """The tokens of a prompt: token 1, a space, characters or their bytes, then joined."""
        tokens = [1, self.lookup[b" "]] if text else [1]
        for char in text:
            raw = char.encode()
            tokens += [self.lookup[raw]] if raw in self.lookup else [byte + 3 for byte in raw]
        while True:
            best, found = -1e10, None
            for i, (left, right) in enumerate(pairwise(tokens)):
                token = self.lookup.get(self.texts[left] + self.texts[right])
                if token is not None and self.scores[token] > best:
                    best, found = self.scores[token], (i, token)
            if found is None:
                return tokens
            i, token = found
            tokens[i : i + 2] = [token]

    def decode(self, tokens: Sequence[int]) -> bytes:
        """What is printed for tokens that follow each other; the first one is not printed."""
        printed = b""
        for before, token in pairwise(tokens):
            text = self.texts[token]
            if before == 1 and text.startswith(b" "):
                text = text[1:]
            if text.startswith(b"<0x") and text.endswith(b">") and len(text) == 6:
                text = bytes([int(text[3:5], 16)])
            unprintable = len(text) == 1 and not (32 <= text[0] < 127 or 9 <= text[0] <= 13)
            printed += b"" if unprintable else text
        return printed
