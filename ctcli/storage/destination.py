"""Where the output goes: what may be replaced, and what room there is."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Protocol

from ctcli.errors import CtcliError, os_errors_of
from ctcli.storage.exchange import exchange

_HINT_ELSEWHERE = "Choose another DST."
_WEIGHTS, _OF_A_CHECKPOINT = (".safetensors", ".index.json"), ("config.json", "ctcli_recipe.toml")


def partial_of(destination: Path) -> Path:
    """The directory in which DST grows."""
    destination = destination.resolve()
    return destination.with_name(f".{destination.name}.ctcli-partial")


def stream_folder_of(destination: Path) -> Path:
    """The directory that streamed weights files pass through."""
    return partial_of(destination) / "source"


class Form(Protocol):
    """What DST becomes.

    Attributes:
        is_checkpoint: whether rewrites can go on with it, and a hub take it.
    """

    is_checkpoint: bool

    def check(self, destination: Path, overwrite: bool) -> None:
        """Refuse an existing DST that is of the wrong kind, or must not be replaced."""

    def publish(self, made: Path, destination: Path, replaced: Path | None) -> None:
        """Make DST of what was made in a folder beside it.

        Args:
            made: the folder; afterwards, it may hold what DST was.
            destination: DST.
            replaced: where an existing DST may go for a moment; None: it must not be replaced.
        """

    def becomes(self, made: Path, destination: Path) -> Path:
        """What of the folder becomes DST."""

    def home(self, destination: Path) -> Path:
        """The folder that the files in `made` lie in once they are published."""


def check_place(destination: Path, source: Path | None) -> None:
    """Refuse a DST that is SRC, inside it or around it, or that no file system could hold.

    Args:
        destination: what to make.
        source: the source directory, if it is a local one.
    """
    with os_errors_of(str(destination), "opening"):
        try:
            target = destination.resolve()
        except RuntimeError as error:  # a link to itself
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP)) from error
        if not target.name:
            raise CtcliError(f"{destination}: the root cannot be replaced.", _HINT_ELSEWHERE)
        destination.exists()
        partial_of(destination).exists()  # its name is longer, perhaps too long
    if source:
        _check_apart(destination, target, source.resolve())


def check_destination(
    destination: Path, overwrite: bool, form: Form, is_published: Callable[[], bool]
) -> None:
    """Refuse a DST that cannot be published to, before any work is done.

    Args:
        destination: what to make.
        overwrite: whether a DST with content may be replaced.
        form: what DST is to become.
        is_published: whether DST may be what an earlier run made of the same plan.
    """
    if destination.exists() and not is_published():
        form.check(destination, overwrite)
    parent = _nearest_existing(destination.resolve().parent)
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise CtcliError(
            f"{destination}: cannot write into {parent}.",
            "Check its permissions, or choose another DST.",
        )


def check_sources(destination: Path, sources: Iterable[Path]) -> None:
    """Refuse to replace a directory that files of SRC really lie in, behind links.

    Raises:
        CtcliError: lists them all.
    """
    target = destination.resolve()
    problems = [
        f"{destination}: {path.name} of SRC is a link into DST."
        for path in sources
        if path.resolve().is_relative_to(target)
    ]
    if problems:
        raise CtcliError(problems, _HINT_ELSEWHERE)


def _check_apart(destination: Path, target: Path, source: Path) -> None:
    if target == source:
        raise CtcliError(f"{destination}: DST is SRC.", _HINT_ELSEWHERE)
    if target.is_relative_to(source):
        raise CtcliError(f"{destination}: DST lies inside SRC.", _HINT_ELSEWHERE)
    if source.is_relative_to(target):
        raise CtcliError(f"{destination}: SRC lies inside DST.", _HINT_ELSEWHERE)


class _Directory:
    """A checkpoint: a directory that replaces an empty one, or by `--overwrite` a checkpoint."""

    is_checkpoint = True

    def check(self, destination: Path, overwrite: bool) -> None:
        """See `Form`."""
        if not destination.is_dir():
            raise CtcliError(f"{destination}: a file of this name exists.", _HINT_ELSEWHERE)
        with os_errors_of(str(destination), "reading"):
            names = sorted(path.name for path in destination.iterdir())
        is_one = any(name in _OF_A_CHECKPOINT or name.endswith(_WEIGHTS) for name in names)
        if names and not is_one:
            others = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
            raise CtcliError(
                f"{destination}: DST exists, and holds no checkpoint to replace: {others}.",
                "Move it away, or choose another DST.",
            )
        if names and not overwrite:
            raise CtcliError(
                f"{destination}: DST exists and is not empty.",
                "Give --overwrite to replace it, or choose another DST.",
            )
        if os.path.ismount(destination.resolve()):
            raise CtcliError(
                f"{destination}: a mount point cannot be replaced.", "Name a directory inside it."
            )

    def publish(self, made: Path, destination: Path, replaced: Path | None) -> None:
        """See `Form`."""
        if replaced is None or not destination.exists():
            made.rename(destination)
        elif not exchange(made, destination):
            _replace_in_two_steps(made, destination, replaced)

    def becomes(self, made: Path, destination: Path) -> Path:  # noqa: ARG002
        """See `Form`."""
        return made

    def home(self, destination: Path) -> Path:
        """See `Form`."""
        return destination


def _replace_in_two_steps(made: Path, destination: Path, replaced: Path) -> None:
    """Rename DST out of the way, then what was made to DST; or put DST back.

    A process that is killed between the two leaves no DST; the next one puts it back.
    """
    destination.rename(replaced)
    try:
        made.rename(destination)
    except BaseException:
        replaced.rename(destination)
        raise


class _OneFile:
    """A file, beside which others go."""

    is_checkpoint = False

    def check(self, destination: Path, overwrite: bool) -> None:
        """See `Form`."""
        if not destination.is_file():
            raise CtcliError(f"{destination}: no file, but it exists.", "Name a file to make.")
        if not overwrite:
            raise CtcliError(
                f"{destination}: DST exists.",
                "Give --overwrite to replace it, or choose another DST.",
            )

    def publish(self, made: Path, destination: Path, replaced: Path | None) -> None:  # noqa: ARG002
        """See `Form`. DST comes last: once it is there, all is; if it cannot come, nothing is.

        A process that is killed between leaves new files beside an old DST.
        """
        undo: list[Callable[[], object]] = []
        others = [path for path in made.iterdir() if path.name != destination.name]
        try:
            for path in others:
                beside = destination.with_name(path.name)
                undo.append(_way_back(path, beside))
                path.replace(beside)
            (made / destination.name).replace(destination)
        except BaseException:
            for step in undo:
                with suppress(OSError):
                    step()
            raise

    def becomes(self, made: Path, destination: Path) -> Path:
        """See `Form`."""
        return made / destination.name

    def home(self, destination: Path) -> Path:
        """See `Form`."""
        return destination.parent


def _way_back(made: Path, beside: Path) -> Callable[[], object]:
    """What undoes that a file beside DST was made, or replaced."""
    if not beside.exists():
        return partial(beside.replace, made)
    before = made.with_name(f".{made.name}.before")
    before.unlink(missing_ok=True)
    try:
        os.link(beside, before)
    except OSError:  # there are file systems without links
        shutil.copy2(beside, before)
    return partial(before.replace, beside)


DIRECTORY: Form = _Directory()
ONE_FILE: Form = _OneFile()


def check_beside(destination: Path, contents: Mapping[str, bytes], overwrite: bool) -> None:
    """Refuse to replace files beside DST, unless they are already what they would become.

    Args:
        destination: DST, a file.
        contents: what the files beside it will hold, by name.
        overwrite: whether they may be replaced.

    Raises:
        CtcliError: lists them all.
    """
    problems = []
    for name, content in contents.items():
        path = destination.resolve().with_name(name)
        with os_errors_of(str(path), "reading"):
            same = path.is_file() and (overwrite or path.read_bytes() == content)
            if path.exists() and not same:
                problems.append(f"{path}: it exists and would be replaced.")
    if problems:
        raise CtcliError(problems, "Give --overwrite to replace it, or choose another folder.")


def free_bytes(path: Path) -> int:
    """Bytes that can still be written to the file system of `path`, which need not exist yet."""
    return shutil.disk_usage(_nearest_existing(path.resolve())).free


def device_of(path: Path) -> int:
    """The file system that `path` lies on, or will lie on once it is made."""
    return _nearest_existing(path.resolve()).stat().st_dev


def _nearest_existing(path: Path) -> Path:
    return next(folder for folder in (path, *path.parents) if folder.exists())
