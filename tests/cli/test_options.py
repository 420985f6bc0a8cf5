"""An option is the same on the command line, in a recipe, and as the library's argument."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import typer
import typer.main
from safetensors.torch import save_file
from typer.testing import CliRunner

from ctcli.cli import app
from ctcli.cli.commands import REWRITES
from ctcli.cli.finish import FinishOptions
from ctcli.cli.help import HelpOptions
from ctcli.cli.inspect import InspectOptions
from ctcli.cli.options import FilePlaces, Places, Shared
from ctcli.cli.run import RunOptions
from ctcli.cli.signatures import make_command
from ctcli.cli.verify import VerifyPlaces
from ctcli.engine.shares import Share
from ctcli.errors import CtcliError
from ctcli.options import Option, OptionError, option, options_of
from ctcli.rewrites.exporting.options import ExportOptions
from ctcli.rewrites.options import RewriteOptions
from ctcli.rewrites.quantizing.options import QuantizeOptions
from ctcli.rewrites.reindex import ReindexOptions
from ctcli.rewrites.sparsifying.options import SparsifyOptions
from ctcli.rewrites.surgery.options import FuseOptions, RotateOptions
from ctcli.storage.opening import open_checkpoint
from ctcli.storage.recipe import encode_recipe, read_recipe
from ctcli.storage.steps import make_options
from ctcli.verifying.options import VerifyOptions
from tests.helpers.tiny_models import LLAMA_MAPPING

STEPS = [rewrite.options for rewrite in REWRITES.values()]
OTHERS = [
    RunOptions,
    InspectOptions,
    FinishOptions,
    HelpOptions,
    VerifyOptions,
    VerifyPlaces,
    Places,
    FilePlaces,
    Shared,
]
# What each command's parameters are, beside those of its own class.
COMMANDS = {
    **{name: (each.options, Places, Shared) for name, each in REWRITES.items()},
    "run": (RunOptions, Places, Shared),
    "inspect": (InspectOptions,),
    "finish": (FinishOptions,),
    "help": (HelpOptions,),
    "verify": (VerifyOptions, VerifyPlaces),
}
# Where the type does not tell what an option takes: a word of the command line, and its value.
SAMPLES: Mapping[str, tuple[str, Any]] = {
    "block": ("64x32", (64, 32)),
    "cluster": ("local:2", "local:2"),
    "config": ("config.json", Path("config.json")),
    "density": ("0.5", 0.5),
    "device": ("cpu:0", "cpu:0"),
    "format": ("int-quantized", "int-quantized"),
    "input_scales": ("scales.safetensors", Path("scales.safetensors")),
    "mapping": ("mapping.toml", Path("mapping.toml")),
    "part": ("2/3", Share(2, 3)),
    "presharded": ("re:.*qkv=2", ("re:.*qkv=2",)),
    "push": ("org/name", "org/name"),
    "rotation_file": ("learned.safetensors", Path("learned.safetensors")),
    "rotations": ("r4,R1", ("R1", "R4")),
    "scheme": ("re:.*mlp.*=W8A8", ("re:.*mlp.*=W8A8",)),
    "strategy": ("tensor", "tensor"),
    "transform_config": ("transform.json", Path("transform.json")),
}
PLAIN: Mapping[Any, tuple[str, Any]] = {
    Path: ("some/file", Path("some/file")),
    str: ("some words", "some words"),
    tuple[str, ...]: ("re:.*down_proj", ("re:.*down_proj",)),
}
# What has to be given with an option.
BESIDE: Mapping[tuple[type, str], dict[str, Any]] = {
    (VerifyOptions, "revision"): {"against": "org/name"},
    (VerifyOptions, "max_error"): {"against": "org/name"},
    (VerifyOptions, "tp"): {"target": "vllm"},
    (InspectOptions, "sort"): {"tensors": True},
    (InspectOptions, "stats"): {"tensors": True},
    (RotateOptions, "save_online_weights"): {"rotations": ("R3",)},
    (RotateOptions, "steps"): {"transform_type": "learned"},
    **{(QuantizeOptions, each.name): {"bits": 8} for each in fields(QuantizeOptions)},
    (QuantizeOptions, "bits"): {},
    (QuantizeOptions, "config"): {},
    (QuantizeOptions, "constant_input_scale"): {"scheme": ("NVFP4",)},
    **{(SparsifyOptions, each.name): {"pattern": "2:4"} for each in fields(SparsifyOptions)},
    (SparsifyOptions, "density"): {},
}
# What has to be given in any case.
NEEDED: Mapping[type, dict[str, Any]] = {
    QuantizeOptions: {"scheme": ("W4A16",)},
    SparsifyOptions: {"pattern": "2:4"},
}
TRANSFORMS = {
    "config_groups": {
        "u": {"type": "hadamard", "apply": [{"targets": ["Linear"], "location": "weight_output"}]}
    }
}
CONFIG = {"config_groups": {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 8}}}}


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A current folder with every file that an option can name."""
    (tmp_path / "mapping.toml").write_text(LLAMA_MAPPING)
    (tmp_path / "transform.json").write_text(json.dumps(TRANSFORMS))
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    save_file({"R1": torch.eye(4)}, tmp_path / "learned.safetensors")
    save_file({"a.input_scale": torch.ones(1)}, tmp_path / "scales.safetensors")
    monkeypatch.chdir(tmp_path)


def cases(classes: list[type]) -> list[Any]:
    return [
        pytest.param(declared, each, id=f"{declared.__name__}-{each.name}")
        for declared in classes
        for each in options_of(declared)
        if not each.instead  # what ends the process has no value
    ]


def sample(each: Option) -> tuple[str, Any]:
    """A word of the command line that gives another value than the default, and the value."""
    if each.name in SAMPLES:
        return SAMPLES[each.name]
    if each.parse:
        return "1.5MB", each.parse("1.5MB")
    if each.kind is bool:
        return "", "/" not in each.flags
    if each.kind in (int, float):
        value = each.kind((each.least or 0) + 1)
        return str(value), value
    if each.kind in PLAIN:
        return PLAIN[each.kind]
    choice = next(choice for choice in get_args(each.kind) if choice != each.default)
    return str(choice), choice


def values_beside(declared: type, each: Option) -> dict[str, Any]:
    required = {e.name: sample(e)[1] for e in options_of(declared) if e.default is MISSING}
    return {**required, **BESIDE.get((declared, each.name), {})}


def words_of(each: Option, value: Any) -> list[str]:
    """An option with a value, as it stands on the command line."""
    if each.kind is bool:
        flags = (each.flags or f"--{each.name.replace('_', '-')}").split()[0].split("/")
        return [flags[0 if value else 1]]
    text, sampled = sample(each)
    text = text if value == sampled else ",".join(value) if isinstance(value, tuple) else str(value)
    return [text] if each.is_argument else [f"--{each.name.replace('_', '-')}", text]


def from_command_line(declared: type, values: Mapping[str, Any]) -> Any:
    """What a command with these options gets."""
    got: list[Any] = []
    program = typer.Typer()
    program.command()(make_command(got.append, declared))
    options = {each.name: each for each in options_of(declared)}
    arguments = [word for name, value in values.items() for word in words_of(options[name], value)]
    done = CliRunner().invoke(program, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return got[0]


def from_recipe(declared: type, step: Mapping[str, Any], folder: Path, source: Path) -> Any:
    """What a command gets from a recipe that a checkpoint holds."""
    made = replace(open_checkpoint(str(source)), steps=({"use": "command", **step},))
    (folder / "recipe.toml").write_bytes(encode_recipe(made))
    return make_options(declared, read_recipe(folder / "recipe.toml").steps[0])


@pytest.mark.parametrize(("declared", "each"), cases([*STEPS, *OTHERS]))
def test_the_command_line_gives_what_the_library_takes(declared: type, each: Option) -> None:
    values = {**values_beside(declared, each), each.name: sample(each)[1]}
    given = from_command_line(declared, values)
    assert getattr(given, each.name) == sample(each)[1] != each.default
    assert given == declared(**values)


@pytest.mark.parametrize(("declared", "each"), cases(STEPS))
def test_the_recipe_of_a_run_repeats_its_options(
    declared: type[RewriteOptions], each: Option, pylm: Path, tmp_path: Path
) -> None:
    given = declared(**{**values_beside(declared, each), each.name: sample(each)[1]})
    if each.recorded == "never":
        assert each.name not in given.recipe
        return
    # What is never recorded, and what stands for None, is told by the recipe itself.
    repeated = from_recipe(declared, given.recipe, tmp_path, pylm)
    assert getattr(repeated, each.name) == sample(each)[1]
    assert repeated.recipe == given.recipe


@pytest.mark.parametrize(("declared", "each"), cases(STEPS))
def test_a_recipe_that_a_user_writes_gives_what_the_library_takes(
    declared: type[RewriteOptions], each: Option, pylm: Path, tmp_path: Path
) -> None:
    text, value = sample(each)
    values = {**values_beside(declared, each), each.name: value}
    plain = {
        name: str(value) if isinstance(value, Path) else value for name, value in values.items()
    }
    assert from_recipe(declared, plain, tmp_path, pylm) == declared(**values)
    if text and each.kind not in (int, float):
        as_text = {**plain, each.name: text}
        assert from_recipe(declared, as_text, tmp_path, pylm) == declared(**values)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_has_the_options_of_its_classes_and_no_others(name: str) -> None:
    group = typer.main.get_group(app)
    command = group.get_command(typer.Context(group), name)
    assert command
    declared = [each.name for of in COMMANDS[name] for each in options_of(of)]
    assert sorted(str(parameter.name) for parameter in command.params) == sorted(declared)


def test_defaults_are_those_of_the_class() -> None:
    for declared in STEPS:
        values = NEEDED.get(declared, {})
        assert from_command_line(declared, values) == declared(**values)
    assert from_command_line(Shared, {}) == Shared()


def test_only_another_device_than_the_default_is_recorded() -> None:
    assert "device" not in FuseOptions().recipe
    assert "device" not in FuseOptions(device="cpu").recipe
    assert list(FuseOptions(device="cpu:0").recipe.items())[-1] == ("device", "cpu:0")


def test_the_recipe_tells_what_rotations_none_stands_for() -> None:
    none, given = RotateOptions(), RotateOptions(rotations=("R1", "R2"), transform_type="hadamard")
    assert none.recipe == given.recipe
    file = RotateOptions(rotation_file=Path("learned.safetensors"))
    assert (file.recipe["rotations"], file.recipe["transform_type"]) == (["R1", "R2"], None)
    transforms = RotateOptions(transform_config=Path("transform.json"))
    assert (transforms.recipe["rotations"], transforms.recipe["transform_type"]) == (None, None)


def test_a_file_is_hashed_as_it_is_when_the_options_are_made() -> None:
    given = QuantizeOptions(config=Path("config.json"))
    Path("config.json").write_text("{}")
    with pytest.raises(CtcliError, match=r"config: config\.json is not what it was"):
        make_options(QuantizeOptions, given.recipe)


@pytest.mark.parametrize(
    ("declared", "values", "words"),
    [
        (ExportOptions, {"version": 0, "group_size": 64}, "--group-size is for --version 2"),
        (VerifyOptions, {"revision": "main"}, "--revision is for --against"),
        (VerifyOptions, {"max_error": 0.5}, "--max-error is for --against"),
        (VerifyOptions, {"tp": 2, "target": "transformers"}, "--tp is for --target vllm"),
        (InspectOptions, {"source": "a", "stats": True}, "--stats goes with --tensors"),
    ],
)
def test_options_that_do_not_go_together_are_refused_everywhere(
    declared: type, values: dict[str, Any], words: str
) -> None:
    with pytest.raises(OptionError, match=words):
        declared(**values)
    program = typer.Typer()
    program.command()(make_command(lambda _: None, declared))
    options = {each.name: each for each in options_of(declared)}
    arguments = [word for name, value in values.items() for word in words_of(options[name], value)]
    done = CliRunner().invoke(program, arguments, env={"COLUMNS": "200"})
    assert (done.exit_code, words in done.output) == (2, True), shlex.join(arguments)
    if issubclass(declared, RewriteOptions):
        with pytest.raises(CtcliError, match=words):
            make_options(declared, values)


@dataclass(frozen=True)
class Numbers(RewriteOptions):
    """A command with options of types that no other has."""

    share: float = option(0.5, "A number.", metavar="X", least=0.0, most=1.0)
    rounds: int | None = option(None, "Another.", "as many as it takes", least=2)


def test_a_field_is_all_that_an_option_needs(pylm: Path, tmp_path: Path) -> None:
    given = from_command_line(Numbers, {"share": 0.25, "rounds": 3})
    assert given == Numbers(0.25, 3)
    assert given.recipe == {"share": 0.25, "rounds": 3}
    assert from_recipe(Numbers, given.recipe, tmp_path, pylm) == given
    assert make_options(Numbers, {"share": 1}) == Numbers(1.0)
    with pytest.raises(CtcliError, match=r"share = 2: give a number from 0.0 to 1.0\."):
        make_options(Numbers, {"share": 2})


def test_links_are_those_of_the_option() -> None:
    assert REWRITES["reindex"].step(ReindexOptions(link=True)).link
    assert not REWRITES["reindex"].step(ReindexOptions()).link
    assert not REWRITES["rotate"].step(RotateOptions()).link
