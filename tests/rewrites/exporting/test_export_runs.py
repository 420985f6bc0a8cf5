"""Runs of `ctcli export-bin`: OUT.bin is whole or as it was, whatever happens meanwhile."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from signal import SIGINT, SIGKILL, SIGTERM, Signals

import pytest

from tests.conftest import Ctcli
from tests.helpers.checkpoints import file_hashes, write_raw
from tests.helpers.dying import Moment, end_at
from tests.helpers.exporting import export
from tests.helpers.llama2c import Model, write
from tests.helpers.llamas import PARAMS, SMALL, make_model, save_hf

OLD = b"an older model"


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """7 million values, written by two dozen jobs: two of them share the embeddings."""
    sizes = replace(SMALL, dim=512, hidden_dim=256, n_layers=2, n_heads=8, vocab_size=8400)
    return save_hf(tmp_path_factory.mktemp("large") / "source", make_model(sizes))


@pytest.fixture(scope="module")
def undisturbed(large: Path) -> str:
    """The hash of the version 0 file that `large` becomes when nothing interferes."""
    out = large.with_name("undisturbed.bin")
    export(large, out, version=0)
    digest = digest_of(out)
    out.unlink()
    return digest


@pytest.fixture
def small(tmp_path: Path) -> tuple[Path, Model]:
    model = make_model()
    return save_hf(tmp_path / "source", model), model


def digest_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def partial_of(out: Path) -> Path:
    return out.with_name(f".{out.name}.ctcli-partial")


def bytes_noted(out: Path) -> int:
    """How many bytes the journal says are written."""
    _, *lines = (partial_of(out) / "journal").read_text().splitlines()
    return sum(nbytes for _, _, nbytes, _ in map(json.loads, lines))


def interrupt(source: Path, out: Path, *options: str, after: int, by: int = SIGKILL) -> None:
    """Run until so many parts of the file are written, then end by a signal."""
    done = end_at(Moment("note", after, by), "export-bin", source, out, *options)
    assert done.returncode == (-SIGKILL if by == SIGKILL else 128 + by), done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("by", "options"),
    [
        (SIGKILL, ()),
        (SIGKILL, ("--overwrite",)),
        (SIGKILL, ("--fsync",)),
        (SIGTERM, ("--overwrite",)),
        (SIGINT, ()),
    ],
)
def test_a_killed_run_leaves_out_bin_as_it_was_and_continues(
    cli: Ctcli,
    large: Path,
    undisturbed: str,
    tmp_path: Path,
    by: Signals,
    options: tuple[str, ...],
) -> None:
    out, untouched = tmp_path / "out.bin", file_hashes(large)
    if "--overwrite" in options:
        out.write_bytes(OLD)
    command = ("--version", "0", *options)
    interrupt(large, out, *command, after=8, by=by)
    assert out.exists() == ("--overwrite" in options)
    assert not out.exists() or out.read_bytes() == OLD
    noted = bytes_noted(out)
    assert bool(noted) == ("--fsync" not in options), "a power cut could take parts away again"
    done = cli("export-bin", large, out, *command, "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["bytes_continued"] == noted
    assert result["bytes_written"] + result["bytes_continued"] == result["file_bytes"]
    assert digest_of(out) == undisturbed
    assert [path.name for path in tmp_path.iterdir()] == ["out.bin"]
    assert file_hashes(large) == untouched
    out.unlink()


def test_errors_of_parts_that_an_earlier_run_wrote_are_reported(
    cli: Ctcli, large: Path, tmp_path: Path
) -> None:
    expected = export(large, tmp_path / "undisturbed.bin").data()
    interrupt(large, tmp_path / "out.bin", "--num-workers", "1", after=8)
    done = cli("export-bin", large, tmp_path / "out.bin", "--json")
    result = json.loads(done.stdout)
    assert result["bytes_continued"] > 0
    assert {key: result[key] for key in expected} == expected
    assert digest_of(tmp_path / "out.bin") == digest_of(tmp_path / "undisturbed.bin")


@pytest.mark.parametrize("version", [0, 1, 2])
def test_bytes_and_errors_do_not_depend_on_the_number_of_workers(
    tmp_path: Path, version: int
) -> None:
    sizes = replace(SMALL, dim=1024, hidden_dim=1600, n_heads=4, vocab_size=3000)
    source = save_hf(tmp_path / "source", make_model(sizes, tied=False))
    made = []
    for workers in (1, 2, 8):
        out = tmp_path / f"{workers}.bin"
        report = export(source, out, workers=workers, version=version)
        made.append((digest_of(out), report.data()))
    assert made[0] == made[1] == made[2]


def test_little_memory_gives_the_same_and_too_little_is_refused(
    cli: Ctcli, small: tuple[Path, Model], tmp_path: Path
) -> None:
    source, model = small
    dry = cli("export-bin", source, tmp_path / "out.bin", "--dry-run", "--json")
    needed = json.loads(dry.stdout)["working_memory_bytes"] // 2
    refused = cli("export-bin", source, tmp_path / "out.bin", "--max-memory", "10KB")
    assert refused.returncode == 1
    assert "--max-memory: the largest job needs" in refused.stderr
    done = cli("export-bin", source, tmp_path / "out.bin", "--max-memory", str(needed))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.bin").read_bytes() == write(model, 2)


def test_a_file_that_does_not_fit_on_the_disk_is_refused_beforehand(
    cli: Ctcli, tmp_path: Path
) -> None:
    rows = shutil.disk_usage(tmp_path).free // 64
    entries = {}
    position = 0
    for name, shape in {
        "tok_embeddings.weight": (rows, 64),
        "norm.weight": (64,),
        **{f"layers.0.{kind}_norm.weight": (64,) for kind in ("attention", "ffn")},
        **{f"layers.0.attention.{w}.weight": (64, 64) for w in ("wq", "wk", "wv", "wo")},
        "layers.0.feed_forward.w1.weight": (96, 64),
        "layers.0.feed_forward.w2.weight": (64, 96),
        "layers.0.feed_forward.w3.weight": (96, 64),
    }.items():
        end = position + 2 * shape[0] * (shape[1] if len(shape) == 2 else 1)
        entries[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [position, end]}
        position = end
    path = write_raw(tmp_path / "source" / "model.safetensors", entries)
    os.truncate(path, path.stat().st_size + position)
    params = {**PARAMS, "n_layers": 1, "n_kv_heads": 4}
    (tmp_path / "source" / "params.json").write_text(json.dumps(params))
    done = cli("export-bin", tmp_path / "source", tmp_path / "o.bin", "--max-seq-len", "9")
    assert done.returncode == 1
    assert "bytes are needed there" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_an_existing_file_is_replaced_only_with_overwrite(
    cli: Ctcli, small: tuple[Path, Model], tmp_path: Path
) -> None:
    source, model = small
    out = tmp_path / "out.bin"
    out.write_bytes(OLD)
    refused = cli("export-bin", source, out)
    assert refused.returncode == 1
    assert "DST exists" in refused.stderr
    assert "--overwrite" in refused.stderr
    assert out.read_bytes() == OLD
    assert cli("export-bin", source, out, "--overwrite").returncode == 0
    assert out.read_bytes() == write(model, 2)


def test_a_directory_is_no_place_for_a_file(
    cli: Ctcli, small: tuple[Path, Model], tmp_path: Path
) -> None:
    source, _ = small
    (tmp_path / "empty").mkdir()
    for place, reason in (
        (tmp_path / "empty", "Name a file to make"),
        (source, "DST is SRC"),
        (source / "out.bin", "DST lies inside SRC"),
    ):
        done = cli("export-bin", source, place, "--overwrite")
        assert done.returncode == 1
        assert reason in done.stderr


def test_a_link_is_followed(small: tuple[Path, Model], cli: Ctcli, tmp_path: Path) -> None:
    source, model = small
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link.bin").symlink_to(tmp_path / "elsewhere" / "model.bin")
    assert cli("export-bin", source, tmp_path / "link.bin").returncode == 0
    assert (tmp_path / "elsewhere" / "model.bin").read_bytes() == write(model, 2)
    assert (tmp_path / "link.bin").is_symlink()


def test_missing_folders_are_made(small: tuple[Path, Model], cli: Ctcli, tmp_path: Path) -> None:
    source, model = small
    assert cli("export-bin", source, tmp_path / "a" / "b" / "out.bin").returncode == 0
    assert (tmp_path / "a" / "b" / "out.bin").read_bytes() == write(model, 2)


def test_tokenizer_bin_is_replaced_only_if_equal_or_with_overwrite(
    cli: Ctcli, pylm: Path, tmp_path: Path
) -> None:
    command = ("export-bin", pylm, tmp_path / "a.bin", "--tokenizer")
    assert cli(*command).returncode == 0
    made = file_hashes(tmp_path)
    assert made.keys() == {"a.bin", "tokenizer.bin"}
    again = cli("export-bin", pylm, tmp_path / "b.bin", "--tokenizer", "--version", "1")
    assert again.returncode == 0, again.stderr
    (tmp_path / "tokenizer.bin").write_bytes(OLD)
    for options in ((), ("--dry-run",)):
        refused = cli("export-bin", pylm, tmp_path / "c.bin", "--tokenizer", *options)
        assert refused.returncode == 1
        assert f"{tmp_path / 'tokenizer.bin'}: it exists and would be replaced" in refused.stderr
    assert not (tmp_path / "c.bin").exists()
    assert cli(*command, "--overwrite").returncode == 0
    assert {name: file_hashes(tmp_path)[name] for name in made} == made


def test_killed_between_tokenizer_bin_and_out_bin_the_same_command_finishes(
    cli: Ctcli, pylm: Path, tmp_path: Path
) -> None:
    """As if the process had died between the two renames."""
    out = tmp_path / "out.bin"
    program = f"""
import os, pathlib
from tests.helpers.exporting import export
def replace(path, target, real=pathlib.Path.replace):
    real(path, target) if target.name in ("journal", "tokenizer.bin") else os._exit(9)
pathlib.Path.replace = replace
export(pathlib.Path({str(pylm)!r}), pathlib.Path({str(out)!r}), tokenizer=True)
"""
    died = subprocess.run([sys.executable, "-c", program], check=False)
    assert died.returncode == 9
    assert (tmp_path / "tokenizer.bin").exists()
    assert not out.exists()
    done = cli("export-bin", pylm, out, "--tokenizer", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["files_continued"] == 1
    assert json.loads(done.stdout)["max_error"] > 0
    assert file_hashes(tmp_path).keys() == {"out.bin", "tokenizer.bin"}


def test_the_tokenizer_cannot_take_the_models_name(cli: Ctcli, pylm: Path, tmp_path: Path) -> None:
    done = cli("export-bin", pylm, tmp_path / "tokenizer.bin", "--tokenizer")
    assert done.returncode == 1
    assert "tokenizer.bin: it is written beside the .bin file" in done.stderr
    assert not file_hashes(tmp_path)
