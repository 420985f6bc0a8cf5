"""What loaders take: each rule of `schemes.loaders`; where it can be, transformers is asked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import transformers
from transformers import AutoModelForCausalLM
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as IMAGES,
)

from ctcli.formats.architectures import ARCHITECTURES, VERSIONS, strangers
from ctcli.formats.declared import Declaration, read_declaration
from ctcli.formats.loaders import (
    FORMATS,
    LOADERS,
    Contents,
    capability,
    machine,
    problems,
    scheme_problems,
)
from ctcli.schemes import words
from ctcli.schemes.arguments import QuantizationArgs, Scheme
from ctcli.schemes.presets import PRESETS, preset
from tests.helpers.operating import run_rotate
from tests.helpers.quantizing import KNOWN_PRESETS, run_quantize
from tests.helpers.tiny_models import Models, difference, load, logits, read

GPU, ANY = "a GPU", "any machine"
# What vLLM needs for each preset as ctcli writes it.
MACHINES = {
    **dict.fromkeys(PRESETS, GPU),
    **dict.fromkeys(("FP8_DYNAMIC", "W8A8", "INT8", "W4A16", "W4A16_ASYM", "W4A8"), ANY),
    "FP8_BLOCK": "a GPU, or a CPU with AMX",
    "W4AFP8": "a GPU of compute capability 9.0",
}
# The least compute capability that SGLang needs for linears, and for those of experts.
SGLANG = {
    **dict.fromkeys(KNOWN_PRESETS, (None, None)),
    **dict.fromkeys(("W4A16", "W4A16_ASYM", "W8A16", "NVFP4", "NVFP4A16"), (8.0, 8.0)),
    **dict.fromkeys(("FP8", "FP8_DYNAMIC"), (8.0, 8.9)),
    **dict.fromkeys(("W8A8", "INT8"), (8.0, None)),
    **dict.fromkeys(("MXFP4", "MXFP4A16"), (None, 8.0)),
    "FP8_BLOCK": (8.9, 8.9),
    "W4AFP8": (None, 9.0),
}
# Integers below eight bits with quantized inputs: what compressed-tensors writes by default.
INT_QUANTIZED = ["W2A8", "W3A8", "W5A8", "W6A8", "W7A8", "W2A4", "W3A4", "W4A4", "W4AFP8"]
INT8 = QuantizationArgs(8, "int", "channel")
TOKENS = QuantizationArgs(8, "int", "token", dynamic=True)
ATTENTION = "model.layers.0.self_attn"
EXPERTS = {
    f"model.layers.0.mlp.experts.{e}.{role}_proj": (256, 256)
    for e in range(2)
    for role in ("gate", "up", "down")
}
SHAPES = {f"{ATTENTION}.{role}_proj": (256, 256) for role in "qkvo"}


def declare(groups: Mapping[str, Mapping[str, Any]], **more: Any) -> Declaration:
    """A declaration of `groups`: keys of a group in place of those of the preset of that name."""
    entries = {
        name: {**preset(name.partition("#")[0]).to_config(["Linear"]), **changes}
        for name, changes in groups.items()
    }
    config = {"quant_method": "compressed-tensors", "config_groups": entries, **more}
    found = read_declaration({"quantization_config": config})
    assert found is not None
    return found


def contents(
    declared: Declaration,
    shapes: Mapping[str, tuple[int, ...]] = SHAPES,
    others: Iterable[str] = (),
) -> Contents:
    """Modules of these shapes, quantized where that is declared, and other tensors."""
    names = {f"{module}.weight_scale" for module in shapes if declared.group_of(module)}
    return Contents(declared, shapes, names | {*others})


@pytest.mark.parametrize("name", KNOWN_PRESETS)
def test_loaders_take_presets_as_they_are_written(name: str) -> None:
    found = contents(declare({name: {}}))
    assert [problems(loader, found) for loader in ("vllm", "transformers")] == [[], []]
    assert machine(preset(name)) == MACHINES[name]


@pytest.mark.parametrize("name", KNOWN_PRESETS)
def test_sglang_takes_some_presets_and_others_for_experts_alone(name: str) -> None:
    linears, experts = SGLANG[name]
    in_layers = contents(declare({name: {}}))
    in_experts = contents(declare({name: {}}), EXPERTS)
    for need, found in ((linears, in_layers), (experts, in_experts)):
        text = f"a GPU of compute capability {need}" if need else None
        assert capability(found.uses) == text
        refused = [line for line in problems("sglang", found) if "has no kernel for" in line]
        assert len(refused) == (need is None)


def test_sglang_wants_what_vllm_wants_of_heads_fused_sets_and_experts() -> None:
    head = {"lm_head": (256, 256)}
    fp8 = declare({"FP8_DYNAMIC": {}})
    (problem,) = problems("sglang", contents(fp8, head))
    assert problem == (
        "lm_head: it is quantized, and no target names it; SGLang's heads are no Linear."
    )
    blocks = declare({"FP8_BLOCK": {"targets": ["lm_head"]}})
    assert problems("sglang", contents(blocks, head)) == [
        "lm_head: SGLang takes no scales of blocks for a head."
    ]
    assert problems("vllm", contents(blocks, head)) == []
    mixed = declare({"W4A16": {}}, ignore=[f"{ATTENTION}.q_proj"])
    (problem,) = problems("sglang", contents(mixed))
    assert "SGLang merges its members, but: q_proj left alone" in problem
    kept = declare({"W4A16": {}}, ignore=[next(iter(EXPERTS))])
    assert any(
        "SGLang wants all linears" in line for line in problems("sglang", contents(kept, EXPERTS))
    )


def test_sglang_does_not_rotate_at_run_time() -> None:
    places = [{"targets": ["Linear"], "location": "input"}]
    transforms = {"config_groups": {"R4": {"type": "hadamard", "apply": places}}}
    declared = declare({"W4A16": {}}, transform_config=transforms)
    (problem,) = problems("sglang", contents(declared))
    assert problem.startswith("R4: this rotation is not applied at run time")


@pytest.mark.parametrize("name", INT_QUANTIZED)
def test_vllm_takes_narrow_integers_with_quantized_inputs_packed_only(name: str) -> None:
    scheme = replace(preset(name), format="int-quantized")
    (problem,) = scheme_problems("vllm", scheme)
    assert problem.endswith("int-quantized; it takes them pack-quantized")
    assert scheme_problems("transformers", scheme) == []


@pytest.mark.parametrize(
    ("weights", "inputs", "layout"),
    [
        (replace(INT8, symmetric=False), TOKENS, "int-quantized"),
        (QuantizationArgs(8, "int", "group", 128), TOKENS, "int-quantized"),
        (INT8, None, "int-quantized"),
        (QuantizationArgs(4, "int", "tensor"), None, "pack-quantized"),
        (
            QuantizationArgs(4, "int", "group", 64),
            preset("W4AFP8").input_activations,
            "pack-quantized",
        ),
        (QuantizationArgs(8, "float", "group", 128), None, "naive-quantized"),
        (preset("NVFP4").weights, TOKENS, "nvfp4-pack-quantized"),
        (preset("W4A16").weights, replace(TOKENS, symmetric=False), "pack-quantized"),
        (INT8, replace(TOKENS, num_bits=4), "int-quantized"),
    ],
)
def test_vllm_has_no_kernel(
    weights: QuantizationArgs, inputs: QuantizationArgs | None, layout: str
) -> None:
    scheme = Scheme("by hand", weights, inputs, layout)
    (problem,) = scheme_problems("vllm", scheme)
    assert problem.startswith(f"vLLM has no kernel for {words(weights)}")


def test_vllm_takes_static_and_asymmetric_int8_inputs() -> None:
    static = QuantizationArgs(8, "int", "tensor", symmetric=False)
    assert machine(Scheme("static", INT8, static, "int-quantized")) == ANY
    assert (
        machine(Scheme("dynamic", INT8, replace(TOKENS, symmetric=False), "int-quantized")) == ANY
    )


def test_formats_are_those_that_compressed_tensors_compresses() -> None:
    from compressed_tensors.compressors import BaseCompressor

    known = {str(name).replace("_", "-") for name in BaseCompressor.registered_names()}
    assert {*FORMATS} == known - {"dense"}


def test_a_format_of_old_is_named() -> None:
    declared = declare({"W4A16": {"format": "marlin-24"}})
    (problem,) = problems("transformers", contents(declared))
    assert problem == "W4A16: the format marlin-24 is unknown to compressed-tensors."
    assert problems("vllm", contents(declared)) != []


def test_vllm_wants_fused_members_alike() -> None:
    declared = declare({"W4A16": {}}, ignore=[f"{ATTENTION}.q_proj"])
    (problem,) = problems("vllm", contents(declared))
    assert problem == (
        f"{ATTENTION}.{{q_proj,k_proj,v_proj}}: vLLM merges its members, but: "
        "q_proj left alone, k_proj W4A16, v_proj W4A16."
    )
    assert problems("transformers", contents(declared)) == []
    mixed = declare({"W4A16": {"targets": ["re:.*[qk]_proj$"]}, "W8A16": {}})
    assert "v_proj W8A16" in problems("vllm", contents(mixed))[0]
    # Two groups of one scheme are no difference; nor is a set that is left alone as a whole.
    same = declare({"W4A16": {"targets": ["re:.*[qk]_proj$"]}, "W4A16#2": {}})
    assert problems("vllm", contents(same)) == []
    alone = declare({"W4A16": {}}, ignore=["re:.*[qkv]_proj$"])
    assert problems("vllm", contents(alone)) == []


def test_vllm_wants_merged_rows_to_end_with_a_block() -> None:
    declared = declare({"FP8_BLOCK": {}})
    ragged = {
        f"{ATTENTION}.{role}_proj": (rows, 256)
        for role, rows in zip("qkv", (256, 64, 64), strict=True)
    }
    (problem,) = problems("vllm", contents(declared, ragged))
    assert problem.startswith(f"{ATTENTION}.k_proj: its 64 rows are no multiple of 128")
    # The last one of a set may end anywhere, and so may a linear of its own.
    ragged[f"{ATTENTION}.k_proj"], ragged[f"{ATTENTION}.o_proj"] = (128, 256), (100, 256)
    assert problems("vllm", contents(declared, ragged)) == []


def test_vllm_wants_experts_alike_and_blocks_to_end_with_each() -> None:
    experts = "model.layers.0.mlp.experts"
    sizes = {"gate": (192, 256), "up": (192, 256), "down": (256, 192)}
    shapes = {f"{experts}.{e}.{p}_proj": size for e in range(2) for p, size in sizes.items()}
    assert problems("vllm", contents(declare({"W4A16": {}}), shapes)) == []
    (problem,) = problems(
        "vllm", contents(declare({"W4A16": {}}, ignore=["re:.*down_proj"]), shapes)
    )
    assert problem == f"{experts}: vLLM wants all linears of its experts quantized alike, or none."
    found = problems("vllm", contents(declare({"FP8_BLOCK": {}}), shapes))
    assert [line.partition(":")[0].rpartition(".")[2] for line in found] == [
        *("gate_proj", "up_proj", "gate_proj", "up_proj")
    ]


@pytest.mark.parametrize("targets", [["Linear"], ["re:.*proj$", "lm_head"]])
def test_vllm_finds_a_quantized_head_by_name_only(targets: list[str]) -> None:
    declared = declare({"FP8_DYNAMIC": {"targets": targets}})
    found = contents(declared, {**SHAPES, "lm_head": (512, 256)})
    expected = [] if "lm_head" in targets else ["lm_head"]
    assert [problem.partition(":")[0] for problem in problems("vllm", found)] == expected
    assert problems("transformers", found) == []


def test_vllm_lets_one_group_only_have_the_class() -> None:
    declared = declare({"W4A16": {}, "W8A16": {}})
    (problem,) = problems("vllm", contents(declared))
    assert problem.startswith("W4A16, W8A16: all of them target Linear")


def test_vllm_has_no_place_for_rotations_of_keys_nor_biases_behind_rotated_inputs() -> None:
    declared = declare({"W4A16": {}})
    shapes = {**SHAPES, "model.layers.0.mlp.down_proj": (256, 512)}
    rotation = "model.layers.0.mlp.down_proj.R4_input.weight"
    keys = f"{ATTENTION}.R3_q_attn.weight"
    assert problems("vllm", contents(declared, shapes, [rotation])) == []
    (stop,) = problems("vllm", contents(declared, shapes, [keys]))
    assert stop.startswith(keys)
    bias = "model.layers.0.mlp.down_proj.bias"
    (problem,) = problems("vllm", contents(declared, shapes, [rotation, bias]))
    assert problem.startswith("model.layers.0.mlp.down_proj: ")


def test_vllm_merges_an_indexer_s_keys_unless_they_are_more_than_fp8() -> None:
    indexer = f"{ATTENTION}.indexer"
    shapes = {f"{indexer}.wk": (128, 256), f"{indexer}.weights_proj": (64, 256)}
    ignore = [f"{indexer}.weights_proj"]
    fp8, int4 = (declare({name: {}}, ignore=ignore) for name in ("FP8_DYNAMIC", "W4A16"))
    assert problems("vllm", contents(fp8, shapes)) == []
    assert "wk W4A16" in problems("vllm", contents(int4, shapes))[0]


def test_architectures_are_those_of_transformers() -> None:
    names = {
        name
        for mapping in (CAUSAL, IMAGES)
        for found in mapping.values()
        for name in ([found] if isinstance(found, str) else found)
    }
    assert transformers.__version__.startswith(VERSIONS["transformers"])
    assert names <= ARCHITECTURES["transformers"]


def test_only_an_architecture_that_is_named_is_unknown() -> None:
    assert [*strangers({"architectures": ["LlamaForCausalLM"]}, LOADERS)] == []
    assert [*strangers({}, LOADERS)] == []
    found = [*strangers({"architectures": ["Qwen9ForCausalLM"]}, LOADERS)]
    assert len(found) == len(LOADERS)
    assert found[0] == "Qwen9ForCausalLM: vllm 0.32 has no class of this name for it."


def test_vllm_reads_no_sparse_weights() -> None:
    sparse = declare({"W4A16": {}}, sparsity_config={"format": "sparse-bitmask"})
    assert problems("vllm", contents(sparse))[0].startswith("sparsity_config")
    assert problems("vllm", contents(declare({"W4A16": {}}, sparsity_config={}))) == []


def test_names_come_before_the_class_which_no_embedding_has() -> None:
    targets = {"W8A16": {}, "W4A16": {"targets": [f"{ATTENTION}.o_proj"]}}
    declared = declare(targets, ignore=["re:.*v_proj$"])
    modules = [f"{ATTENTION}.{role}_proj" for role in "qov"] + ["model.embed_tokens"]
    groups = [declared.group_of(module) for module in modules]
    assert [group and group.name for group in groups] == ["W8A16", "W4A16", None, None]
    by_name = declare({"W4A16": {"targets": ["model.embed_tokens"]}})
    assert by_name.group_of("model.embed_tokens") is not None


def test_what_cannot_be_read_is_a_problem_of_the_declaration() -> None:
    declared = declare({"W4A16": {"weights": {"num_bits": 4, "colour": "red"}}, "FP8": {}})
    assert declared.problems == ("config.json: W4A16: unknown keys colour.",)
    assert [group.name for group in declared.groups] == ["FP8"]
    for loader in LOADERS:
        assert problems(loader, contents(declared)) == list(declared.problems)


def test_others_declarations_are_read_with_what_they_leave_out() -> None:
    group = {"targets": "Linear", "weights": {"num_bits": 4, "group_size": 64, "actorder": "group"}}
    config = {"quant_method": "compressed-tensors", "config_groups": {"group_0": group}}
    declared = read_declaration({"text_config": {"quantization_config": config}})
    assert declared is not None
    assert [words(g.scheme.weights) for g in declared.groups] == ["INT4 in groups of 64"]
    assert declared.groups[0].scheme.format == "pack-quantized"
    assert declared.groups[0].targets == ("Linear",)
    by_format = read_declaration({"quantization_config": {**config, "format": "naive-quantized"}})
    assert by_format is not None
    assert by_format.groups[0].scheme.format == "naive-quantized"
    assert read_declaration({"quantization_config": {"quant_method": "gptq"}}) == Declaration(
        "gptq"
    )
    assert read_declaration({"model_type": "llama"}) is None


def stored(folder: Path) -> Contents:
    """What transformers finds in a folder."""
    config, tensors = read(folder)
    declared = read_declaration(config)
    assert declared is not None
    shapes = {
        name.removesuffix(".weight"): tuple(tensor.shape)
        for name, tensor in tensors.items()
        if name.endswith(".weight") and tensor.ndim == 2
    }
    return Contents(declared, shapes, tensors.keys())


@pytest.mark.parametrize(
    ("scheme", "options", "error"),
    [
        # Two layers of noise in three-bit weights; codes taken for values would be far beyond.
        ("W3A16", {}, 1.0),
        ("FP8_DYNAMIC", {"targets": ["lm_head"]}, 0.5),
    ],
)
def test_transformers_loads_what_is_said_to_load(
    tiny: Models, tmp_path: Path, scheme: str, options: dict[str, Any], error: float
) -> None:
    model = tiny("llama", hidden=128)
    run_quantize(model.folder, tmp_path, scheme, on_indivisible="smaller-group", **options)
    assert problems("transformers", stored(tmp_path)) == []
    assert model.error(tmp_path) < error


def test_transformers_cannot_run_a_quantized_embedding(tiny: Models, tmp_path: Path) -> None:
    model = tiny("llama", hidden=128)
    run_quantize(model.folder, tmp_path, "FP8_DYNAMIC", targets=["model.embed_tokens"])
    found = stored(tmp_path)
    for loader in LOADERS:
        (problem,) = problems(loader, found)
        assert problem == "model.embed_tokens: an embedding, and those are not taken quantized."
    with pytest.raises(RuntimeError, match="embedding"):
        model.error(tmp_path)


def test_transformers_does_not_rotate_at_run_time(tiny: Models, tmp_path: Path) -> None:
    model = tiny("llama", hidden=128)
    rotated, quantized = tmp_path / "rotated", tmp_path / "quantized"
    run_rotate(model.folder, rotated, rotations=("R4",), block_size=32)
    (problem,) = problems("transformers", stored(rotated))
    assert problem == "transform_config: rotations without quantization are not loaded."
    with pytest.raises(AttributeError, match="config_groups"):
        load(rotated)
    run_quantize(rotated, quantized, "W8A16", on_indivisible="smaller-group")
    (problem,) = problems("transformers", stored(quantized))
    assert problem.startswith("R4: this rotation is not applied at run time")
    found = AutoModelForCausalLM.from_pretrained(quantized)  # the matrix is left over
    assert difference(logits(found), model.logits) > 0.5


def test_transformers_does_without_rotations_of_keys(tiny: Models, tmp_path: Path) -> None:
    model = tiny("llama", hidden=128)
    rotated, quantized = tmp_path / "rotated", tmp_path / "quantized"
    run_rotate(model.folder, rotated, rotations=("R3",))
    run_quantize(rotated, quantized, "W8A16", on_indivisible="smaller-group")
    assert problems("transformers", stored(quantized)) == []
    assert model.error(quantized) < 0.1
