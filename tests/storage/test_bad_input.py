"""Bad input: the command says what is wrong and what to do next, and leaves nothing behind."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from tests.conftest import Ctcli
from tests.helpers.checkpoints import array, file_hashes, tensor_hashes, write_checkpoint, write_raw
from tests.helpers.processes import HANG_SECONDS

FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"
ATTENTION = "model.layers.0.self_attn"
V_PROJ = f"{ATTENTION}.v_proj.weight"
# Reindexing moves v_proj to the first shard.
SHARDS = {
    FIRST: {f"{ATTENTION}.{role}_proj.weight": array(8, 8, seed=1) for role in "qk"},
    SECOND: {V_PROJ: array(8, 8, seed=2), "norm.weight": array(8, seed=3)},
}
HOME = {tensor: shard for shard, tensors in SHARDS.items() for tensor in tensors}
BIG_CONFIG = json.dumps({"padding": "x" * 50_000})  # written behind the shards, and larger
Done = subprocess.CompletedProcess[str]
Run = Callable[..., Done]


@pytest.fixture
def src(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "source", SHARDS)


@pytest.fixture
def dst(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def refused(cli: Ctcli, tmp_path: Path) -> Run:
    """Runs `reindex`, which must fail with an error of these parts and change nothing."""

    def run(*arguments: str | Path, said: tuple[str, ...]) -> Done:
        before = sorted(os.walk(tmp_path)), file_hashes(tmp_path)
        done = cli("reindex", *arguments)
        assert_expected_error(done, said)
        assert (sorted(os.walk(tmp_path)), file_hashes(tmp_path)) == before
        return done

    return run


@pytest.fixture
def made(cli: Ctcli) -> Run:
    """Runs `reindex`, which must succeed."""

    def run(*arguments: str | Path) -> Done:
        done = cli("reindex", *arguments)
        assert done.returncode == 0, done.stderr
        return done

    return run


def assert_expected_error(done: Done, said: tuple[str, ...]) -> None:
    assert (done.returncode, done.stdout) == (1, ""), done.stderr
    lines = done.stderr.splitlines()
    kinds = [line.partition(" ")[0] for line in lines]
    assert set(kinds) <= {"warning:", "error:", "...", "next:"}, done.stderr
    assert kinds[-1] == "next:"
    assert kinds.count("next:") == 1
    assert max(map(len, lines)) < 1000
    errors = "\n".join(line for line in lines if line.startswith(("error: ", "... ")))
    assert all(part in errors for part in said), done.stderr


def confined(preamble: str, *arguments: str | Path) -> Done:
    """Run `reindex` in a process that has executed `preamble` first."""
    module = "[sys.executable, '-m', 'ctcli', 'reindex', *sys.argv[1:]]"
    program = f"import os, sys, ctypes, resource\n{preamble}\nos.execv(sys.executable, {module})"
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=HANG_SECONDS
    )


def bound_by_permissions(*arguments: str | Path) -> Done:
    """Root is not bound by them while it has CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH."""
    dropped = "[ctypes.CDLL(None).prctl(24, capability, 0, 0, 0) for capability in (1, 2)]"
    return confined(f"if os.geteuid() == 0: assert {dropped} == [0, 0]", *arguments)


def limited_to(nbytes: int, *arguments: str | Path) -> Done:
    """Run where no file can become larger than `nbytes`, as on a full disk."""
    return confined(f"resource.setrlimit(resource.RLIMIT_FSIZE, ({nbytes}, {nbytes}))", *arguments)


def partial_of(dst: Path) -> Path:
    return dst.with_name(f".{dst.name}.ctcli-partial")


def gone(path: Path) -> Path:
    (shutil.rmtree if path.is_dir() else os.unlink)(path)
    return path


def file_at(path: Path) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("a file")
    return path


def loop_at(path: Path) -> Path:
    path.symlink_to(path)
    return path


def put_index(folder: Path, weight_map: object) -> None:
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))


def put_v_proj_at(folder: Path, place: object) -> None:
    shutil.copy(folder / SECOND, folder.parent / "x.safetensors")
    put_index(folder, {**HOME, V_PROJ: place})


def name_one(folder: Path, name: str, dtype: str, *shape: int) -> None:
    write_raw(folder / FIRST, {name: {"dtype": dtype, "shape": shape, "data_offsets": [0, 0]}})


ESCAPED = r"tensor '\x1b[2J\u202e\n': unknown dtype '\x07'"
LOST, OUTSIDE = "which is not there", "which is no file name inside the checkpoint"
TWICE = f'{{"weight_map": {{"a": "{FIRST}", "a": "{SECOND}"}}}}'

# What is done to a sound checkpoint, and what is said about it.
BAD_SOURCES: Mapping[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "truncated shard": (lambda f: os.truncate(f / FIRST, 300), (f"error: {FIRST}: ", "truncated")),
    "empty shard": (lambda f: os.truncate(f / FIRST, 0), (f"{FIRST}: only 0 bytes",)),
    "bad header": (lambda f: write_raw(f / FIRST, b"{"), (f"{FIRST}: its header is not JSON",)),
    "bad shards": (lambda f: [write_raw(f / s, {"a": 0}) for s in SHARDS], (FIRST, f"{SECOND}: t")),
    "25 bad tensors": (
        lambda f: write_raw(f / FIRST, {f"bad{i}": 0 for i in range(25)}),
        ("tensor 'bad0'", "tensor 'bad19'", "... and 5 more problems"),
    ),
    "terminal escapes": (lambda f: name_one(f, "\x1b[2J\u202e\n", "\7"), (ESCAPED,)),
    "long name": (lambda f: name_one(f, "n" * 10**5, "F7"), (f"{FIRST}: tensor 'nnn",)),
    "long dtype": (lambda f: name_one(f, "a", "F" * 10**5), (f"{FIRST}: tensor 'a'",)),
    "many sizes": (lambda f: name_one(f, "a", "U8", *[2**62] * 300_000), (f"{FIRST}: tensor 'a'",)),
    "missing shard": (lambda f: gone(f / FIRST), (f"{INDEX} names {FIRST}, {LOST}",)),
    "missing shards": (
        lambda f: [gone(f / s) for s in SHARDS],
        (f"{FIRST}, {LOST}", f"{SECOND}, "),
    ),
    "shard a directory": (lambda f: gone(f / FIRST).mkdir(), (f"names {FIRST}, {LOST}",)),
    "dangling link": (lambda f: gone(f / FIRST).symlink_to("x"), (f"{FIRST}: cannot be read: No",)),
    "link to itself": (lambda f: loop_at(f / "\x1b[2J\n"), (r"error: \x1b[2J\n: cannot be",)),
    "missing tensors": (
        lambda f: put_index(f, {**HOME, "lost": FIRST, "gone": SECOND}),
        (f"tensor 'lost' into {FIRST}, which does not", f"tensor 'gone' into {SECOND}, which"),
    ),
    "index to parent": (lambda f: put_v_proj_at(f, "../x.safetensors"), (V_PROJ, OUTSIDE)),
    "index to root": (lambda f: put_v_proj_at(f, f"{f}/{SECOND}"), (V_PROJ, OUTSIDE)),
    "index with backslash": (lambda f: put_v_proj_at(f, "..\\x.safetensors"), (V_PROJ, OUTSIDE)),
    "index to no names": (lambda f: put_index(f, {"a": 1, "b": ""}), ("'a'", "'b'", OUTSIDE)),
    "index to config": (
        lambda f: put_v_proj_at(f, "config.json"),
        ("config.json: no safetensors file, or",),
    ),
    "index to a long number": (lambda f: put_v_proj_at(f, "9" * 5000), (f"{INDEX} names 999",)),
    "index to a surrogate": (lambda f: put_v_proj_at(f, "\ud800"), (rf"names \ud800, {LOST}",)),
    "index not JSON": (lambda f: (f / INDEX).write_text("{"), (f"{INDEX}: no index",)),
    "index not UTF-8": (lambda f: (f / INDEX).write_bytes(b"\xff"), (f"{INDEX}: no index",)),
    "index empty": (lambda f: (f / INDEX).write_text("{}"), (f"{INDEX}: no index", "weight_map")),
    "weight_map a list": (lambda f: put_index(f, []), (f"{INDEX}: no index with a weight_map",)),
    "weight_map empty": (lambda f: put_index(f, {}), ("hold no tensors",)),
    "key twice": (lambda f: (f / INDEX).write_text(TWICE), (INDEX, "the key 'a' appears twice")),
    "tensor in two files": (
        lambda f: shutil.copy(f / SECOND, gone(f / INDEX).with_name("x.safetensors")),
        (f"'norm.weight' is both in {SECOND} and in x.safetensors", f"'{V_PROJ}' is both"),
    ),
    "only .bin": (lambda f: file_at(gone(f) / "x.bin"), ("weights are not safetensors: x.bin",)),
    "empty directory": (lambda f: gone(f).mkdir(), ("source: no safetensors files in it",)),
    "no directory": (gone, ("source: no such directory",)),
    "a file": (lambda f: gone(f).write_text(""), ("source: not a directory",)),
}


@pytest.mark.parametrize("case", BAD_SOURCES)
def test_a_bad_source_is_refused(refused: Run, src: Path, dst: Path, case: str) -> None:
    spoil, said = BAD_SOURCES[case]
    spoil(src)
    refused(src, dst, said=said)


@pytest.mark.parametrize("name", ["../no-such-thing", "./no-such-thing", "long" * 70])
def test_a_missing_path_is_no_hub_id(refused: Run, dst: Path, name: str) -> None:
    refused(name, dst, said=(f"{name}: no such directory",))


def test_missing_permissions_are_named(src: Path, dst: Path) -> None:
    (src / FIRST).chmod(0)
    assert_expected_error(bound_by_permissions(src, dst), (FIRST, "Permission denied"))
    gone(src / FIRST)
    (src / "locked").mkdir(mode=0)
    assert_expected_error(bound_by_permissions(src, dst), (f"{src}/locked", "Permission denied"))
    dst.mkdir(mode=0o555)
    assert_expected_error(bound_by_permissions(src, dst / "out"), (f"cannot write into {dst}",))
    dst.chmod(0)
    assert_expected_error(bound_by_permissions(src, dst / "out"), (f"{dst}/out: ", "denied"))
    assert_expected_error(bound_by_permissions(dst / "in", src / "out"), (f"{dst}/in: ",))
    assert sorted(src.parent.iterdir()) == [dst, src]


def test_a_dst_that_meets_src_is_refused(refused: Run, src: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(src)
    refused(src, src, said=("DST is SRC",))
    for pair in ((src, src), (src, link), (link, src)):
        refused(*pair, "--overwrite", said=("DST is SRC",))
    refused(src, link / "a" / "b", said=("DST lies inside SRC",))
    refused(src, tmp_path, "--overwrite", said=("SRC lies inside DST",))


def test_shards_that_are_links_out_of_src_are_missing(refused: Run, src: Path, dst: Path) -> None:
    shutil.copytree(src, dst, copy_function=lambda file, link: Path(link).symlink_to(file))
    said = f"links that lead out of SRC: config.json, {FIRST}, {SECOND}, {INDEX}"
    refused(dst, src, "--overwrite", said=(said,))
    (dst / INDEX).unlink()
    shutil.copy(src / INDEX, dst / INDEX)
    said = f"links that lead out of SRC: config.json, {FIRST}, {SECOND}."
    refused(dst, src, "--overwrite", said=(f"names {FIRST}, {LOST}", said))


def test_a_snapshot_of_a_hub_cache_links_to_its_blobs_and_nowhere_else(
    made: Run, src: Path, dst: Path, tmp_path: Path
) -> None:
    snapshot = tmp_path / "models--org--name" / "snapshots" / ("0" * 40)
    blobs = snapshot.parent.parent / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for i, path in enumerate(sorted(src.iterdir())):
        path.rename(blobs / str(i))
        (snapshot / path.name).symlink_to(f"../../blobs/{i}")
    (tmp_path / "models--org--name" / "mine.txt").write_text("mine")
    (snapshot / "yours.txt").symlink_to("../../mine.txt")
    done = made(snapshot, dst)
    assert "links that lead out of SRC: yours.txt." in done.stderr
    assert file_hashes(dst).keys() == {*SHARDS, INDEX, "config.json", "ctcli_recipe.toml"}


def test_folders_that_link_to_each_other_end_in_time(made: Run, src: Path, dst: Path) -> None:
    for folder in map(str, range(12)):
        (src / folder).mkdir()
        (src / folder / "x.txt").write_text("x")
        for other in set(map(str, range(12))) - {folder}:
            (src / folder / other).symlink_to(f"../{other}")
    made(src, dst)
    assert len([path for path in dst.rglob("x.txt") if path.is_file()]) == 12 * 12


def test_a_folder_of_a_hundred_thousand_files_is_refused(
    refused: Run, src: Path, dst: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ctcli.storage.local._MOST_FILES", 20)
    for i in range(20):
        (src / str(i)).write_text("")
    refused(src, dst, said=("more than 20 files and folders",))


def test_folders_nested_too_deep_are_refused(refused: Run, src: Path, dst: Path) -> None:
    folder = src
    for _ in range(80):
        folder = folder / "d"
        folder.mkdir()
    refused(src, dst, said=("folders nested more than 64 deep",))


# What is done to a DST that does not exist yet, what is named instead, and what is said.
BAD_DESTINATIONS: Mapping[str, tuple[Callable[[Path], Path], str]] = {
    "a checkpoint": (lambda d: file_at(d / "config.json").parent, "DST exists and is not empty"),
    "with content": (
        lambda d: file_at(d / "thesis.txt").parent,
        "no checkpoint to replace: thesis.txt.",
    ),
    "a file": (file_at, "a file of this name exists"),
    "below a file": (lambda d: file_at(d) / "out", "cannot write into"),
    "link to itself": (loop_at, "/out: "),
    "name too long": (lambda d: d.with_name("x" * 300), "File name too long"),
    "name too long for its partial directory": (lambda d: d.with_name("x" * 245), "too long"),
    "partial directory a file": (
        lambda d: file_at(partial_of(d)).with_name(d.name),
        "not a folder",
    ),
    "where nothing can be made": (lambda _: Path("/proc/out"), "/proc/out"),
    "the root": (lambda _: Path("/"), "/: the root cannot be replaced"),
}


@pytest.mark.parametrize("case", BAD_DESTINATIONS)
def test_a_bad_dst_is_refused_and_untouched(refused: Run, src: Path, dst: Path, case: str) -> None:
    prepare, said = BAD_DESTINATIONS[case]
    done = refused(src, prepare(dst), said=(said,))
    assert ("--overwrite" in done.stderr) == (case == "a checkpoint")


def test_what_is_no_checkpoint_is_not_replaced(ctcli: Ctcli, pylm: Path, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    (notes / "more").mkdir(parents=True)
    (notes / "thesis.txt").write_text("years")
    (notes / "tsconfig.json").write_text("{}")
    for options in (("--dry-run",), ()):
        done = ctcli("reindex", pylm, notes, "--overwrite", *options)
        assert done.returncode == 1
        assert "holds no checkpoint to replace: more, thesis.txt, tsconfig.json." in done.stderr
    assert (notes / "thesis.txt").read_text() == "years"


def test_one_of_several_shards_is_told(ctcli: Ctcli, pylm: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model-00002-of-00006.safetensors"):
        shutil.copy(pylm / name, tmp_path)
    done = ctcli("inspect", tmp_path)
    assert "says that there are 6 such files, and there are 1." in done.stdout


def test_a_dst_that_another_run_writes_is_refused(
    refused: Run, made: Run, src: Path, dst: Path
) -> None:
    partial_of(dst).mkdir()
    with (partial_of(dst) / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        refused(src, dst, said=(f"{dst}: another ctcli process",))
        refused(src, dst, "--overwrite", said=(f"{dst}: another ctcli process",))
    made(src, dst)


def victim_of(dst: Path) -> Path:
    victim = dst.with_name("victim")
    (victim / "checkpoint").mkdir(parents=True)
    for name in ("lock", "journal", "checkpoint/thesis.txt"):
        (victim / name).write_text("years of work")
    return victim


def mark(dst: Path) -> Path:
    partial_of(dst).mkdir()
    (partial_of(dst) / "lock").touch()
    return partial_of(dst)


# What lies where the output is to grow, and is not the folder of an earlier run.
TRAPS: Mapping[str, Callable[[Path], object]] = {
    "a link to somebody's folder": lambda d: partial_of(d).symlink_to(victim_of(d)),
    "a link to nothing": lambda d: partial_of(d).symlink_to("nothing"),
    "a link to itself": lambda d: loop_at(partial_of(d)),
    "a file": lambda d: file_at(partial_of(d)),
    "a pipe": lambda d: os.mkfifo(partial_of(d)),
    "somebody's folder": lambda d: victim_of(d).rename(partial_of(d)) / gone_lock(partial_of(d)),
    "a pipe as lock": lambda d: os.mkfifo(gone(mark(d) / "lock")),
    "a link as lock": lambda d: gone(mark(d) / "lock").symlink_to(victim_of(d) / "lock"),
    "a pipe as journal": lambda d: os.mkfifo(mark(d) / "journal"),
    "a link as journal": lambda d: (mark(d) / "journal").symlink_to(victim_of(d) / "journal"),
    "a pipe as note": lambda d: os.mkfifo(mark(d) / "publishing"),
    "a link as checkpoint": lambda d: (mark(d) / "checkpoint").symlink_to(victim_of(d)),
    "a link as former DST": lambda d: (mark(d) / "replaced").symlink_to(victim_of(d)),
    "a link as fetched files": lambda d: (mark(d) / "source").symlink_to(victim_of(d)),
    "a file as checkpoint": lambda d: file_at(mark(d) / "checkpoint"),
}


def gone_lock(folder: Path) -> Path:
    return gone(folder / "lock")


@pytest.mark.parametrize("case", TRAPS)
@pytest.mark.parametrize("options", [(), ("--overwrite",), ("--dry-run",)], ids=str)
def test_what_is_not_an_earlier_runs_folder_is_left_alone(
    refused: Run, src: Path, dst: Path, case: str, options: tuple[str, ...]
) -> None:
    TRAPS[case](dst)
    done = refused(src, dst, *options, said=(f"{partial_of(dst)}: it is where the output grows",))
    assert "Move it away" in done.stderr


def test_the_folder_of_another_user_is_left_alone(
    refused: Run, src: Path, dst: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (mark(dst) / "checkpoint").mkdir()
    real = Path.lstat

    def lstat(path: Path) -> os.stat_result:
        found = real(path)
        return os.stat_result([*found[:4], 12345, *found[5:]]) if path == partial_of(dst) else found

    monkeypatch.setattr(Path, "lstat", lstat)
    refused(src, dst, said=("it is where the output grows, and is not a folder",))


def test_an_empty_folder_where_the_output_grows_is_taken(made: Run, src: Path, dst: Path) -> None:
    partial_of(dst).mkdir()
    made(src, dst)
    assert not partial_of(dst).exists()


@pytest.mark.parametrize(
    ("modes", "expected"),
    [
        ({}, {}),
        ({FIRST: 0o600}, {FIRST: 0o600, INDEX: 0o600}),
        ({"config.json": 0o640}, {"config.json": 0o640}),
        ({"run.py": 0o755, "mine.py": 0o700}, {"run.py": 0o755, "mine.py": 0o700}),
        ({FIRST: 0o444, SECOND: 0o400, INDEX: 0o600}, {FIRST: 0o600, SECOND: 0o600, INDEX: 0o600}),
    ],
    ids=str,
)
def test_files_are_as_private_as_those_that_they_are_made_of(
    made: Run, src: Path, dst: Path, modes: Mapping[str, int], expected: Mapping[str, int]
) -> None:
    for name in ("run.py", "mine.py"):
        (src / name).write_text("")
    for path in src.iterdir():
        path.chmod(modes.get(path.name, 0o644))
    made(src, dst)
    found = {path.name: path.stat().st_mode & 0o777 for path in dst.iterdir()}
    both = {FIRST, SECOND} & modes.keys()
    generated = {"ctcli_recipe.toml", INDEX} if both else set()
    # Tensors move from one shard to the other.
    private = dict.fromkeys({FIRST} & {*modes} or generated, 0o600)
    wanted = {**dict.fromkeys(found, 0o644), **dict.fromkeys(generated, 0o600), **private}
    assert found == {**wanted, **expected}


def test_the_hint_on_too_little_memory_is_about_memory(refused: Run, src: Path, dst: Path) -> None:
    done = refused(src, dst, "--max-memory", "1KB", said=("--max-memory",))
    assert "--max-memory" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    "options",
    [
        *(("--num-workers", value) for value in ("0", "-1", "many")),
        *(("--max-shard-size", value) for value in ("large", "0", "-1GB", "5 gigs", "")),
        ("--max-memory", "9" * 400),
        ("--revision", "main"),
        ("--no-such-option",),
        ("third-argument",),
    ],
    ids=lambda options: " ".join(options)[:30],
)
def test_wrong_usage_ends_with_2(
    cli: Ctcli, src: Path, dst: Path, options: tuple[str, ...]
) -> None:
    done = cli("reindex", src, dst, *options)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert options[0] in done.stderr
    assert "Traceback" not in done.stderr
    assert list(src.parent.iterdir()) == [src]


@pytest.mark.parametrize("arguments", [(), ("a",), ("", "b"), ("a", "")])
def test_missing_and_empty_paths_are_wrong_usage(cli: Ctcli, arguments: tuple[str, ...]) -> None:
    done = cli("reindex", *arguments, "--dry-run")
    assert (done.returncode, done.stdout) == (2, ""), done.stderr


@pytest.mark.parametrize(("room", "full", "kept"), [(20_000, "config.json", 2), (500, FIRST, 0)])
def test_a_run_continues_after_a_full_disk(
    made: Run, src: Path, dst: Path, room: int, full: str, kept: int
) -> None:
    (src / "config.json").write_text(BIG_CONFIG)
    before = file_hashes(src)
    done = limited_to(room, src, dst, "--num-workers", "1")
    assert_expected_error(done, (f"{full}: the disk", "is full"))
    assert "it continues" in done.stderr.splitlines()[-1]
    assert not dst.exists()
    assert json.loads(made(src, dst, "--json").stdout)["files_continued"] == kept
    made(src, dst.with_name("undisturbed"))
    assert file_hashes(dst) == file_hashes(dst.with_name("undisturbed"))
    assert file_hashes(src) == before
    assert not partial_of(dst).exists()


@pytest.mark.parametrize("journaled", [False, True])
def test_partial_links_to_src_are_not_written_to(
    made: Run, src: Path, dst: Path, journaled: bool
) -> None:
    (src / "config.json").write_text(BIG_CONFIG)
    file_at(src / "done.txt")
    before, partial = file_hashes(src), partial_of(dst)
    (mark(dst) / "checkpoint").mkdir()
    if journaled:  # a run that came as far as done.txt, and to the shards only in part
        limited_to(20_000, src, dst)
        key, *lines = (partial / "journal").read_text().splitlines(keepends=True)
        kept = [line for line in lines if "done.txt" in line]
        (partial / "journal").write_text("".join([key, *kept]))
    for name in (*SHARDS, "config.json"):
        (partial / "checkpoint" / name).unlink(missing_ok=True)
        os.link(src / name, partial / "checkpoint" / name)
    assert ("continued" in made(src, dst).stdout) == journaled
    assert file_hashes(src) == before
    assert tensor_hashes(dst) == tensor_hashes(src)
    assert all((src / name).stat().st_nlink == 1 for name in SHARDS)


def test_strangers_are_left_out_with_warnings(made: Run, src: Path, dst: Path) -> None:
    unplaced = {**SHARDS[FIRST], "unplaced": array(3)}
    strays = {"stray.safetensors": {"x": array(3)}, "onnx/y.safetensors": {"y": array(3)}}
    write_checkpoint(src, {FIRST: unplaced, **strays}, index=False)
    others = ("pytorch_model.bin", "consolidated.00.pth", "tf_model.h5")
    silent = (".git/HEAD", ".cache/x", "pytorch_model.bin.index.json", "tf_model.h5.index.json")
    for name in (*others, *silent):
        file_at(src / name)
    placing, naming, formats = made(src, dst).stderr.splitlines()
    assert placing.startswith(f"warning: {FIRST}: tensor 'unplaced' is left out")
    assert naming.startswith("warning: left out, since the checkpoint does not name them: ")
    assert all(name in naming for name in strays)
    assert formats.startswith("warning: left out, since they are weights of other formats: ")
    assert all(name in formats for name in others)
    assert file_hashes(dst).keys() == {*SHARDS, INDEX, "config.json", "ctcli_recipe.toml"}
    assert tensor_hashes(dst).keys() == HOME.keys()


def test_shards_of_another_suffix_are_not_carried_along(made: Run, src: Path, dst: Path) -> None:
    (src / SECOND).rename(src / "b.weights")
    put_index(src, {tensor: home.replace(SECOND, "b.weights") for tensor, home in HOME.items()})
    made(src, dst)
    raw = (dst / "b.weights").read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    assert header.keys() - {"__metadata__"} == {"norm.weight"}


def test_total_size_is_corrected_and_all_else_comes_along(made: Run, src: Path, dst: Path) -> None:
    metadata = {"total_size": "many", "total_parameters": 200, "note": "\ud800"}
    (src / INDEX).write_text(json.dumps({"metadata": metadata, "weight_map": HOME}))
    template, newline = "{{ \u2603 }}\r\n".encode(), "name with\nnewline"
    raw = {"config.json": b"\xff", "x.jinja": template, "a/b/c/d.py": b"", newline: b"1"}
    for name, content in raw.items():
        (src / name).parent.mkdir(parents=True, exist_ok=True)
        (src / name).write_bytes(content)
    made(src, dst)
    written = json.loads((dst / INDEX).read_text())["metadata"]
    assert written == {**metadata, "total_size": 4 * (3 * 8 * 8 + 8)}
    assert {name: (dst / name).read_bytes() for name in raw} == raw


def test_names_that_are_not_unicode_do_not_matter(made: Run, src: Path, dst: Path) -> None:
    odd = os.fsdecode(b"not-utf8-\xff")
    (src / odd).write_text("kept")
    made(src.rename(src.with_name(odd)), dst)
    assert (dst / odd).read_text() == "kept"
    assert tomllib.loads((dst / "ctcli_recipe.toml").read_text())["source"]["name"]


def test_linked_folders_come_along_and_endless_ones_end(made: Run, src: Path, dst: Path) -> None:
    write_checkpoint(src / "a" / "tools", {}, index=False, others={"tool.py": "1"})
    (src / "b").mkdir()
    (src / "b" / "again").symlink_to("../a/tools")
    (src / "b" / "up").symlink_to("..")
    made(src, dst)
    assert (dst / "b" / "again" / "tool.py").read_text() == "1"
    assert not any(path.is_symlink() for path in dst.rglob("*"))


@pytest.mark.parametrize(
    "line", ["x = 2026-01-01", "a.b = 1", '"two words" = 1', "x = nan", "x = [{y = 1}]", "x = 0xf"]
)
def test_any_recipe_leaves_a_readable_one(made: Run, src: Path, dst: Path, line: str) -> None:
    (src / "ctcli_recipe.toml").write_text(f'[[steps]]\nuse = "other"\n{line}\n')
    made(src, dst)
    recipe = tomllib.loads((dst / "ctcli_recipe.toml").read_text())
    assert [step["use"] for step in recipe["steps"]] == ["reindex"]
