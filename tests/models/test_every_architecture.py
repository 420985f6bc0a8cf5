"""Records of model types, proved by arithmetic: a sample always, all of them in the sweep."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoModelForImageTextToText

from ctcli.errors import CtcliError
from ctcli.models.architecture import Operation
from ctcli.models.families import FAMILIES, WITHOUT_RECORD, family_of
from ctcli.models.records.decoders import TEXT_ROWS
from ctcli.models.table import COMMANDS, refusals_of, rows
from tests.helpers.architectures import CHAINS, proof, proof_of, saved
from tests.helpers.every_model import SIZES, TYPES
from tests.helpers.tiny_models import tokens

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script")  # of transformers' modules
# At least one for each thing that a record can say.
SAMPLE = (
    *("bamba", "bitnet", "bloom", "codegen", "dbrx", "deepseek_v32", "falcon"),
    *("gemma3n_text", "gemma4_text"),
    *("gpt2", "gpt_bigcode", "gpt_neox", "gpt_oss", "granitemoe", "jamba", "jetmoe"),
    *(
        "kimi_linear",
        "longcat_flash",
        "mimo_v2_flash",
        "nemotron_h",
        "olmo_hybrid",
        "phi",
        "qwen3_next",
    ),
)
# Kinds of one type that its config tells apart.
KINDS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "bloom_normed_residual": ("bloom", {"apply_residual_connection_post_layernorm": True}),
    "falcon_40b": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon_11b": (
        "falcon",
        {"new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1},
    ),
    "falcon_rw": (
        "falcon",
        {"multi_query": False, "parallel_attn": False, "alibi": True, "bias": True},
    ),
    "falcon_serial": ("falcon", {"parallel_attn": False}),
    "gpt_bigcode_heads": ("gpt_bigcode", {"multi_query": False}),
    "hyperclovax_post_norms": ("hyperclovax", {"use_post_norm": True}),
    "gemma4_values_of_others": (
        "gemma4_text",
        {
            "num_hidden_layers": 4,
            "num_kv_shared_layers": 2,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
        },
    ),
    "gemma4_keys_for_values": ("gemma4_text", {"attention_k_eq_v": True}),
    "nemotron_h_latent": ("nemotron_h", {"moe_latent_size": 32}),
    "stablelm_parallel": ("stablelm", {"use_parallel_residual": True}),
}
_VISION: Mapping[str, Any] = {
    **dict.fromkeys(("hidden_size", "embed_dim", "intermediate_size", "image_size"), 16),
    "depth": 1,
    "num_heads": 2,
    "out_hidden_size": 64,
    "patch_size": 4,
    "num_position_embeddings": 16,
    "deepstack_visual_indexes": [0],
}


def check(name: str, found: Mapping[str, str], refused: Collection[Operation]) -> None:
    assert not [each for each in found.values() if each.startswith(("WRONG", "unknown"))], name
    for chain, operations in CHAINS.items():
        is_refused = any(operation in refused for operation in operations)
        assert found[chain].startswith("refused") == is_refused, (name, chain, found[chain])


def test_every_type_has_a_record_or_a_reason() -> None:
    assert {*TYPES} | {*TEXT_ROWS} == {*FAMILIES} | {*WITHOUT_RECORD}


def test_why_a_type_has_no_record_is_told() -> None:
    for name, why in WITHOUT_RECORD.items():
        with pytest.raises(CtcliError) as refusal:
            family_of({"model_type": name})
        assert refusal.value.problems[0].endswith(f"{name!r} it is not known what is exact: {why}.")


@pytest.mark.parametrize("model_type", sorted({*FAMILIES}))
def test_defaults_are_those_of_the_models_class(model_type: str) -> None:
    family, default = FAMILIES[model_type], CONFIG_MAPPING[model_type]().to_dict()
    assert family.tied == bool(default.get("tie_word_embeddings"))
    attention, size = family.attention, default.get("head_dim")
    if size and attention and attention.layout != "latent" and not attention.size_of:
        derived = default["hidden_size"] // default["num_attention_heads"]
        assert (family.head_dim or derived) == size
    for switch in (family.bias_switch, family.affine_switch):
        assert switch is None or default[switch] is True
    for key, value, _ in family.variants:
        assert default.get(key) != value


@pytest.mark.parametrize("model_type", SAMPLE)
def test_records_are_exact(model_type: str, tmp_path: Path) -> None:
    found = proof(model_type, tmp_path, tied=FAMILIES[model_type].tied)
    check(model_type, found, refusals_of(FAMILIES[model_type]))


@pytest.mark.parametrize("name", KINDS)
def test_kinds_of_a_type_are_exact(name: str, tmp_path: Path) -> None:
    model_type, more = KINDS[name]
    found = proof(model_type, tmp_path, **more)
    assert not [each for each in found.values() if each.startswith(("WRONG", "unknown"))], found


def answer_to_an_image(model: Any) -> Tensor:
    """Logits, [1, 12, vocabulary], of tokens with an image of 4 x 4 patches among them."""
    ids, vision = tokens()[:1].clone(), model.config.vision_config
    ids[0, 3:7] = model.config.image_token_id
    size = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    pixels = torch.randn(16, size, generator=torch.Generator().manual_seed(6))
    kinds = (ids == model.config.image_token_id).long()
    grid = torch.tensor([[1, 4, 4]])
    with torch.no_grad():
        found: Tensor = model(
            input_ids=ids, pixel_values=pixels, image_grid_thw=grid, mm_token_type_ids=kinds
        ).logits
    return found


@pytest.mark.parametrize("model_type", TEXT_ROWS)
def test_language_models_of_several_modalities_are_exact(model_type: str, tmp_path: Path) -> None:
    whole: Any = CONFIG_MAPPING[model_type.removesuffix("_text")]
    known = whole().to_dict()
    text, vision = (
        {key: value for key, value in sizes.items() if key in known[part]}
        for sizes, part in ((SIZES, "text_config"), (_VISION, "vision_config"))
    )
    if model_type == "qwen2_vl_text":
        vision["hidden_size"] = 64  # of its features
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
    text |= {"hidden_size": 64, "head_dim": 16, "rope_parameters": rope}
    config = whole(
        text_config=text, vision_config=vision, tie_word_embeddings=False, image_token_id=2
    )
    saved(tmp_path / "source", AutoModelForImageTextToText, config)
    found = proof_of(tmp_path, answer_to_an_image)
    check(model_type, found, refusals_of(FAMILIES[model_type]))


# Their other sizes, or halves of their heads, do not go with a width of 72.
ONE_WIDTH = ("bamba", "granitemoehybrid", "helium", "mamba2", "persimmon", "phi", "xlstm")
EVERY = [
    (model_type, tied)
    for model_type in sorted({*FAMILIES} - {*TEXT_ROWS})
    for tied in (False, True)
    if (model_type, tied) != ("dbrx", True)  # which transformers refuses
]


@pytest.mark.sweep
@pytest.mark.parametrize(("model_type", "tied"), EVERY)
def test_every_record_is_exact(model_type: str, tied: bool, tmp_path: Path) -> None:
    hidden = 72 if tied and model_type not in ONE_WIDTH else 64
    found = proof(model_type, tmp_path, tied=tied, hidden=hidden)
    check(model_type, found, refusals_of(FAMILIES[model_type]))


def test_the_table_counts_what_is_exact() -> None:
    exact = [sum(each[i] is None for _, each in rows()) for i in range(len(COMMANDS))]
    assert dict(zip(COMMANDS, exact, strict=True)) == EXACT


EXACT = {"fuse-norms": 119, "rotate R1": 98, "rotate R2": 109, "rotate R4": 104}
