"""The journal of a run: what was noted is found again, and a damaged end costs only itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctcli.storage.journal import JobRecord, Journal, line_of, read_journal
from tests.helpers.processes import HANG_SECONDS, environment

NAMES = st.text(min_size=1)
FLOATS = st.lists(st.floats(allow_nan=False), max_size=2)
PLACES = st.tuples(st.text(), st.integers(0, 2**63))
PARTS = st.builds(JobRecord, NAMES, PLACES, st.integers(1, 2**40), FLOATS)


@st.composite
def journals(draw: st.DrawFn) -> Journal:
    complete = draw(st.dictionaries(NAMES, st.dictionaries(st.text(), FLOATS, max_size=2)))
    parts = draw(st.lists(PARTS, max_size=4))
    return Journal(complete, {(part.file, part.place): part for part in parts})


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("journal") / "journal"


@given(journals(), st.text())
def test_what_was_noted_is_read_under_the_same_key_only(
    path: Path, journal: Journal, key: str
) -> None:
    path.write_text("".join(journal.lines(key)), encoding="utf-8")
    assert read_journal(path, key) == journal
    assert read_journal(path, f"{key}.") == Journal({}, {})


@given(journals(), st.floats(0, 1))
def test_a_torn_end_costs_what_it_held(path: Path, journal: Journal, share: float) -> None:
    text = "".join(journal.lines("key"))
    kept = text[: int(share * len(text))]
    path.write_text(kept, encoding="utf-8")
    found = read_journal(path, "key")
    assert journal.contains(found)
    assert len(found.complete) + len(found.parts) == max(0, kept.count("\n") - 1)


def test_a_journal_that_is_no_journal_is_empty(path: Path) -> None:
    deep = f"{line_of('key')}{'[' * 100_000}\n"
    for text in ("", "\n", "[]\n", deep, f"{line_of('key')}1\n", f"{line_of('key')}[1, 2, 3]\n"):
        path.write_text(text)
        assert read_journal(path, "key") == Journal({}, {})
    assert read_journal(path.with_name("absent"), "key") == Journal({}, {})


# No file of the process becomes larger than its journal is when a part is to be noted.
NOTE_ON_A_FULL_DISK = """
import resource, sys
from pathlib import Path
from ctcli.errors import CtcliError
from ctcli.storage.destination import DIRECTORY
from ctcli.storage.journal import JobRecord
from ctcli.storage.leftover import look_for_leftover
from ctcli.storage.writer import open_partial
out = Path(sys.argv[1])
leftover = look_for_leftover(out, "key", {}, {}, DIRECTORY)
try:
    with open_partial(out, "key", leftover, DIRECTORY, fsync=False, overwrite=False) as partial:
        nbytes = (partial.folder.parent / "journal").stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, nbytes))
        partial.note_parts([JobRecord("model.safetensors", ("", 0), 4)])
except CtcliError as error:
    print(error)
"""


def test_a_disk_that_is_full_when_a_part_is_noted_is_told_of_once(tmp_path: Path) -> None:
    """What could not be written is in the file's buffer still when it is closed."""
    done = subprocess.run(
        [sys.executable, "-c", NOTE_ON_A_FULL_DISK, tmp_path / "out"],
        capture_output=True,
        text=True,
        check=False,
        env=environment(),
        timeout=HANG_SECONDS,
    )
    assert (done.returncode, done.stderr) == (0, "")
    problem, _ = done.stdout.splitlines()
    assert problem.startswith("model.safetensors: the disk ")
    assert "is full" in problem
