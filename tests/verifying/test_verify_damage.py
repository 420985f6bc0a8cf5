"""Every kind of damage is found, with a message of its own, and nothing else is reported."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ctcli.storage.opening import open_checkpoint
from tests.conftest import ROOT
from tests.helpers.quantizing import run_quantize
from tests.helpers.verifying import (
    INDEX,
    Damage,
    both,
    change_beside,
    copy_of,
    drop,
    edit,
    edit_bytes,
    edit_config,
    edit_index,
    flip,
    lines,
    reindexed,
    rewrite_shard,
    run_verify,
    shard_of,
)

GOLDEN = ROOT / "fixtures" / "golden" / "input"
Q, K, V = (f"model.layers.1.self_attn.{role}_proj" for role in "qkv")
QKV = "model.layers.1.self_attn.{q_proj,k_proj,v_proj}"
DOWN = "model.layers.0.mlp.down_proj"
NORM, EMBEDDING = "model.norm.weight", "model.embed_tokens.weight"
SHARDS = [f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]
Make = Callable[..., Path]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Makes the golden checkpoint in a scheme, each once."""

    @cache
    def made(scheme: str) -> Path:
        folder = tmp_path_factory.mktemp(scheme) / "made"
        run_quantize(GOLDEN, folder, scheme)
        return folder

    return made


def add(name: str, tensor: Tensor, beside: str = NORM) -> Damage:
    """Put a tensor into the shard of another one and into the index."""
    return both(
        lambda folder: change_beside(folder, beside, lambda t: t.update({name: tensor})), reindexed
    )


def fill(name: str, index: tuple[int, ...], value: float) -> Damage:
    def change(tensor: Tensor) -> None:
        tensor[index] = value

    return edit(name, change)


def cast(name: str, dtype: torch.dtype) -> Damage:
    return both(edit(name, lambda tensor: tensor.to(dtype)), reindexed)


def at(path: str, value: Any) -> Damage:
    """Set a key of config.json, given as a dotted path; DELETE takes it out."""

    def change(config: dict[str, Any]) -> None:
        *parents, last = path.split("/")
        for key in parents:
            config = config[key]
        if value is DELETE:
            del config[last]
        else:
            config[last] = value

    return edit_config(change)


DELETE = object()
GROUPS = "quantization_config/config_groups"


def unquantize(module: str) -> Damage:
    """Put the source's weight in the place of what stands for it."""
    weight = dict(open_checkpoint(str(GOLDEN)).tensors())[f"{module}.weight"]

    def change(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if name.startswith(f"{module}.")]:
            del tensors[name]
        tensors[f"{module}.weight"] = torch.zeros(weight.spec.shape, dtype=torch.bfloat16)

    def damage(folder: Path) -> None:
        rewrite_shard(folder, shard_of(folder, f"{module}.weight_scale"), change)
        reindexed(folder)

    return damage


def ignore(module: str) -> Damage:
    return edit_config(lambda config: config["quantization_config"]["ignore"].append(module))


def remove(name: str) -> Damage:
    return lambda folder: (folder / name).unlink()


# Name -> scheme, damage, and what every line of the report has to match, in any order.
FILES: dict[str, tuple[str, Damage, list[str]]] = {
    "truncated shard": (
        "W4A16",
        edit_bytes(SHARDS[1], lambda content: content[:-100]),
        [rf"file {SHARDS[1]}: its tensors end at byte \d+, its data at \d+: truncated"],
    ),
    "truncated header": (
        "W4A16",
        edit_bytes(SHARDS[1], lambda content: content[:20]),
        [rf"file {SHARDS[1]}: its header claims .* but the file has 20: truncated"],
    ),
    "empty shard": (
        "W4A16",
        edit_bytes(SHARDS[1], lambda _: b""),
        [rf"file {SHARDS[1]}: only 0 bytes long"],
    ),
    "missing shard": (
        "W4A16",
        remove(SHARDS[1]),
        [rf"index {SHARDS[1]}: the index names it, and it is not there"],
    ),
    "half-written output": (
        "W4A16",
        lambda folder: folder.with_name(f".{folder.name}.ctcli-partial").mkdir(),
        [r"file \.damaged\.ctcli-partial: a run that makes this checkpoint has not finished"],
    ),
    "unfinished download": (
        "W4A16",
        edit_bytes("model.safetensors.incomplete", lambda _: b"x"),
        [r"file model.safetensors.incomplete: it is named like an unfinished download"],
    ),
    "empty file": (
        "W4A16",
        edit_bytes("tokenizer.model", lambda _: b""),
        [r"file tokenizer.model: it is empty"],
    ),
    "stray shard": (
        "W4A16",
        lambda folder: shutil.copy(folder / SHARDS[0], folder / "consolidated.safetensors"),
        [r"file consolidated.safetensors: a stray"],
    ),
    "stray weights": (
        "W4A16",
        edit_bytes("pytorch_model.bin", lambda _: b"x"),
        [r"file pytorch_model.bin: a stray: weights in another format"],
    ),
    "stale index": (
        "W4A16",
        edit_index(lambda index: index["weight_map"].update({"model.old.weight": SHARDS[0]})),
        [rf"index model.old.weight: {INDEX} puts it into {SHARDS[0]}, which does not hold it"],
    ),
    "moved tensor": (
        "W4A16",
        edit_index(lambda index: index["weight_map"].update({EMBEDDING: SHARDS[2]})),
        [
            rf"index {EMBEDDING}: {INDEX} puts it into {SHARDS[2]}, which does not hold it",
            rf"index {EMBEDDING}: {SHARDS[0]} holds it, and {INDEX} does not say so",
        ],
    ),
    "forgotten tensor": (
        "W4A16",
        edit_index(lambda index: index["weight_map"].pop(NORM) and None),
        [rf"index {NORM}: {SHARDS[1]} holds it, and {INDEX} does not say so"],
    ),
    "wrong total_size": (
        "W4A16",
        edit_index(lambda index: index["metadata"].update(total_size=0)),
        [rf"index {INDEX}: its total_size is 0, and the tensors have \d+ bytes"],
    ),
    "broken index": (
        "W4A16",
        edit_bytes(INDEX, lambda content: content[:-9]),
        [rf"index {INDEX}: no index: .*line"],
    ),
    "no index": (
        "W4A16",
        remove(INDEX),
        [rf"index {SHARDS[0]}: it has no index, and loaders look for its name in one"],
    ),
    "a shard too few": (
        "W4A16",
        both(remove(SHARDS[2]), reindexed),
        [
            rf"file {SHARDS[0]}: the name says that there are 3 such files, and there are 2",
            r"shape config.json: model.layers.1: this layer has no MLP that its family could have",
        ],
    ),
    "tensor in two shards": (
        "W4A16",
        lambda folder: rewrite_shard(
            folder, SHARDS[0], lambda tensors: tensors.update({NORM: torch.ones(256).bfloat16()})
        ),
        [
            rf"file {NORM}: it lies both in {SHARDS[0]} and in {SHARDS[1]}",
            rf"index {NORM}: {SHARDS[0]} holds it, and {INDEX} does not say so",
        ],
    ),
    "broken config": (
        "W4A16",
        edit_bytes("config.json", lambda content: content[:-3]),
        [
            r"config config.json: it is not JSON",
            r"config config.json: it has no quantization_config, but there are tensors of compr",
        ],
    ),
    "duplicate key in config": (
        "W4A16",
        edit_bytes("config.json", lambda content: content.replace(b"{", b'{"vocab_size": 7,', 1)),
        [
            r"config config.json: it is not JSON: the key 'vocab_size' appears twice",
            r"config config.json: it has no quantization_config, but there are tensors of compr",
        ],
    ),
    "missing config": (
        "W4A16",
        remove("config.json"),
        [
            r"config config.json: it is not there",
            r"config config.json: it has no quantization_config, but there are tensors of compr",
        ],
    ),
    "broken tokenizer": (
        "W4A16",
        edit_bytes("tokenizer.json", lambda _: b'{"model": {'),
        [r"config tokenizer.json: it is not JSON"],
    ),
    "broken recipe": (
        "W4A16",
        edit_bytes("ctcli_recipe.toml", lambda content: content + b"[[steps"),
        [r"config ctcli_recipe.toml: it is not TOML"],
    ),
}
TENSORS: dict[str, tuple[str, Damage, list[str]]] = {
    "missing weight_scale": (
        "W4A16",
        drop(f"{Q}.weight_scale"),
        [rf"scheme {Q}.weight_scale: it is missing, and pack-quantized of INT4 .* demands it"],
    ),
    "missing weight_packed": (
        "W4A16",
        drop(f"{Q}.weight_packed"),
        [rf"scheme {Q}: it has no weight that INT4 .* could stand for"],
    ),
    "missing weight_shape": (
        "W4A16",
        drop(f"{Q}.weight_shape"),
        [rf"scheme {Q}.weight_shape: it is missing"],
    ),
    "missing zero point": (
        "W4A16_ASYM",
        drop(f"{Q}.weight_zero_point"),
        [rf"scheme {Q}.weight_zero_point: it is missing, .* asymmetric demands it"],
    ),
    "missing global scale": (
        "NVFP4A16",
        drop(f"{Q}.weight_global_scale"),
        [rf"scheme {Q}.weight_global_scale: it is missing"],
    ),
    "missing norm": ("W4A16", drop(NORM), [rf"shape config.json: {NORM} is missing"]),
    "extra zero point": (
        "W4A16",
        add(f"{Q}.weight_zero_point", torch.zeros(8, 2, dtype=torch.int32), f"{Q}.weight_scale"),
        [rf"scheme {Q}.weight_zero_point: it is extra: pack-quantized of INT4 .* has no such"],
    ),
    "extra tensor": (
        "W4A16",
        add("model.layers.0.mlp.gate.weight_map", torch.ones(4)),
        [r"shape config.json: model.layers.0.mlp.gate.weight_map: no part of the model is known"],
    ),
    "extra cache scale": (
        "W4A16",
        add("model.layers.0.self_attn.k_scale", torch.ones(1)),
        [r"scheme model.layers.0.self_attn.k_scale: it is extra: config.json has no kv_cache_sch"],
    ),
    "wrong dtype of a scale": (
        "W4A16",
        cast(f"{Q}.weight_scale", torch.int8),
        [rf"scheme {Q}.weight_scale: it is I8, and pack-quantized of INT4 .* demands BF16"],
    ),
    "wrong dtype of codes": (
        "FP8_DYNAMIC",
        both(edit(f"{Q}.weight", lambda tensor: tensor.view(torch.int8)), reindexed),
        [rf"scheme {Q}.weight: it is I8, and float-quantized of FP8 by channel demands F8_E4M3"],
    ),
    "wrong shape of a scale": (
        "FP8_DYNAMIC",
        both(edit(f"{Q}.weight_scale", lambda tensor: tensor[:, 0]), reindexed),
        [rf"scheme {Q}.weight_scale: its shape is \[256\], and .* demands \[256, 1\]"],
    ),
    "wrong weight_shape": (
        "W4A16",
        edit(f"{Q}.weight_shape", lambda tensor: tensor.flip(0) + 8),
        [rf"scheme {Q}.weight_shape: it says \[264, 264\], and the weight is \[256, 256\]"],
    ),
    "wrong width": (
        "W4A16",
        both(edit(NORM, lambda tensor: tensor[:128]), reindexed),
        [rf"shape config.json: {NORM} has the shape \[128\], not \[256\]"],
    ),
    "wrong vocabulary": (
        "W4A16",
        at("vocab_size", 321),
        [rf"shape {EMBEDDING}: it has 320 rows, and vocab_size is 321"],
    ),
    "wrong intermediate size": (
        "W4A16",
        at("intermediate_size", 256),
        [
            rf"shape model.layers.{n}.mlp.down_proj.weight: it has 512 columns, .* 256"
            for n in (0, 1)
        ],
    ),
    "ignored q beside a quantized k": (
        "W4A16",
        both(unquantize(Q), ignore(Q)),
        [
            rf"scheme {re.escape(QKV)}: its members are not quantized alike: q_proj left alone, "
            "k_proj W4A16, v_proj W4A16"
        ],
    ),
    "quantized, but ignored": (
        "W4A16",
        both(*(ignore(module) for module in (Q, K, V))),
        [
            rf"scheme {module}: it has weight_packed, weight_scale, weight_shape, but config.json "
            "leaves"
            for module in (Q, K, V)
        ],
    ),
    "neither quantized nor ignored": (
        "W4A16",
        unquantize(DOWN),
        [rf"scheme {DOWN}.weight: it is BF16, but config.json quantizes its module with W4A16"],
    ),
    "head not ignored": (
        "W4A16",
        at("quantization_config/ignore", []),
        [r"scheme lm_head.weight: it is BF16, but config.json quantizes its module with W4A16"],
    ),
    "no declaration": (
        "FP8_DYNAMIC",
        at("quantization_config", DELETE),
        [r"config config.json: it has no quantization_config, but there are tensors of compr"],
    ),
    "wrong format": (
        "W4A16",
        at("quantization_config/format", "int-quantized"),
        [r"config config.json: its format is int-quantized, and that of its groups pack-quantized"],
    ),
    "not compressed": (
        "W4A16",
        at("quantization_config/quantization_status", "frozen"),
        [r"config config.json: its quantization_status is 'frozen'"],
    ),
    "wrong bits": (
        "W4A16",
        at(f"{GROUPS}/W4A16/weights/num_bits", 3),
        [r"scheme .*.weight_packed: its shape is .* and pack-quantized of INT3 .* demands"] * 14,
    ),
    "indivisible groups": (
        "W4A8",
        at(f"{GROUPS}/W4A8/weights/group_size", 96),
        [r"scheme .*_proj: its (256|512) columns are no multiple of the group size 96"] * 14,
    ),
    "a group of nothing": (
        "W4A16",
        edit_config(
            lambda config: config["quantization_config"]["config_groups"].update(
                other={
                    **config["quantization_config"]["config_groups"]["W4A16"],
                    "targets": ["re:.*experts.*"],
                }
            )
        ),
        [r"config config.json: other: it matches no linear"],
    ),
    "a broken pattern": (
        "W4A16",
        at("quantization_config/ignore", ["re:(", "lm_head"]),
        [r"config config.json: 're:\(' is no name and no regular expression"],
    ),
    "unknown arguments": (
        "W4A16",
        at(f"{GROUPS}/W4A16/weights/strategy", "diagonal"),
        [
            r"config config.json: W4A16: no type 'int' with strategy 'diagonal'",
            *[r"scheme .*: it has weight_packed, .* but config.json leaves the module unquantized"]
            * 14,
        ],
    ),
    "cache without scales": (
        "W4A16",
        at("quantization_config/kv_cache_scheme", {"num_bits": 8, "type": "float"}),
        [
            rf"scheme model.layers.{n}.self_attn.{kind}_scale: it is missing, and kv_cache_scheme"
            for n in (0, 1)
            for kind in "kv"
        ],
    ),
    "missing static scale": (
        "W4A16",
        at(f"{GROUPS}/W4A16/input_activations", {"num_bits": 8, "dynamic": False}),
        [r"scheme .*_proj.input_scale: it is missing, and pack-quantized"] * 14,
    ),
    "tied, but a head of its own": (
        "W4A16",
        at("tie_word_embeddings", True),
        [rf"value lm_head.weight: \d+ of its values differ from those of {EMBEDDING}, which tie_w"],
    ),
    "tied, but a head that is not like the embedding": (
        "W4A16",
        both(
            at("tie_word_embeddings", True),
            edit("lm_head.weight", lambda tensor: tensor.float()),
            reindexed,
        ),
        [rf"config lm_head.weight: tie_word_embeddings replaces it by {EMBEDDING}, which is not"],
    ),
    "a number for a pattern": (
        "W4A16",
        at(f"{GROUPS}/W4A16/targets", [7]),
        [r"config config.json: 7 is no name and no regular expression"],
    ),
    "untied, but no head": (
        "W4A16",
        drop("lm_head.weight"),
        [
            r"config config.json: tie_word_embeddings is false, and the head is not stored",
            r"shape config.json: lm_head.weight is missing",
        ],
    ),
}
VALUES: dict[str, tuple[str, Damage, list[str]]] = {
    "NaN scale": (
        "W4A16",
        fill(f"{Q}.weight_scale", (5, 1), torch.nan),
        [rf"value {Q}.weight_scale: 1 of its values are NaN or infinite"],
    ),
    "infinite scale": (
        "FP8_BLOCK",
        fill(f"{Q}.weight_scale", (1, 1), torch.inf),
        [rf"value {Q}.weight_scale: 1 of its values are NaN or infinite"],
    ),
    "zero scale": (
        "W8A8",
        fill(f"{Q}.weight_scale", (7, 0), 0.0),
        [rf"value {Q}.weight_scale: 1 of its values are zero or negative, as no scale is"],
    ),
    "flipped sign of a scale": (
        "W8A8",
        flip(f"{Q}.weight_scale", 9, 15),
        [rf"value {Q}.weight_scale: 1 of its values are zero or negative, as no scale is"],
    ),
    "flipped sign of an E4M3 scale": (
        "NVFP4A16",
        flip(f"{Q}.weight_scale", 9, 7),
        [rf"value {Q}.weight_scale: 1 of its values are zero or negative, as no scale is"],
    ),
    "NaN E4M3 scale": (
        "NVFP4A16",
        edit(f"{Q}.weight_scale", lambda t: t.view(torch.uint8).fill_(0x7F).view(t.dtype)),
        [rf"value {Q}.weight_scale: 4096 of its values are NaN or infinite"],
    ),
    "NaN exponent": (
        "MXFP4A16",
        fill(f"{Q}.weight_scale", (200, 3), 255),
        [rf"value {Q}.weight_scale: 1 of its exponents are 255, which stands for NaN"],
    ),
    "NaN code": (
        "FP8_DYNAMIC",
        edit(
            f"{Q}.weight", lambda t: t.view(torch.uint8).index_fill_(1, _i(3), 0xFF).view(t.dtype)
        ),
        [rf"value {Q}.weight: 256 of its codes are NaN"],
    ),
    "code out of range": (
        "W4A8",
        fill(f"{Q}.weight", (3, 3), 8),
        [rf"value {Q}.weight: 1 of its values are outside -8\.\.7"],
    ),
    "NaN global scale": (
        "NVFP4A16",
        both(*(fill(f"{m}.weight_global_scale", (0,), torch.nan) for m in (Q, K, V))),
        [rf"value {m}.weight_global_scale: 1 of its values are NaN or infinite" for m in (Q, K, V)],
    ),
    "unequal global scales": (
        "NVFP4A16",
        edit(f"{K}.weight_global_scale", lambda tensor: tensor * 2),
        [rf"value {re.escape(QKV)}: its members have different weight_global_scale: q_proj"],
    ),
    "NaN in a norm": (
        "W4A16",
        fill(NORM, (17,), torch.nan),
        [rf"value {NORM}: 1 of its values are NaN or infinite"],
    ),
    "infinities in the embedding": (
        "W4A16",
        fill(EMBEDDING, (319,), -torch.inf),
        [rf"value {EMBEDDING}: 256 of its values are NaN or infinite"],
    ),
}
ALL = {**FILES, **TENSORS, **VALUES}


def _i(*values: int) -> Tensor:
    return torch.tensor(values)


def assert_found(found: list[str], expected: list[str]) -> None:
    """Every line is expected, and everything expected is there.

    Several of a kind may be found where an expectation is given several times.
    """
    unmatched = [e for e in expected if not any(re.match(e, line) for line in found)]
    surplus = [line for line in found if not any(re.match(e, line) for e in expected)]
    assert (unmatched, surplus) == ([], [])


@pytest.mark.parametrize("name", ALL)
def test_damage_is_found(name: str, make: Make, tmp_path: Path) -> None:
    scheme, damage, expected = ALL[name]
    folder = copy_of(make(scheme), tmp_path)
    damage(folder)
    found = lines(run_verify(folder))
    assert_found(found, expected)
    if len(set(expected)) == len(expected):
        assert len(found) == len(expected)
