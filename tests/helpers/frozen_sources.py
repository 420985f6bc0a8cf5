"""Sources whose bytes no package decides: the same from any version of numpy or safetensors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.helpers.checkpoints import write_raw

FIXTURES = Path(__file__).parent.parent.parent / "fixtures"
# How numpy holds each dtype; bfloat16 as its bits.
DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I8": "<i1"}
Shapes = dict[str, tuple[int, ...]]
RECIPES = {
    "reindex.toml": 'steps = [{use = "reindex", max_shard_size = "1MB"}]',
    "quantize.toml": (
        'steps = [{use = "reindex"}, {use = "quantize", scheme = "W4A16_ASYM"},'
        ' {use = "reindex", max_shard_size = "300KB"}]'
    ),
    "fuse-quantize.toml": (
        'steps = [{use = "fuse-norms"}, {use = "quantize", scheme = "FP8_BLOCK", block = [64, 32]}]'
    ),
    "equalize.toml": 'steps = [{use = "equalize"}, {use = "quantize", scheme = "W4A16"}]',
    "rotate.toml": 'steps = [{use = "rotate"}, {use = "quantize", scheme = "W8A8"}]',
    "export.toml": 'steps = [{use = "fuse-norms"}, {use = "export-bin", version = 1}]',
    "config.json": json.dumps(
        {
            "config_groups": {
                "some": {
                    "targets": ["re:.*mlp.*"],
                    "weights": {
                        "num_bits": 4,
                        "type": "int",
                        "strategy": "group",
                        "group_size": 64,
                    },
                }
            },
            "ignore": ["lm_head"],
        }
    ),
}


def make_sources(folder: Path) -> dict[str, Path]:
    """Make the sources that are not in `fixtures`, and files that options name, in an empty folder.

    Returns:
        Every source by its name, and the folder as `here`.
    """
    found = {"here": folder, "pylm": FIXTURES / "pylm", "golden": FIXTURES / "golden" / "input"}
    for name, (config, dtype, shapes) in _models().items():
        found[name] = _save(folder / name, config, dtype, shapes)
    scales = {"self_attn": 0.5, "mlp": 2.0}  # members of a fused set share theirs
    for kind in ("input_scale", "input_global_scale"):
        tensors = {
            f"model.layers.{n}.{module}.{kind}": np.array([scales[module.partition(".")[0]]], "<f4")
            for n in (0, 1)
            for module in _odd()
        }
        _write(folder / f"{kind}.safetensors", tensors, "F32")
    for name, text in RECIPES.items():
        (folder / name).write_text(text)
    return found


def _models() -> dict[str, tuple[dict[str, Any], str, Shapes]]:
    """The models that are made: config.json, dtype, and shapes by tensor name."""
    sizes = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    sizes |= {"num_hidden_layers": 2, "intermediate_size": 96, "vocab_size": 50}
    tied = {**sizes, "model_type": "qwen2", "tie_word_embeddings": True}
    centred = {**sizes, "model_type": "starcoder2", "use_bias": True, "tie_word_embeddings": False}
    edges = {**sizes, "model_type": "llama", "hidden_size": 256}
    experts = {**sizes, "model_type": "qwen3_moe", "hidden_size": 128, "num_hidden_layers": 1}
    experts |= {"moe_intermediate_size": 32, "num_experts": 4}
    ends: Shapes = {"model.embed_tokens.weight": (50, 64), "model.norm.weight": (64,)}
    return {
        "tied": (tied, "F32", {**ends, **_layers(2, _llama(64, 96), biased=("q", "k", "v"))}),
        "centred": (
            centred,
            "BF16",
            {
                **ends,
                "lm_head.weight": (50, 64),
                "model.norm.bias": (64,),
                **_layers(2, _starcoder(64, 96), biased=("q", "k", "v", "o", "c", "input", "post")),
            },
        ),
        "edges": (edges, "F16", _layers(2, _odd())),
        "experts": (experts, "BF16", _layers(1, _experts(128, 32, 4))),
    }


def _layers(
    count: int, modules: Mapping[str, tuple[int, ...]], biased: tuple[str, ...] = ()
) -> Shapes:
    """Names and shapes of `count` layers; modules whose last name begins so have a bias, too."""
    found: Shapes = {}
    for n in range(count):
        for module, shape in modules.items():
            leaf = module.rpartition(".")[2]
            packed = len(shape) == 3
            found[f"model.layers.{n}.{module}" + ("" if packed else ".weight")] = shape
            if leaf.partition("_")[0] in biased:
                found[f"model.layers.{n}.{module}.bias"] = shape[:1]
    return found


def _llama(hidden: int, inner: int) -> Shapes:
    return {
        **_attention(hidden),
        **{f"mlp.{name}_proj": (inner, hidden) for name in ("gate", "up")},
        "mlp.down_proj": (hidden, inner),
        **_norms(hidden),
    }


def _attention(hidden: int) -> Shapes:
    rows = {"q": hidden, "k": hidden // 2, "v": hidden // 2, "o": hidden}
    return {f"self_attn.{role}_proj": (count, hidden) for role, count in rows.items()}


def _norms(hidden: int) -> Shapes:
    return {f"{name}_layernorm": (hidden,) for name in ("input", "post_attention")}


def _starcoder(hidden: int, inner: int) -> Shapes:
    mlp: Shapes = {"mlp.c_fc": (inner, hidden), "mlp.c_proj": (hidden, inner)}
    return {**_attention(hidden), **mlp, **_norms(hidden)}


def _odd() -> Shapes:
    """Numbers of rows that no tile and no packed word divides."""
    rows = {"q": 72, "k": 35, "v": 35, "o": 40}
    found: Shapes = {f"self_attn.{role}_proj": (count, 256) for role, count in rows.items()}
    found |= {f"mlp.{name}_proj": (66, 256) for name in ("gate", "up")}
    return {**found, "mlp.down_proj": (30, 384)}


def _experts(hidden: int, inner: int, count: int) -> Shapes:
    packed: Shapes = {"mlp.experts.gate_up_proj": (count, 2 * inner, hidden)}
    packed["mlp.experts.down_proj"] = (count, hidden, inner)
    return {**_attention(hidden), "mlp.gate": (count, hidden), **packed}


def _save(folder: Path, config: Mapping[str, Any], dtype: str, shapes: Shapes) -> Path:
    """Write a checkpoint in three shards, so that fused sets lie apart."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    weight_map: dict[str, str] = {}
    for n in range(3):
        shard = f"model-{n + 1:05d}-of-00003.safetensors"
        names = list(shapes)[n::3]
        weight_map |= dict.fromkeys(names, shard)
        _write(folder / shard, {name: _values(name, shapes[name], dtype) for name in names}, dtype)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def _write(path: Path, tensors: Mapping[str, NDArray[Any]], dtype: str) -> Path:
    """Write a safetensors file whose bytes depend on no package's layout."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, values in tensors.items():
        offsets = [len(data), len(data) + values.nbytes]
        header[name] = {"dtype": dtype, "shape": values.shape, "data_offsets": offsets}
        data += values.tobytes()
    raw = json.dumps(header).encode()
    return write_raw(path, raw + b" " * (-len(raw) % 8), data)


def _values(name: str, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
    """Values that any version of numpy makes alike: gains around one, weights around zero.

    Rows of float16 matrices are the edges of number formats: zeros of both signs, subnormal and
    large numbers, one sign, one value, and values halfway between the points of a grid.
    """
    size = int(np.prod(shape))
    uniform = np.frombuffer(fixed_bytes(name, 4 * size), "<u4").reshape(shape) / 2.0**31 - 1.0
    values = 1.5 + uniform if name.endswith("norm.weight") else uniform * uniform * uniform
    if dtype == "F16" and len(shape) == 2:
        values[0], values[1] = 0.0, -0.0
        values[2] *= 2.0**-20
        values[3] *= 2.0**15
        values[4] = np.abs(values[4])
        values[5] = 0.375
        values[6] = (np.arange(shape[1]) % 16 - 7.5) / 64
        values[7, :128] = 0.0
    if dtype == "BF16":
        return (values.astype("<f4").view("<u4") >> 16).astype("<u2")
    return values.astype(DTYPES[dtype])


def fixed_bytes(seed: str, count: int) -> bytes:
    """`count` bytes that look random, always the same for a seed."""
    return hashlib.shake_128(seed.encode()).digest(count)
