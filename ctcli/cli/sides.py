"""Both sides of `verify`: the checkpoint, and what its source should have become."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from ctcli.checkpoint.value import Checkpoint
from ctcli.cli.recipes import make_steps
from ctcli.errors import CtcliError
from ctcli.storage.naming import parse_source
from ctcli.storage.recipe import read_recipe
from ctcli.units import Advance

# These steps change no value, or are what the comparison is about.
_NOT_REPLAYED = ("reindex", "quantize", "export-bin")


def directory_of(
    name: str,
    commit: str | None,
    progress: Callable[[str, int], AbstractContextManager[Advance]],
) -> tuple[Path, str | None]:
    """What to verify, on this machine: of a hub, in its cache; and its commit there.

    Args:
        name: DST.
        commit: of a DST on a hub, where it is known.
        progress: is told of bytes that were downloaded.

    Raises:
        CtcliError: there is none, or the hub failed.
    """
    place = parse_source(name, commit)
    if place.path:
        return place.path, None
    from ctcli.storage.hub.files import list_hub, snapshot_of

    files, commit = list_hub(place.repo, place.revision, place.folder)
    with progress("download", sum(file.fetch_bytes for file in files.values())) as told:
        return snapshot_of(files, told), commit


def expected_checkpoint(source: Checkpoint, recipe: Path) -> Checkpoint:
    """The source after what a recipe does to it, but for quantizing.

    Args:
        source: where the recipe's steps begin, or those of its history.
        recipe: a file, which need not be there.

    Raises:
        CtcliError: a step cannot be repeated.
    """
    try:
        read = read_recipe(recipe)
    except CtcliError:
        return source  # there is none; or verifying finds out what is wrong with it
    # The source may be further back; what was done to it already is its own history.
    every, done = (*read.history, *read.steps), source.history
    steps = every[len(done) :] if every[: len(done)] == done else read.steps
    todo = [
        {key: value for key, value in step.items() if key not in ("device", "max_shard_size")}
        for step in steps
        if step.get("use") not in _NOT_REPLAYED
    ]
    for _, step in make_steps(todo):
        made, _ = step.rewrite(source)
        assert isinstance(made, Checkpoint), "what makes a file has no recipe"
        source = made
    return source
