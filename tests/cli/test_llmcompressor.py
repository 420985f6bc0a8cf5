"""llm-compressor's recipes do what the same steps do; and a recipe to begin with."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from ctcli.cli.helping import PAGES
from ctcli.errors import CtcliError
from ctcli.rewrites.surgery.transform_config import parse_transform_config
from ctcli.storage.llmcompressor import steps_of_yaml
from ctcli.storage.recipe import read_recipe
from tests.conftest import Ctcli
from tests.helpers.checkpoints import file_hashes

SPIN_QUANT = """
quant_stage:
  quant_modifiers:
    SpinQuantModifier:
      rotations: [R1, R2]
      transform_type: hadamard
      randomize: false
      learnable: false
    QuantizationModifier:
      targets: ["Linear"]
      ignore: ["lm_head", "re:.*down_proj"]
      scheme: W4A16
"""
STEPS = (
    {"use": "rotate", "rotations": ["R1", "R2"], "transform_type": "hadamard"},
    {"use": "quantize", "scheme": ["W4A16"], "ignore": ["lm_head", "re:.*down_proj"]},
)
REFUSED = {
    "GPTQModifier: {scheme: W4A16}": "GPTQModifier: it needs calibration data, or is not known",
    "QuIPModifier: {rotations: [v, u]}": "give that to a step `rotate` as `transform_config`",
    "SpinQuantModifier: {learnable: true}": "learnable rotations need training",
    "SpinQuantModifier: {rotations: [R5]}": "give some of R1, R2, R3, R4",
    "SpinQuantModifier: {mappings: {embedding: a}}": "mappings cannot be said",
    "QuantizationModifier: {targets: [Linear]}": "it names no scheme",
    "QuantizationModifier: {config_groups: {}}": "give that as `config`",
    "QuantizationModifier: {scheme: W4A16, kv_cache_scheme: {}}": "kv_cache_scheme cannot be said",
    "QuantizationModifier: {scheme: W4A16, ignore: [1]}": "is not a text or a list of texts",
}


def test_modifiers_become_steps() -> None:
    assert steps_of_yaml("recipe.yaml", SPIN_QUANT.encode()) == STEPS


def test_a_scheme_for_each_target() -> None:
    text = "m: {QuantizationModifier: {scheme: {FP8_DYNAMIC: ['re:.*attn.*'], W4A16: [Linear]}}}"
    (step,) = steps_of_yaml("recipe.yaml", text.encode())
    assert step["scheme"] == ["re:.*attn.*=FP8_DYNAMIC", "W4A16"]


@pytest.mark.parametrize("text", REFUSED)
def test_what_cannot_be_done_is_refused_by_name(text: str) -> None:
    content = f"stage: {{modifiers: {{{text}}}}}"
    with pytest.raises(CtcliError) as raised:
        steps_of_yaml("recipe.yaml", content.encode())
    (problem,) = raised.value.problems
    assert problem.startswith("recipe.yaml: ")
    assert REFUSED[text] in problem


def test_the_guide_says_quip_as_a_file() -> None:
    page = (PAGES / "rotations.md").read_text()
    text = page.partition("```json\n")[2].partition("```")[0]
    inputs, outputs = parse_transform_config("quip.json", json.loads(text))
    for scheme, places in (
        (inputs, ["input", "weight_input"]),
        (outputs, ["weight_output", "output"]),
    ):
        assert [place.location for place in scheme.places] == places
        assert [place.inverse for place in scheme.places] == [False, True]
        assert scheme.folds("model.layers.0.mlp.down_proj")
        assert not scheme.folds("lm_head")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"a: [", "not valid YAML"),
        (b"\x80", "not valid YAML"),
        (b"- [" + b"[" * 5000, "not valid YAML"),
        (b"", "it has no modifiers"),
        (b"stage: {}", "it has no modifiers"),
        (b"- 1", "it has no modifiers"),
    ],
)
def test_what_is_no_recipe_is_refused(content: bytes, words: str) -> None:
    with pytest.raises(CtcliError, match=words):
        steps_of_yaml("recipe.yaml", content)


def test_a_run_by_yaml_is_the_run_by_toml(cli: Ctcli, pylm: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(SPIN_QUANT)
    (tmp_path / "recipe.toml").write_text(
        '[[steps]]\nuse = "rotate"\nrotations = ["R1", "R2"]\ntransform_type = "hadamard"\n'
        '[[steps]]\nuse = "quantize"\nscheme = "W4A16"\nignore = ["lm_head", "re:.*down_proj"]\n'
    )
    for kind in ("yaml", "toml"):
        done = cli("run", tmp_path / f"recipe.{kind}", pylm, tmp_path / kind)
        assert done.returncode == 0, done.stderr
    assert file_hashes(tmp_path / "yaml") == file_hashes(tmp_path / "toml")


def test_yaml_in_a_file_for_toml_and_swapped_places_are_told(
    cli: Ctcli, pylm: Path, tmp_path: Path
) -> None:
    (tmp_path / "recipe.toml").write_text(SPIN_QUANT)
    done = cli("run", tmp_path / "recipe.toml", pylm, tmp_path / "out")
    assert done.returncode == 1
    assert "not valid TOML" in done.stderr
    assert "llm-compressor's recipes are read from files named .yaml" in done.stderr
    done = cli("run", pylm, tmp_path / "recipe.toml", tmp_path / "out")
    assert "a directory, and no recipe" in done.stderr
    assert "ctcli run RECIPE.toml SRC DST" in done.stderr


def test_the_first_recipe_is_one_that_runs(cli: Ctcli, pylm: Path, tmp_path: Path) -> None:
    done = cli("run", "--init", pylm)
    assert (done.returncode, done.stderr) == (0, "")
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(done.stdout)
    (step,) = read_recipe(recipe).steps
    assert step == {"use": "quantize", "scheme": "W4A16", "group_size": 64}
    whole = done.stdout.replace("# [[", "[[").replace("# use", "use").replace("# rot", "rot")
    assert [each["use"] for each in tomllib.loads(whole)["steps"]] == ["rotate", "quantize"]
    recipe.write_text(whole)
    dry = cli("run", recipe, pylm, tmp_path / "out", "--dry-run")
    assert dry.returncode == 0, dry.stderr
