"""With --fsync, the order of system calls by which a power cut leaves DST old or new.

Whether a disk keeps what `fsync` was told of is up to the disk. What is up to ctcli is the order:
every file's bytes are on the disk before the journal calls it complete, all files, their folders
and the note of what is about to happen before DST is replaced, and the rename itself before the
run ends.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.fuzzing import checkpoints
from tests.helpers.checkpoints import array, write_checkpoint
from tests.helpers.processes import ctcli_after, environment

# Notes each call, and the path that it concerns.
_RECORD = """
import io, json, os
from ctcli.storage import exchange, writer
log = os.open({log!r}, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
def note(kind, path):
    os.write(log, (json.dumps([kind, os.fsdecode(path)]) + "\\n").encode())
def path_of(descriptor):
    return os.readlink(f"/proc/self/fd/{{descriptor}}")
def after(owner, name, tell):
    real = getattr(owner, name)
    def call(*args):
        result = real(*args)
        tell(*args)
        return result
    setattr(owner, name, call)
after(os, "fsync", lambda fd: note("sync", path_of(fd)))
after(os, "pwritev", lambda fd, *_: note("write", path_of(fd)))
after(os, "copy_file_range", lambda _, fd, *__: note("write", path_of(fd)))
after(os, "rename", lambda one, other: note("publish", other))
after(exchange, "renameat2", lambda one, other: note("publish", other))
after(writer.PartialDirectory, "note_file", lambda _, name, __: note("complete", name))
"""


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("command", ["reindex", "quantize"])
def test_all_is_on_the_disk_before_dst_is_replaced(
    tmp_path: Path, command: str, overwrite: bool
) -> None:
    source, out, log = checkpoints.write(tmp_path / "source"), tmp_path / "out", tmp_path / "log"
    options = ["--fsync", *(["--overwrite"] if overwrite else [])]
    if command == "quantize":
        options += ["--scheme", "FP8_DYNAMIC"]
    if overwrite:
        write_checkpoint(out, {"old.safetensors": {"a": array(3)}})
    words = ctcli_after(_RECORD.format(log=str(log)), command, source, out, *options)
    subprocess.run(words, check=True, capture_output=True, env=environment())
    calls = [tuple(json.loads(line)) for line in log.read_text().splitlines()]
    published = calls.index(("publish", str(out)))
    grown = tmp_path / ".out.ctcli-partial" / "checkpoint"
    for path in out.iterdir():
        written, name = ("write", str(grown / path.name)), path.name
        last_write = len(calls) - 1 - calls[::-1].index(written)
        synced = calls.index(("sync", written[1]))
        assert last_write < synced < calls.index(("complete", name)) < published
    completed = max(i for i, (kind, _) in enumerate(calls) if kind == "complete")
    filled = [grown / "README.md.new"] if command == "quantize" else []
    for place in (*filled, grown, grown.parent / "publishing", grown.parent):
        assert completed < calls.index(("sync", str(place)), completed) < published
    assert ("sync", str(tmp_path)) in calls[published:]
    journal = ("sync", str(grown.parent / "journal"))
    assert calls.count(journal) >= len([*out.iterdir()])


def test_without_fsync_nothing_waits_for_the_disk(tmp_path: Path) -> None:
    source, log = checkpoints.write(tmp_path / "source"), tmp_path / "log"
    words = ctcli_after(_RECORD.format(log=str(log)), "reindex", source, tmp_path / "out")
    subprocess.run(words, check=True, capture_output=True, env=environment())
    assert "sync" not in {json.loads(line)[0] for line in log.read_text().splitlines()}
