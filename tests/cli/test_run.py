"""`ctcli run`: several rewrites in one pass equal the same ones in a chain, but for rounding."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationConfig
from safetensors.torch import save_file
from torch import Tensor

from ctcli.cli.recipes import make_steps
from ctcli.errors import CtcliError
from ctcli.storage.recipe import read_recipe
from tests.conftest import Ctcli
from tests.helpers.checkpoints import file_hashes, tensor_hashes
from tests.helpers.exporting import export
from tests.helpers.llamas import make_model, save_hf
from tests.helpers.operating import run_fuse_norms, run_rotate, run_steps
from tests.helpers.quantizing import config_of, run_quantize, tensors_of
from tests.helpers.tiny_models import EXACT, LLAMA_MAPPING, MODELS, Models, read

FUSE = {"use": "fuse-norms"}
ROTATE = {"use": "rotate", "rotations": ["R1", "R2"], "transform_type": "random-hadamard"}
GROUPS = {"bits": 4, "type": "int", "strategy": "group", "group_size": 16}
TENSOR = {"bits": 8, "type": "int", "strategy": "tensor"}
# Every way in which elements share a scale.
QUANTIZE: Mapping[str, dict[str, Any]] = {
    "channel": {"scheme": "FP8_DYNAMIC"},
    "channel-asymmetric": {"bits": 5, "type": "int", "strategy": "channel", "symmetric": False},
    "channel-mse": {"scheme": "W8A8", "observer": "mse"},
    "block": {"scheme": "FP8_BLOCK"},
    "group": GROUPS,
    "group-asymmetric-mse": {**GROUPS, "symmetric": False, "observer": "mse"},
    "tensor": TENSOR,
    "tensor-mse": {**TENSOR, "observer": "mse"},
    "tensor-group": {"scheme": "NVFP4A16"},
    "powers": {"scheme": "MXFP4A16"},
}


@pytest.fixture(params=["rows", "columns"])
def by(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Whether matrices whose rows a rotation mixes are taken by columns, as large ones are."""
    if request.param == "columns":
        monkeypatch.setattr("ctcli.lazy.nodes.LEAST_COLUMNS", 1)
        monkeypatch.setattr("ctcli.lazy.cut.COLUMNS_AT_ONCE", 1)
    return str(request.param)


def write_recipe(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.mark.parametrize("kind", QUANTIZE)
@pytest.mark.usefixtures("by")
def test_rotate_and_quantize_in_one_pass_are_those_of_a_chain_in_float32(
    kind: str, tiny: Models, tmp_path: Path
) -> None:
    """The chain's checkpoint in between is float32, to which quantize rounds its input anyway."""
    source = tiny("llama", True).folder
    quantize = {"use": "quantize", **QUANTIZE[kind]}
    run_steps(source, tmp_path / "rotated", ROTATE)
    run_steps(tmp_path / "rotated", tmp_path / "chain", quantize)
    run_steps(source, tmp_path / "once", ROTATE, quantize)
    assert tensor_hashes(tmp_path / "once") == tensor_hashes(tmp_path / "chain")
    configs = [
        json.loads((tmp_path / each / "config.json").read_text()) for each in ("once", "chain")
    ]
    assert configs[0] == configs[1]


# The norms of the one that is left out cannot be fused, which other tests show.
@pytest.mark.parametrize("name", [name for name in MODELS if name != "opt_post_norm"])
@pytest.mark.usefixtures("by")
def test_every_family_computes_the_same_after_steps_in_any_order(
    name: str, tiny: Models, tmp_path: Path
) -> None:
    model = tiny(name, True)
    steps: list[dict[str, Any]] = [FUSE]
    if model.allows("R2"):
        values = {"use": "rotate", "rotations": ["R2"], "transform_type": "random-matrix"}
        steps = [{**values, "seed": 3}, FUSE, values]
    if model.allows("R1"):
        stream = {"use": "rotate", "rotations": ["R1"], "transform_type": "random-matrix"}
        steps += [stream, FUSE, {**stream, "seed": 4}]
    assert model.error(run_steps(model.folder, tmp_path / "out", *steps)) <= EXACT


@pytest.mark.parametrize("name", ["llama", "starcoder2", "cohere"])
def test_fused_norms_are_not_fused_again(name: str, tiny: Models, tmp_path: Path) -> None:
    source = tiny(name, False).folder
    run_steps(source, tmp_path / "twice", FUSE, FUSE)
    run_steps(source, tmp_path / "once", FUSE)
    assert tensor_hashes(tmp_path / "twice") == tensor_hashes(tmp_path / "once")
    if name == "llama":
        run_steps(source, tmp_path / "rotated", FUSE, ROTATE)
        run_steps(source, tmp_path / "alone", ROTATE)
        assert tensor_hashes(tmp_path / "rotated") == tensor_hashes(tmp_path / "alone")


@pytest.mark.parametrize("version", [0, 1, 2])
@pytest.mark.usefixtures("by")
def test_a_rotated_llama_is_exported_without_a_checkpoint_in_between(
    version: int, ctcli: Ctcli, tmp_path: Path
) -> None:
    source = save_hf(tmp_path / "source", make_model(tied=False, dtype="float32"), "float32")
    chosen = {"version": version, "allow_nonstandard": True}
    exporting = "".join(f"{key} = {json.dumps(value)}\n" for key, value in chosen.items())
    recipe = write_recipe(
        tmp_path / "recipe.toml",
        f'[[steps]]\nuse = "rotate"\n[[steps]]\nuse = "export-bin"\n{exporting}',
    )
    done = ctcli("run", recipe, source, tmp_path / "once.bin")
    assert not done.returncode, done.stderr
    run_rotate(source, tmp_path / "rotated")
    export(tmp_path / "rotated", tmp_path / "chain.bin", **chosen)
    assert (tmp_path / "once.bin").read_bytes() == (tmp_path / "chain.bin").read_bytes()


def test_fused_norms_in_bfloat16_are_exported_as_float32_ones(
    pylm: Path, ctcli: Ctcli, tmp_path: Path
) -> None:
    recipe = write_recipe(
        tmp_path / "recipe.toml",
        'steps = [{use = "fuse-norms"}, {use = "export-bin", version = 1}]',
    )
    done = ctcli("run", recipe, pylm, tmp_path / "once.bin")
    assert not done.returncode, done.stderr
    run_fuse_norms(pylm, tmp_path / "fused", dtype="float32")
    export(tmp_path / "fused", tmp_path / "chain.bin", version=1)
    assert (tmp_path / "once.bin").read_bytes() == (tmp_path / "chain.bin").read_bytes()


def squared_errors(folder: Path, expected: Mapping[str, Tensor]) -> float:
    """Of all weights as compressed-tensors reads them, with its products in float32."""
    config = QuantizationConfig.model_validate(config_of(folder))
    (scheme,) = config.config_groups.values()
    compressor = BaseCompressor.get_value_from_registry(scheme.format)
    tensors, total = tensors_of(folder), 0.0
    for name in tensors:
        if name.endswith(".weight_scale"):
            module = name.removesuffix(".weight_scale")
            state = {
                key.removeprefix(f"{module}."): value.float() if "scale" in key else value
                for key, value in tensors.items()
                if key.startswith(f"{module}.")
            }
            values = compressor.decompress(state, scheme)["weight"].double()
            total += float((values - expected[f"{module}.weight"].double()).square().sum())
    return total


@pytest.mark.parametrize("scheme", ["W8A8", "FP8_DYNAMIC", "FP8_BLOCK"])
def test_one_pass_is_nearer_to_exact_arithmetic_than_the_chain(
    scheme: str, pylm: Path, tmp_path: Path
) -> None:
    """The chain's weights in between are bfloat16."""
    quantize = {"use": "quantize", "scheme": scheme}
    precise = ({**FUSE, "dtype": "float32"}, {"use": "rotate", "precision": "float64"})
    _, exact = read(run_steps(pylm, tmp_path / "exact", *precise))
    once = run_steps(pylm, tmp_path / "once", {"use": "rotate"}, quantize)
    run_rotate(pylm, tmp_path / "rotated")
    chain = run_steps(tmp_path / "rotated", tmp_path / "chain", quantize)
    assert squared_errors(once, exact) < squared_errors(chain, exact)


@pytest.mark.parametrize("scheme", ["FP8_DYNAMIC", "W4A16"])
def test_a_step_that_only_widens_is_no_other_than_the_command(
    scheme: str, pylm: Path, tmp_path: Path
) -> None:
    chosen = {"scheme": [scheme], "on_indivisible": "smaller-group"}
    widen = {"use": "fuse-norms", "dtype": "float32"}
    run_steps(pylm, tmp_path / "run", widen, {"use": "quantize", **chosen})
    run_fuse_norms(pylm, tmp_path / "fused", dtype="float32")
    run_quantize(tmp_path / "fused", tmp_path / "chain", scheme, on_indivisible="smaller-group")
    # The first layer's o_proj reads no norm: nothing happens to it but that it is stored wider.
    name = "model.layers.0.self_attn.o_proj.weight_scale"
    assert torch.equal(*(tensors_of(tmp_path / made)[name] for made in ("run", "chain")))


def test_bytes_do_not_depend_on_workers(tiny: Models, tmp_path: Path) -> None:
    source = tiny("qwen3_moe", True).folder
    steps = (ROTATE, {"use": "quantize", "scheme": "NVFP4A16"}, {"use": "reindex"})
    made = [run_steps(source, tmp_path / str(n), *steps, workers=n) for n in (1, 2, 8)]
    assert file_hashes(made[0]) == file_hashes(made[1]) == file_hashes(made[2])


def test_a_rotated_and_quantized_model_answers_like_the_chain_of_commands(
    ctcli: Ctcli, pylm: Path, tmp_path: Path
) -> None:
    """Through the command, in bfloat16, and read by transformers."""
    text = '[[steps]]\nuse = "rotate"\n\n[[steps]]\nuse = "quantize"\nscheme = "FP8_DYNAMIC"\n'
    recipe = write_recipe(tmp_path / "recipe.toml", text)
    done = ctcli("run", recipe, pylm, tmp_path / "once", "--json")
    assert not done.returncode, done.stderr
    result = json.loads(done.stdout)
    assert [step["use"] for step in result["steps"]] == ["rotate", "quantize"]
    run_rotate(pylm, tmp_path / "rotated")
    report = run_quantize(tmp_path / "rotated", tmp_path / "chain", "FP8_DYNAMIC")
    errors = {m: found["relative_error"] for m, found in result["steps"][1]["modules"].items()}
    assert errors.keys() == report.errors.keys()
    for module, error in errors.items():
        assert error == pytest.approx(report.errors[module], rel=0.05)


RECIPES: Mapping[str, tuple[dict[str, Any], ...]] = {
    "reindex": ({"use": "reindex", "max_shard_size": "1MB"},),
    "fuse-norms": ({**FUSE, "mapping": "mapping.toml"},),
    "device": ({**FUSE, "device": "cpu:0"},),
    "rotate": ({**ROTATE, "seed": 7, "randomize": True},),
    "transform-config": ({"use": "rotate", "transform_config": "transform.json"},),
    "rotation-file": ({"use": "rotate", "rotation_file": "learned.safetensors"},),
    "block": ({"use": "quantize", "scheme": "FP8_BLOCK", "block": [64, 32]},),
    "quantize": ({"use": "quantize", **GROUPS, "ignore": ["re:.*down_proj"]},),
    "config": ({"use": "quantize", "config": "config.json"},),
    "scales": ({"use": "quantize", "scheme": "FP8", "input_scales": "scales.safetensors"},),
    "several": (FUSE, {**ROTATE, "block_size": 64}, {"use": "quantize", "scheme": "FP8_BLOCK"}),
}
TRANSFORMS = {
    "config_groups": {
        "u": {
            "type": "hadamard",
            "apply": [{"targets": ["re:.*v_proj$"], "location": "weight_output"}],
            "head_dim": 32,
        }
    }
}
CONFIG = {"config_groups": {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 8}}}}


@pytest.fixture
def files(pylm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder, the current one, with every file that an option can name."""
    write_recipe(tmp_path / "mapping.toml", LLAMA_MAPPING)
    (tmp_path / "transform.json").write_text(json.dumps(TRANSFORMS))
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    turned = torch.linalg.qr(torch.randn(256, 256, generator=torch.Generator().manual_seed(1)))[0]
    names = {f"model.layers.{n}.self_attn.R2": torch.eye(32) for n in range(4)}
    save_file({"R1": turned.contiguous(), **names}, tmp_path / "learned.safetensors")
    run_quantize(pylm, tmp_path / "dynamic", "FP8_DYNAMIC")
    scales = [n for n in tensors_of(tmp_path / "dynamic") if n.endswith(".weight_scale")]
    ones = {name.replace("weight_scale", "input_scale"): torch.ones(1) for name in scales}
    save_file(ones, tmp_path / "scales.safetensors")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", RECIPES)
def test_a_checkpoint_s_recipe_makes_it_again(
    name: str, files: Path, pylm: Path, ctcli: Ctcli
) -> None:
    run_steps(pylm, files / "first", *RECIPES[name])
    done = ctcli("run", files / "first" / "ctcli_recipe.toml", pylm, files / "second")
    assert not done.returncode, done.stderr
    assert "warning" not in done.stderr
    assert file_hashes(files / "second") == file_hashes(files / "first")


def test_a_recipe_notices_that_a_file_changed(files: Path, pylm: Path, ctcli: Ctcli) -> None:
    run_steps(pylm, files / "first", *RECIPES["config"])
    (files / "config.json").write_text(json.dumps(CONFIG) + " ")
    done = ctcli("run", files / "first" / "ctcli_recipe.toml", pylm, files / "second")
    assert done.returncode == 1
    assert "step 1 (quantize): config: config.json is not what it was" in done.stderr


def test_steps_of_the_source_are_kept_as_history_and_another_source_is_noticed(
    pylm: Path, ctcli: Ctcli, tmp_path: Path
) -> None:
    run_steps(pylm, tmp_path / "fused", FUSE)
    run_steps(tmp_path / "fused", tmp_path / "rotated", ROTATE, {"use": "reindex"})
    recipe = read_recipe(tmp_path / "rotated" / "ctcli_recipe.toml")
    assert [step["use"] for step in recipe.history] == ["fuse-norms"]
    assert [step["use"] for step in recipe.steps] == ["rotate", "reindex"]
    done = ctcli("run", tmp_path / "rotated" / "ctcli_recipe.toml", pylm, tmp_path / "out")
    assert not done.returncode, done.stderr
    assert "it is from another checkpoint than pylm" in done.stderr


BAD_STEPS: Mapping[str, list[dict[str, Any]]] = {
    "step 1: use = 'quantise'; near names: quantize, dequantize, equalize.": [{"use": "quantise"}],
    "step 1: it has no `use`": [{"scheme": "W4A16"}],
    "unknown option 'shceme'; near names: scheme": [{"use": "quantize", "shceme": "W4A16"}],
    "bits = 'four': give a whole number from 2 to 8.": [{"use": "quantize", "bits": "four"}],
    "bits = 9: give a whole number from 2 to 8.": [{"use": "quantize", "bits": 9}],
    "bits = True: give a whole number": [{"use": "quantize", "bits": True}],
    "seed = -1: give a whole number from 0": [{"use": "rotate", "seed": -1}],
    "symmetric = 'no': give true or false.": [{"use": "quantize", "symmetric": "no"}],
    "ignore = 3: give a text, or a list of texts.": [{"use": "quantize", "ignore": 3}],
    "block = [128]: give two numbers.": [{"use": "quantize", "block": [128]}],
    "block = '128': '128' is no block": [{"use": "quantize", "block": "128"}],
    "observer = 'max': give one of minmax, mse, signed, pnorm.": [
        {"use": "quantize", "observer": "max"}
    ],
    "mapping = 1: give a text.": [{"use": "fuse-norms", "mapping": 1}],
    "'R5': give some of R1,R2,R3,R4.": [{"use": "rotate", "rotations": ["R5"]}],
    "max_shard_size = 'big'": [{"use": "reindex", "max_shard_size": "big"}],
    "step 2 (reindex): export-bin makes a file, and has to come last.": [
        {"use": "export-bin"},
        {"use": "reindex"},
    ],
    "step 1 (quantize): --scheme W5A5: there is no preset": [{"use": "quantize", "scheme": "W5A5"}],
    "mapping_sha256: there is no mapping": [{"use": "fuse-norms", "mapping_sha256": "00"}],
}


@pytest.mark.parametrize("words", BAD_STEPS)
def test_unknown_keys_and_wrong_values_are_refused(words: str) -> None:
    with pytest.raises(CtcliError) as refused:
        make_steps(BAD_STEPS[words])
    assert any(words in problem for problem in refused.value.problems), refused.value.problems


def test_all_wrong_keys_are_told_at_once() -> None:
    steps = [{"use": "quantize", "shceme": "W4A16", "bits": 99}, {"use": "rotate", "sed": 1}]
    with pytest.raises(CtcliError) as refused:
        make_steps(steps)
    assert len(refused.value.problems) == 3


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        (({"use": "quantize", "scheme": "FP8_DYNAMIC"}, {"use": "rotate"}), "step 2 (rotate): "),
        (({"use": "quantize", "scheme": "W8A8"}, FUSE), "step 2 (fuse-norms): "),
        (({"use": "quantize", "scheme": "W8A8"}, {"use": "export-bin"}), "step 2 (export-bin): "),
    ],
)
def test_orders_that_make_no_sense_are_refused_with_the_reason(
    steps: tuple[dict[str, Any], ...], words: str, pylm: Path, ctcli: Ctcli, tmp_path: Path
) -> None:
    text = "".join(
        "[[steps]]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in step.items())
        for step in steps
    )
    done = ctcli("run", write_recipe(tmp_path / "recipe.toml", text), pylm, tmp_path / "out")
    assert done.returncode == 1
    assert f"{words}pylm: it is quantized already, by an earlier step." in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("steps = [", "not valid TOML"),
        ("", "it has no steps"),
        ("steps = []", "it has no steps"),
        ("steps = [1]", "steps are no tables"),
        ('[step]\nuse = "rotate"', "unknown keys step"),
        ('source = 1\n[[steps]]\nuse = "rotate"', "source is no table"),
    ],
)
def test_files_that_are_no_recipes_are_refused(text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(CtcliError, match=words):
        read_recipe(write_recipe(tmp_path / "recipe.toml", text))


def test_a_step_can_lay_out_anew(pylm: Path, tmp_path: Path) -> None:
    steps = ({"use": "rotate"}, {"use": "reindex", "max_shard_size": "1MB"})
    run_steps(pylm, tmp_path / "out", *steps)
    recipe = tomllib.loads((tmp_path / "out" / "ctcli_recipe.toml").read_text())
    assert recipe["steps"][1] == {"use": "reindex", "max_shard_size": 1_000_000}
    run_steps(pylm, tmp_path / "rotated", {"use": "rotate"})
    assert tensor_hashes(tmp_path / "out") == tensor_hashes(tmp_path / "rotated")
