"""`ctcli quantize`: what is quantized, what is left alone, what is refused, and what loads."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationConfig
from safetensors.torch import save_file

from ctcli.errors import CtcliError
from ctcli.formats.declared import read_declaration
from ctcli.formats.loaders import Contents, problems
from ctcli.models.fused import fused_sets
from ctcli.patterns import cover, matches
from ctcli.rewrites.quantizing.options import QuantizeOptions
from ctcli.rewrites.quantizing.quantize import quantize
from ctcli.storage.opening import open_checkpoint
from tests.conftest import Ctcli
from tests.helpers.checkpoints import file_hashes, tensor_hashes
from tests.helpers.quantizing import config_of, run_quantize, tensors_of

LAYER = "model.layers.0."
LLAMA = {"model_type": "llama", "num_hidden_layers": 3, "hidden_size": 64}


def weight(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(*shape, generator=generator) / 50).to(torch.bfloat16)


def linears(*names: str, columns: int = 128) -> dict[str, torch.Tensor]:
    return {f"{name}.weight": weight(32, columns, seed=i) for i, name in enumerate(names)}


def checkpoint(
    folder: Path, tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any] = LLAMA
) -> Path:
    """One tensor a shard, so that every set straddles."""
    folder.mkdir()
    weight_map = {}
    for i, (name, tensor) in enumerate(tensors.items(), start=1):
        shard = f"model-{i:05d}-of-{len(tensors):05d}.safetensors"
        save_file({name: tensor.contiguous()}, folder / shard, {"format": "pt"})
        weight_map[name] = shard
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def attention(columns: int = 128) -> dict[str, torch.Tensor]:
    return linears(*(f"{LAYER}self_attn.{role}_proj" for role in "qkvo"), columns=columns)


MIXED = {
    **attention(),
    **linears(
        "model.embed_tokens",
        "lm_head",
        f"{LAYER}mlp.gate",
        f"{LAYER}mlp.down_proj",
        "model.visual.blocks.0.attn.qkv",
        "model.layers.3.mlp.down_proj",
    ),
    "model.norm.weight": weight(128),
    f"{LAYER}conv1d.weight": weight(8, 1, 4),
}


def test_linears_are_quantized_and_the_rest_is_left_alone_with_a_reason(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "source", MIXED)
    report = run_quantize(source, tmp_path / "out", "W4A16")
    expected = {f"{LAYER}self_attn.{role}_proj" for role in "qkvo"} | {f"{LAYER}mlp.down_proj"}
    assert report.selection.schemes.keys() == expected
    assert report.selection.kept == {
        "model.embed_tokens": "embeddings",
        "lm_head": "lm_head",
        f"{LAYER}mlp.gate": "routers and gates",
        "model.visual.blocks.0.attn.qkv": "vision and audio towers",
        "model.layers.3.mlp.down_proj": "multi-token prediction",
    }
    assert config_of(tmp_path / "out")["ignore"] == sorted(
        report.selection.kept.keys() - {"model.embed_tokens"}
    )
    before, after = tensors_of(source), tensors_of(tmp_path / "out")
    for name in before.keys() & after.keys():
        assert torch.equal(before[name], after[name]), name
    assert before.keys() - after.keys() == {f"{module}.weight" for module in expected}


@pytest.mark.parametrize("shape", [(8, 0), (0, 128)])
def test_weights_without_elements_are_left_alone(tmp_path: Path, shape: tuple[int, int]) -> None:
    tensors = {**attention(), f"{LAYER}mlp.down_proj.weight": torch.empty(shape)}
    source = checkpoint(tmp_path / "source", tensors)
    for preset in ("FP8_DYNAMIC", "FP8_BLOCK", "W4A16"):
        report = run_quantize(source, tmp_path / preset, preset, targets=("re:.*",))
        assert report.selection.kept[f"{LAYER}mlp.down_proj"] == "it is empty"


def test_only_quantization_config_is_added_to_config_json(tmp_path: Path) -> None:
    config = {**LLAMA, "zeta": 1e-05, "alpha": ["é", None], "model_type": "llama"}
    source = checkpoint(tmp_path / "source", attention(), config)
    run_quantize(source, tmp_path / "out", "W8A8")
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert list(written) == [*config, "quantization_config"]
    assert {key: written[key] for key in config} == config


@pytest.mark.parametrize(
    "preset", ["W4A16_ASYM", "W3A16", "W8A8", "FP8_BLOCK", "NVFP4A16", "MXFP8"]
)
def test_compressed_tensors_reads_back_what_was_reported(tmp_path: Path, preset: str) -> None:
    source = checkpoint(tmp_path / "source", attention(columns=384))
    report = run_quantize(source, tmp_path / "out", preset)
    config = QuantizationConfig.model_validate(config_of(tmp_path / "out"))
    (scheme,) = config.config_groups.values()
    compressor = BaseCompressor.get_value_from_registry(scheme.format)
    before, after = tensors_of(source), tensors_of(tmp_path / "out")
    for module, error in report.errors.items():
        state = {
            name.removeprefix(f"{module}."): tensor
            for name, tensor in after.items()
            if name.startswith(f"{module}.")
        }
        values = compressor.decompress(state, scheme)["weight"].double()
        original = before[f"{module}.weight"].double()
        found = ((values - original).norm() / original.norm()).item()
        # The package multiplies in bfloat16, which adds at most 2**-9 of a value to its error.
        assert found == pytest.approx(error, abs=2**-9)


@pytest.mark.parametrize(
    ("preset", "observer"),
    [
        *[(preset, "mse") for preset in ("W4A16_ASYM", "FP8_BLOCK", "NVFP4A16", "FP8")],
        ("FP8_BLOCK", "minmax"),
    ],
)
def test_bytes_do_not_depend_on_the_number_of_workers(
    tmp_path: Path, preset: str, observer: str
) -> None:
    names = [f"model.layers.{n}.mlp.{role}_proj" for n in range(3) for role in ("gate", "up")]
    tensors = {f"{name}.weight": weight(1100, 520, seed=i) for i, name in enumerate(names)}
    if preset in ("W4A16_ASYM", "NVFP4A16"):
        tensors = {name: tensor[:, :512] for name, tensor in tensors.items()}
    source = checkpoint(tmp_path / "source", tensors)
    scales = tmp_path / "scales.safetensors"
    save_file({f"{name}.input_scale": torch.ones(1) for name in names}, scales)
    made = []
    for workers in (1, 2, 8):
        out = tmp_path / f"out-{workers}"
        given = scales if preset == "FP8" else None
        report = run_quantize(
            source, out, preset, workers=workers, observer=observer, input_scales=given
        )
        made.append((file_hashes(out), report.errors))
    assert made[0] == made[1] == made[2]


@pytest.mark.parametrize("preset", ["NVFP4A16", "FP8_BLOCK"])
def test_a_stopped_run_continues_to_the_same_bytes_and_errors(tmp_path: Path, preset: str) -> None:
    class StopError(Exception):
        pass

    names = [f"model.layers.{n}.mlp.{role}_proj" for n in range(3) for role in ("gate", "up")]
    tensors = {f"{name}.weight": weight(1024, 512, seed=i) for i, name in enumerate(names)}
    source = checkpoint(tmp_path / "source", tensors)
    whole = run_quantize(source, tmp_path / "whole", preset)
    total = sum(path.stat().st_size for path in (tmp_path / "whole").iterdir())
    for tenths in (1, 4, 7, 9):
        left = total * tenths // 10

        def stop(nbytes: int) -> None:
            nonlocal left
            left -= nbytes
            if left < 0:
                raise StopError

        out = tmp_path / f"out-{tenths}"
        with pytest.raises(StopError):
            run_quantize(source, out, preset, advance=stop)
        assert not out.exists()
        assert run_quantize(source, out, preset).errors == whole.errors
        assert file_hashes(out) == file_hashes(tmp_path / "whole")


def test_fused_sets_share_one_global_scale_wherever_they_lie(tmp_path: Path) -> None:
    names = [f"{LAYER}self_attn.{role}_proj" for role in "qkvo"]
    names += [f"{LAYER}mlp.experts.3.{role}_proj" for role in ("gate", "up", "down")]
    names += [f"{LAYER}mlp.shared_expert.{role}_proj" for role in ("gate", "up")]
    tensors = {f"{name}.weight": weight(32, 64, seed=i) * (i + 1) for i, name in enumerate(names)}
    run_quantize(checkpoint(tmp_path / "source", tensors), tmp_path / "out", "NVFP4A16")
    after = tensors_of(tmp_path / "out")
    scales = {name: after[f"{name}.weight_global_scale"].item() for name in names}
    sets = [set(fused.tensors) for fused in fused_sets(names)]
    assert len(sets) == 3
    for members in sets:
        assert len({scales[name] for name in members}) == 1
    assert len(set(scales.values())) == 3 + 2


def test_ignored_members_do_not_count_and_lone_ones_are_fine(tmp_path: Path) -> None:
    tensors = attention() | {f"{LAYER}mlp.gate_proj.weight": weight(32, 128)}
    source = checkpoint(tmp_path / "source", tensors)
    ignored = [f"re:.*{role}_proj" for role in "qkv"]
    report = run_quantize(source, tmp_path / "out", "NVFP4A16", ignore=ignored)
    assert report.selection.schemes.keys() == {f"{LAYER}self_attn.o_proj", f"{LAYER}mlp.gate_proj"}


def refusal(source: Path, destination: Path, *schemes: str, **options: Any) -> CtcliError:
    with pytest.raises(CtcliError) as caught:
        run_quantize(source, destination, *schemes, **options)
    assert not destination.exists()
    return caught.value


def test_fused_members_must_agree(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "source", attention())
    error = refusal(source, tmp_path / "out", "W4A16", ignore=["re:.*k_proj"])
    assert error.problems == (
        f"{LAYER}self_attn.{{q_proj,k_proj,v_proj}}: its members must be quantized alike, but: "
        "q_proj W4A16, k_proj left alone, v_proj W4A16.",
    )


def test_a_pattern_without_a_match_shows_near_names(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "source", attention())
    error = refusal(source, tmp_path / "out", "W4A16", ignore=[f"{LAYER}self_attn.o_prj", "re:("])
    assert f"near names: {LAYER}self_attn.o_proj" in error.problems[0]
    assert "cannot be matched" in error.problems[1]


def test_indivisible_groups_are_listed_skipped_or_made_smaller(tmp_path: Path) -> None:
    tensors = attention() | linears(f"{LAYER}mlp.down_proj", columns=576)
    source = checkpoint(tmp_path / "source", tensors)
    error = refusal(source, tmp_path / "out", "W4A16")
    assert error.problems == (
        f"{LAYER}mlp.down_proj: group size 128 does not divide 576 columns (smaller-group: 64).",
    )
    report = run_quantize(source, tmp_path / "skipped", "W4A16", on_indivisible="skip")
    assert "group size 128" in report.selection.kept[f"{LAYER}mlp.down_proj"]
    run_quantize(source, tmp_path / "smaller", "W4A16", on_indivisible="smaller-group")
    groups = config_of(tmp_path / "smaller")["config_groups"]
    sizes = {name: group["weights"]["group_size"] for name, group in groups.items()}
    assert sizes == {"W4A16": 128, "W4A16_G64": 64}
    assert groups["W4A16_G64"]["targets"] == [f"{LAYER}mlp.down_proj"]


@pytest.mark.parametrize(("on_indivisible", "schemes"), [("skip", 0), ("smaller-group", 1)])
def test_all_linears_of_a_layer_s_experts_follow_one_that_does_not_divide(
    on_indivisible: str, schemes: int, tmp_path: Path
) -> None:
    experts = [f"{LAYER}mlp.experts.{e}" for e in range(2)]
    tensors = attention() | linears(*(f"{e}.{p}_proj" for e in experts for p in ("gate", "up")))
    tensors |= linears(*(f"{e}.down_proj" for e in experts), columns=192)
    source = checkpoint(tmp_path / "source", tensors)
    report = run_quantize(source, tmp_path / "out", "W4A16", on_indivisible=on_indivisible)
    found = {s for m, s in report.selection.schemes.items() if ".experts." in m}
    assert [scheme.weights.group_size for scheme in found] == [64] * schemes
    kept = [module for module in report.selection.kept if ".experts." in module]
    assert len(kept) == (6 if on_indivisible == "skip" else 0)
    declared, weights = config_of(tmp_path / "out"), tensors_of(tmp_path / "out")
    declaration = read_declaration({"quantization_config": declared})
    assert declaration
    shapes = dict.fromkeys(report.selection.schemes, (32, 128))
    assert problems("vllm", Contents(declaration, shapes, weights)) == []


def test_a_target_is_asked_before_anything_is_written(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "source", attention())
    narrow: dict[str, Any] = {
        "bits": 3,
        "type": "int",
        "strategy": "channel",
        "format": "int-quantized",
    }
    error = refusal(source, tmp_path / "out", target="vllm", **narrow)
    assert error.problems[0].startswith("vLLM does not take the result: ")
    assert "--target none" in error.hint
    assert not (tmp_path / "out").exists()
    for target in ("transformers", "none", None):
        checked = open_checkpoint(str(source))
        made, _ = quantize(checked, QuantizeOptions(target=target, **narrow))
        assert not [line for line in made.warnings if "takes the result" in line]


def test_what_no_loader_takes_is_said(tmp_path: Path) -> None:
    tensors = attention() | linears("model.embed_tokens")
    source = checkpoint(tmp_path / "source", tensors)
    options = QuantizeOptions(scheme=("FP8_DYNAMIC",), targets=("model.embed_tokens",))
    made, _ = quantize(open_checkpoint(str(source)), options)
    (warning,) = made.warnings
    assert warning.startswith("No loader that is known takes the result. vLLM: ")


def test_a_target_without_a_class_for_the_architecture_is_told(tmp_path: Path) -> None:
    config = {**LLAMA, "architectures": ["StrangeForCausalLM"]}
    source = checkpoint(tmp_path / "source", attention(), config)
    made, _ = quantize(
        open_checkpoint(str(source)), QuantizeOptions(scheme=("W4A16",), target="vllm")
    )
    assert made.warnings == ("StrangeForCausalLM: vllm 0.32 has no class of this name for it.",)


def test_unfamiliar_names_are_counted(tmp_path: Path) -> None:
    strange = linears(*(f"model.layers.{n}.odd.{m}" for n in range(3) for m in ("zip", "zap")))
    source = checkpoint(tmp_path / "source", attention() | strange)
    report = run_quantize(source, tmp_path / "out", "W4A16")
    rows = dict(report.rows())
    assert rows["unfamiliar"] == "2 patterns, 6 modules, quantized as linears"
    assert report.data()["unfamiliar"] == {
        "model.layers.*.odd.zip": 3,
        "model.layers.*.odd.zap": 3,
    }
    plain = run_quantize(checkpoint(tmp_path / "plain", attention()), tmp_path / "two", "W4A16")
    assert "unfamiliar" not in dict(plain.rows())


def test_linears_of_mamba_stay_whole(tmp_path: Path) -> None:
    mixer = linears(*(f"{LAYER}mamba.{part}_proj" for part in ("in", "out", "x", "dt")))
    config = {**LLAMA, "model_type": "jamba"}
    source = checkpoint(tmp_path / "source", attention() | mixer, config)
    report = run_quantize(source, tmp_path / "out", "W4A16")
    assert {report.selection.kept[name.removesuffix(".weight")] for name in mixer} == {
        "linears that servers keep whole"
    }
    other = checkpoint(tmp_path / "bamba", attention() | mixer, {**LLAMA, "model_type": "bamba"})
    assert not run_quantize(other, tmp_path / "two", "W4A16").selection.kept


def test_several_schemes_have_targets_that_never_overlap(tmp_path: Path) -> None:
    names = [
        f"model.layers.{n}.{m}" for n in (0, 1, 11) for m in ("mlp.down_proj", "self_attn.o_proj")
    ]
    source = checkpoint(tmp_path / "source", linears(*names), {**LLAMA, "num_hidden_layers": 12})
    run_quantize(
        source, tmp_path / "out", "re:.*mlp.*=W4A16", "re:.*self_attn.*=FP8_DYNAMIC", "W8A16"
    )
    config = config_of(tmp_path / "out")
    assert config["format"] == "mixed-precision"
    groups = {name: group["targets"] for name, group in config["config_groups"].items()}
    assert groups.keys() == {"W4A16", "FP8_DYNAMIC"}
    for name in names:
        takers = [g for g, targets in groups.items() if any(matches(t, name) for t in targets)]
        assert takers == ["W4A16" if "mlp" in name else "FP8_DYNAMIC"]


def test_patterns_cover_exactly_what_they_should() -> None:
    names = [f"layers.{n}.{m}" for n in range(12) for m in ("a.w", "axw")]
    assert cover(names[::2], names[1::2]) == [r"re:^layers\.\d+\.a\.w$"]
    assert cover(names[:2], names[2:]) == ["layers.0.a.w", "layers.0.axw"]


def test_a_tied_head_is_untied_only_when_it_is_named(tmp_path: Path) -> None:
    tensors = attention() | linears("model.embed_tokens")
    source = checkpoint(tmp_path / "source", tensors, {**LLAMA, "tie_word_embeddings": True})
    run_quantize(source, tmp_path / "tied", "W8A8", ignore=["lm_head"])
    assert json.loads((tmp_path / "tied" / "config.json").read_text())["tie_word_embeddings"]
    assert config_of(tmp_path / "tied")["ignore"] == ["lm_head"]
    run_quantize(source, tmp_path / "untied", "W8A8", targets=["lm_head"])
    assert not json.loads((tmp_path / "untied" / "config.json").read_text())["tie_word_embeddings"]
    groups = config_of(tmp_path / "untied")["config_groups"].values()
    assert ["lm_head"] in [group["targets"] for group in groups]
    after = tensors_of(tmp_path / "untied")
    assert after["lm_head.weight"].dtype == torch.int8
    assert after["model.embed_tokens.weight"].dtype == torch.bfloat16


EXPERTS = {
    f"{LAYER}mlp.experts.gate_up_proj": weight(4, 2 * 32, 128),
    f"{LAYER}mlp.experts.down_proj": weight(4, 128, 32, seed=1),
}
MOE = {
    "model_type": "qwen3_moe",
    "num_hidden_layers": 2,
    "hidden_size": 128,
    "moe_intermediate_size": 32,
    "num_experts": 4,
}


def test_packed_experts_become_one_linear_each(tmp_path: Path) -> None:
    packed = checkpoint(tmp_path / "packed", EXPERTS, MOE)
    run_quantize(packed, tmp_path / "out", "MXFP8")
    gate_up, down = EXPERTS.values()
    unpacked = {}
    for e in range(4):
        prefix = f"{LAYER}mlp.experts.{e}."
        unpacked[prefix + "gate_proj.weight"] = gate_up[e, :32]
        unpacked[prefix + "up_proj.weight"] = gate_up[e, 32:]
        unpacked[prefix + "down_proj.weight"] = down[e]
    run_quantize(checkpoint(tmp_path / "apart", unpacked, MOE), tmp_path / "expected", "MXFP8")
    found, expected = tensors_of(tmp_path / "out"), tensors_of(tmp_path / "expected")
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name].view(torch.uint8), tensor.view(torch.uint8)), name


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({**MOE, "hidden_size": 64, "moe_intermediate_size": 64}, "the transposed layout"),
        ({"model_type": "x"}, "does not tell"),
        ({**MOE, "num_experts": 8}, "[4, 64, 128], and config.json asks for [8, 64, 128]"),
    ],
)
def test_packed_experts_of_another_layout_are_refused(
    tmp_path: Path, config: dict[str, Any], reason: str
) -> None:
    source = checkpoint(tmp_path / "source", EXPERTS | attention(), config)
    error = refusal(source, tmp_path / "out", "W8A8")
    assert reason in error.problems[0]
    left = run_quantize(source, tmp_path / "out", "W8A8", ignore=["re:.*experts"])
    assert left.selection.schemes.keys() == {f"{LAYER}self_attn.{role}_proj" for role in "qkvo"}
    assert EXPERTS.keys() <= tensors_of(tmp_path / "out").keys()
    experts = range(4)
    linears = {f"experts.{e}.{p}_proj" for e in experts for p in ("gate", "up", "down")}
    assert {f"{LAYER}mlp.{linear}" for linear in linears} <= {
        *config_of(tmp_path / "out")["ignore"]
    }


def test_experts_that_loaders_take_packed_only_are_left_alone(tmp_path: Path) -> None:
    config = {**MOE, "model_type": "gpt_oss"}
    source = checkpoint(tmp_path / "source", EXPERTS | attention(), config)
    report = run_quantize(source, tmp_path / "out", "W8A8")
    kept = {report.selection.kept[name] for name in EXPERTS}
    assert kept == {"experts of gpt_oss are stored transposed, and loaders take them so"}
    assert EXPERTS.keys() <= tensors_of(tmp_path / "out").keys()
    assert EXPERTS.keys() <= {*config_of(tmp_path / "out")["ignore"]}


LLAMA4 = {**MOE, "model_type": "llama4_text"}


@pytest.mark.parametrize("scheme", ["W4A16", "NVFP4A16", "FP8_DYNAMIC"])
def test_transposed_experts_of_llama4_become_one_linear_each(scheme: str, tmp_path: Path) -> None:
    """NVFP4 of gate and up share a scale, W4A16 has rows of the packed tensor for columns."""
    options: dict[str, Any] = {"group_size": 32} if scheme == "W4A16" else {}
    turned = {name: t.transpose(1, 2).contiguous() for name, t in EXPERTS.items()}
    source = checkpoint(tmp_path / "source", turned, LLAMA4)
    run_quantize(source, tmp_path / "out", scheme, **options)
    same = checkpoint(tmp_path / "same", EXPERTS, MOE)
    run_quantize(same, tmp_path / "expected", scheme, **options)
    assert tensor_hashes(tmp_path / "out") == tensor_hashes(tmp_path / "expected")


def test_experts_of_llama4_are_all_linears_or_none(tmp_path: Path) -> None:
    turned = {name: t.transpose(1, 2).contiguous() for name, t in EXPERTS.items()}
    source = checkpoint(tmp_path / "source", turned | attention(), LLAMA4)
    error = refusal(source, tmp_path / "out", "W8A8", ignore=["re:.*down_proj"])
    assert "1 of 2 tensors of experts are to be quantized" in error.problems[0]
    run_quantize(source, tmp_path / "out", "W8A8", ignore=[r"re:.*\.experts\..*"])
    assert turned.keys() <= tensors_of(tmp_path / "out").keys()
    error = refusal(checkpoint(tmp_path / "bad", EXPERTS, LLAMA4), tmp_path / "out2", "W8A8")
    assert "taken as [experts, in, out], transposed: its shape" in error.problems[0]


def test_static_schemes_take_their_scales_from_a_file(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "source", attention())
    error = refusal(source, tmp_path / "out", "FP8")
    assert error.problems == ("FP8: its activations have static scales, which need calibration.",)
    assert error.hint.startswith("FP8_DYNAMIC needs no calibration. Give --input-scales FILE")
    scales = {f"{LAYER}self_attn.{r}_proj.input_scale": torch.tensor(0.5) for r in "qkvo"}
    path = tmp_path / "scales.safetensors"
    save_file({name: scales[name] for name in [*scales][:1]}, path)
    error = refusal(source, tmp_path / "out", "FP8", input_scales=path)
    assert len(error.problems) == 3
    assert error.problems[0].startswith(
        f"{LAYER}self_attn.k_proj.input_scale: the scheme is static"
    )
    scales |= {f"{LAYER}self_attn.{r}_scale": torch.tensor([0.25]) for r in "kv"}
    save_file(scales, path)
    run_quantize(source, tmp_path / "out", "FP8", input_scales=path)
    after = tensors_of(tmp_path / "out")
    for name in scales:
        assert torch.equal(after[name], scales[name].view(1))
    assert after[f"{LAYER}self_attn.q_proj.weight_scale"].shape == (1,)
    assert config_of(tmp_path / "out")["kv_cache_scheme"]["type"] == "float"
    save_file({**scales, "nobody.input_scale": torch.ones(1)}, path)
    error = refusal(source, tmp_path / "out2", "FP8", input_scales=path)
    assert error.problems == (
        "nobody.input_scale: in the file of input scales, but nothing takes it.",
    )


@pytest.mark.parametrize(
    ("options", "layout", "names"),
    [
        ({"bits": 8, "type": "float", "strategy": "tensor"}, "naive-quantized", {"weight"}),
        ({"bits": 8, "strategy": "block", "block": (16, 48)}, "pack-quantized", None),
        ({"bits": 5, "group_size": 32, "symmetric": False}, "pack-quantized", None),
        ({"bits": 6, "strategy": "tensor", "format": "int-quantized"}, "int-quantized", None),
        ({"bits": 4, "type": "float"}, "nvfp4-pack-quantized", None),
    ],
)
def test_schemes_made_by_hand(
    tmp_path: Path, options: dict[str, Any], layout: str, names: set[str] | None
) -> None:
    source = checkpoint(tmp_path / "source", attention())
    report = run_quantize(source, tmp_path / "out", **options)
    config = QuantizationConfig.model_validate(config_of(tmp_path / "out"))
    assert config.format == layout
    assert all(0 < error < 0.2 for error in report.errors.values())
    if names:
        own = {name.rpartition(".")[2] for name in tensors_of(tmp_path / "out")}
        assert own == {*names, "weight_scale"}


def test_compressed_tensors_own_json_is_a_config(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "source", MIXED)
    run_quantize(source, tmp_path / "a", "W4A16", ignore=[f"{LAYER}mlp.down_proj"])
    run_quantize(source, tmp_path / "b", config=tmp_path / "a" / "config.json")
    before, after = file_hashes(tmp_path / "a"), file_hashes(tmp_path / "b")
    assert before.pop("ctcli_recipe.toml") != after.pop("ctcli_recipe.toml")
    assert before == after


def test_values_that_are_not_finite_are_refused_by_count(tmp_path: Path) -> None:
    tensors = attention()
    tensors[f"{LAYER}self_attn.o_proj.weight"][[3, 17], 5] = math.inf
    tensors[f"{LAYER}self_attn.o_proj.weight"][30, 0] = math.nan
    source = checkpoint(tmp_path / "source", tensors)
    for scheme in ("W4A16", "NVFP4A16", "FP8_BLOCK"):
        error = refusal(source, tmp_path / "out", scheme)
        assert error.problems == (
            f"{LAYER}self_attn.o_proj.weight: 3 of its values are NaN or infinite.",
        )


@pytest.mark.parametrize("scheme", ["", "=W4A16", "re:.*mlp.*="])
def test_a_scheme_without_its_name_or_pattern_is_refused(scheme: str, tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "source", attention())
    error = refusal(source, tmp_path / "out", scheme)
    assert error.problems == (f"--scheme {scheme!r}: give NAME, or PATTERN=NAME.",)


def test_a_device_without_numbers_is_refused(ctcli: Ctcli, tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "source", attention())
    words = ("quantize", source, tmp_path / "out", "--scheme", "W8A8", "--device", "meta")
    assert "--device meta: torch cannot use it" in ctcli(*words).stderr


def test_the_block_of_a_scheme_is_one_word(ctcli: Ctcli, tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "source", attention())
    words = ("quantize", source, tmp_path / "out", "--block", "16x64", "--scheme", "FP8_BLOCK")
    assert ctcli(*words).returncode == 0
    scale = tensors_of(tmp_path / "out")[f"{LAYER}self_attn.o_proj.weight_scale"]
    assert scale.shape == (2, 2)
    (group,) = config_of(tmp_path / "out")["config_groups"].values()
    assert group["weights"]["block_structure"] == [16, 64]
    again = ("run", tmp_path / "out" / "ctcli_recipe.toml", source, tmp_path / "again")
    assert ctcli(*again).returncode == 0
    assert file_hashes(tmp_path / "again") == file_hashes(tmp_path / "out")


def test_modules_that_are_not_finite_are_shown_first_and_are_null_in_json(
    ctcli: Ctcli, tmp_path: Path
) -> None:
    tensors = attention()
    tensors[f"{LAYER}self_attn.o_proj.weight"][30, 0] = math.nan
    source = checkpoint(tmp_path / "source", tensors)
    options = ("--scheme", "W8A8", "--allow-nonfinite", "--overwrite")
    shown = ctcli("quantize", source, tmp_path / "out", *options).stdout
    _, _, worst = shown.partition("largest relative weight errors (rms):\n")
    assert worst.split()[:2] == ["nan", f"{LAYER}self_attn.o_proj"]

    def refuse(name: str) -> None:
        raise AssertionError(name)

    printed = ctcli("quantize", source, tmp_path / "out", *options, "--json").stdout
    modules = json.loads(printed, parse_constant=refuse)["modules"]
    errors = {name: module["relative_error"] for name, module in modules.items()}
    assert errors.pop(f"{LAYER}self_attn.o_proj") is None
    assert all(0 < error < 0.01 for error in errors.values())


@pytest.mark.parametrize("preset", ["W8A8", "FP8_DYNAMIC"])
def test_large_values_that_are_finite_are_not_refused(tmp_path: Path, preset: str) -> None:
    huge = torch.full((8, 128), 3e38, dtype=torch.bfloat16)
    source = checkpoint(tmp_path / "source", {f"{LAYER}self_attn.o_proj.weight": huge})
    report = run_quantize(source, tmp_path / "out", preset)
    assert report.errors[f"{LAYER}self_attn.o_proj"] < 0.01


def test_the_command_reports_dry_and_real(ctcli: Ctcli, tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "source", MIXED)
    arguments = ("quantize", source, tmp_path / "out", "--scheme", "w4a16")
    dry = json.loads(ctcli(*arguments, "--dry-run", "--json").stdout)
    assert not (tmp_path / "out").exists()
    done = ctcli(*arguments)
    assert done.returncode == 0, done.stderr
    rows = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert "quantized 5 modules: W4A16 (INT4 in groups of 128)" in rows
    assert "left alone 1 module: routers and gates" in rows
    assert f"\n  vllm serve {tmp_path / 'out'}\n" in done.stdout
    sizes = sum(path.stat().st_size for path in (tmp_path / "out").iterdir())
    assert dry["bytes_to_write"] == sizes
    assert dry["modules"].keys() == {
        line.split()[1] for line in done.stdout.splitlines() if line.strip().startswith("0.")
    }
    bad = ctcli("quantize", source, tmp_path / "o", "--scheme", "W4A61")
    assert bad.returncode == 2
    assert "Near names: W4A16" in bad.stderr
