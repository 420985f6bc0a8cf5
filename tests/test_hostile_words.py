"""Names, numbers and tables that no reader reckons with end in one line at most."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from ctcli.errors import CtcliError
from ctcli.models.config import Section
from tests.fuzzing import checkpoints
from tests.fuzzing.targets import READING, WRITING, run
from tests.helpers.checkpoints import array, write_checkpoint

COMMANDS = (*READING, *WRITING[:4], ("export-bin",))
FILLED = {
    "600 dotted keys": '[[steps]]\nuse = "reindex"\na' + ".a" * 600 + " = 1\n",
    "5,000 digits": '[[steps]]\nuse = "rotate"\nseed = ' + "9" * 5000 + "\n",
    "4,000 digits": '[[steps]]\nuse = "rotate"\nseed = ' + "9" * 4000 + "\n",
    "deep lists": '[[steps]]\nuse = "quantize"\nscheme = ' + "[" * 500 + "]" * 500,
    "infinity": '[[steps]]\nuse = "quantize"\ngroup_size = inf\n',
    "no tables": "steps = [1]",
    "a date": "[[steps]]\nuse = 1979-05-27\n",
    "an escape": '[[steps]]\nuse = "reindex"\n"\\u001b[2J" = 1\n',
    "a device": '[[steps]]\nuse = "rotate"\nrotation_file = "/dev/null"\n',
}
NAMES = {
    "a newline": "model.layers.0\n.x.weight",
    "5,000 digits": f"model.layers.{'9' * 5000}.mlp.up_proj.weight",
    "1,900 digits": f"model.layers.{'9' * 1900}.mlp.up_proj.weight",
    "other digits": "model.layers.²³.mlp.up_proj.weight",
    "an expert's digits": f"model.layers.0.mlp.experts.{'9' * 1900}.up_proj.weight",
    "nothing": "",
    "a NUL": "a\0b",
}
CONFIG: dict[str, dict[str, Any]] = {
    "half a character": {"x": "\ud800"},
    "half a key": {"\ud800": 1},
    "half a method": {"quantization_config": {"quant_method": "\ud800"}},
    "4,000 digits": {"num_hidden_layers": 10**4000},
    "a billion layers": {"num_hidden_layers": 10**9},
    "infinity": {"num_hidden_layers": float("inf")},
    "many heads": {"num_attention_heads": 10**18},
}
ROTATIONS = (
    *(b"", b"\x80", b"PK\x03\x04", b"\x80\x02}q\x00.", b"{}", b"\xff" * 100, b"\x02" + bytes(7)),
    *(b"PK\x05\x06" + bytes(18), (2).to_bytes(8, "little") + b"[]"),
    b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00echoq\x00\x85R.",
)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return checkpoints.write(tmp_path / "source")


def run_all(source: Path) -> None:
    """Run all commands; `run` fails at whatever is not an expected end."""
    for command, *options in COMMANDS:
        out = [source.with_name("out")] if (command,) not in READING else []
        run(command, source, *out, *options, *(["--dry-run"] if out else []))


@pytest.mark.parametrize("case", FILLED)
def test_a_recipe_of_any_kind(source: Path, case: str) -> None:
    (source / "ctcli_recipe.toml").write_text(FILLED[case])
    run_all(source)
    run("run", source / "ctcli_recipe.toml", source, source.with_name("out"), "--dry-run")


@pytest.mark.parametrize("case", NAMES)
def test_a_tensor_of_any_name(source: Path, case: str) -> None:
    values = array(32, 32).astype("float16")
    shards = {"model.safetensors": {NAMES[case]: values, "model.embed_tokens.weight": values}}
    for path in source.iterdir():
        path.unlink()
    others = {"config.json": json.dumps(checkpoints.CONFIG)}
    run_all(write_checkpoint(source, shards, index=False, others=others))


@pytest.mark.parametrize("case", CONFIG)
def test_a_config_of_any_value(source: Path, case: str) -> None:
    (source / "config.json").write_text(json.dumps({**checkpoints.CONFIG, **CONFIG[case]}))
    run_all(source)


def test_half_characters_of_a_config_are_written_as_they_came(source: Path) -> None:
    config = {**checkpoints.CONFIG, "x": "\ud800"}
    (source / "config.json").write_text(json.dumps(config))
    out = source.with_name("out")
    said = run("quantize", source, out, "--scheme", "FP8_DYNAMIC")
    assert out.is_dir(), said
    assert json.loads((out / "config.json").read_text())["x"] == "\ud800"


def test_files_of_any_name(source: Path) -> None:
    for name in (b"x-\xff.txt", b"y-\xff.safetensors", b"a\nb\x1b[2J.json"):
        (source / os.fsdecode(name)).write_text("1")
    (source / "model.safetensors.index.json").unlink()
    (source / "model-00001-of-00002.safetensors").rename(
        source / os.fsdecode(b"m-\xff.safetensors")
    )
    run_all(source.rename(source.with_name(os.fsdecode(b"s-\xff"))))


@pytest.mark.parametrize("suffix", [".bin", ".safetensors"])
@pytest.mark.parametrize("content", ROTATIONS, ids=range(len(ROTATIONS)))
def test_a_rotation_file_of_any_bytes(source: Path, suffix: str, content: bytes) -> None:
    path = source.with_name(f"R{suffix}")
    path.write_bytes(content)
    run("rotate", source, source.with_name("out"), "--rotation-file", path, "--dry-run")


@pytest.mark.parametrize("size", [10**30, 2**62, 2**31, 7**9, 10**6, 3])
def test_a_transform_of_any_size(source: Path, size: int) -> None:
    path, transform = source.with_name("t.json"), json.loads(json.dumps(checkpoints.TRANSFORM))
    transform["config_groups"]["R1"]["head_dim"] = size
    path.write_text(json.dumps(transform))
    run("rotate", source, source.with_name("out"), "--transform-config", path, "--dry-run")


@pytest.mark.parametrize("value", ["[]", "{}", "1", '"x"', "nan"])
def test_a_mapping_of_any_kind(source: Path, value: str) -> None:
    path = source.with_name("m.toml")
    for key in ("norm_kind", "gain_offset", "attn_head_dim", "norms", "ignore", "embedding"):
        lines = checkpoints.MAPPING.decode().splitlines()
        kept = [line for line in lines if not line.startswith(f"{key} ")]
        path.write_text("\n".join([f"{key} = {value}", *kept]))
        run("fuse-norms", source, source.with_name("out"), "--mapping", path, "--dry-run")


VALUES: Mapping[str, Any] = {
    "size": 4, "large": 2**31, "text": "x", "texts": ["x"], "flag": True, "real": 0.5, "inner": {},
    "null": None, "mixed": ["x", 1],
}  # fmt: skip


@pytest.mark.parametrize(
    ("read", "sound"),
    [
        (Section.size, {"size"}),
        (Section.whole, {"size", "large"}),
        (Section.number, {"size", "large", "real"}),
        (Section.text, {"text"}),
        (Section.texts, {"texts"}),
        (Section.flag, {"flag"}),
        (Section.section, {"inner"}),
    ],
)
def test_a_value_of_a_wrong_type_is_one_line(read: Any, sound: set[str]) -> None:
    problems: list[str] = []
    noting = Section("config.json", VALUES, problems)
    for key, value in VALUES.items():
        problems.clear()
        read(noting, key)
        assert bool(problems) == (key not in sound and value is not None), key
        if problems:
            assert problems[0].startswith(f"config.json: {key} is {value!r}, and not ")
            with pytest.raises(CtcliError, match=f"config.json: {key} is"):
                read(Section("config.json", VALUES), key)


def test_what_nobody_reads_may_be_anything() -> None:
    section = Section("config.json", {"inner": {"size": 4, "x": object()}})
    assert section.section("inner").size("size") == 4
    assert section.sections("none") == {}
    with pytest.raises(
        CtcliError, match="config.json: inner: missing is missing".replace(".", r"\.")
    ):
        section.section("inner").needed_size("missing")
