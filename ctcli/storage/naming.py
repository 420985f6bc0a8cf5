"""What SRC names: a directory or a weights file here, or a model on a hub, as people write it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from ctcli.errors import CtcliError, UsageError, os_errors_of

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_ON_HUB = "hf://"
_NAMED = re.compile(rf"(?P<repo>{HUB_ID.pattern})(?:@(?P<revision>[^/@]+))?(?:/(?P<folder>.+))?")
_OTHER_KINDS = ("datasets", "spaces", "collections", "buckets")
_PAGE = re.compile(r"(?P<kind>tree|blob|resolve|commit)/(?P<revision>[^/]+)(?:/(?P<rest>.*))?")
_HINT = "Name a directory, or a hub id such as org/name."
_WEIGHTS = ".safetensors"

# The first bytes of files that are taken for weights: what they are, and what to do.
_HEADS: tuple[tuple[bytes, str, str], ...] = (
    (
        b"version https://git-lfs",
        "a Git LFS pointer: its content was not downloaded",
        "Run `git lfs pull` in its folder, or give the model's hub id.",
    ),
    (
        b"GGUF",
        "a GGUF file, which llama.cpp reads",
        "Give the safetensors checkpoint that it was made from.",
    ),
    (
        b"PK\x03\x04",
        "a PyTorch file of pickled weights",
        "Convert it first: load the model in transformers and save_pretrained it.",
    ),
    (b"<!DOCTYPE", "a web page", "Download the file behind the page, or give the model's hub id."),
    (b"<html", "a web page", "Download the file behind the page, or give the model's hub id."),
)


@dataclass(frozen=True)
class SourceName:
    """What a SRC names.

    Attributes:
        text: as it was given.
        path: a directory or a weights file on this machine; None: it is on a hub.
        repo: `org/name` on a hub.
        revision: of the repository, where one was given.
        folder: inside the repository; empty: its top.
    """

    text: str
    path: Path | None
    repo: str = ""
    revision: str | None = None
    folder: str = ""

    @property
    def elsewhere(self) -> str:
        """What names the same, but for the revision, in another current directory or machine."""
        return str(self.path.resolve()) if self.path else f"{_ON_HUB}{self.repo}/{self.folder}"


def parse_source(text: str, revision: str | None = None, folder: str | None = None) -> SourceName:
    """Read what was given as SRC; looks at the file system, and at no hub.

    Args:
        text: a path, `org/name`, `org/name@revision`, `hf://org/name` or a model page's address.
        revision: of the repository, given apart.
        folder: inside SRC, given apart.

    Raises:
        CtcliError: it names nothing.
        UsageError: things that do not go together.
    """
    path = _existing(text)
    if path is not None:
        if revision:
            raise UsageError("--revision is for hub ids, and SRC is a directory.", "Leave it out.")
        inside = path / folder if folder else path
        if not inside.exists():
            raise CtcliError(f"{text}: it has no folder {folder}.", _near(str(inside)) or _HINT)
        return SourceName(text, inside)
    found = _on_hub(text)
    if found is None:
        raise CtcliError(f"{text}: no such directory.", _near(text) + _HINT)
    if revision and found.revision and revision != found.revision:
        raise UsageError(
            f"--revision {revision}: SRC names the revision {found.revision}.", "Give one of them."
        )
    return SourceName(
        text, None, found.repo, revision or found.revision, (folder or found.folder).strip("/")
    )


def _existing(text: str) -> Path | None:
    path = Path(text)
    try:
        if path.is_dir():
            return path
        if not path.exists():
            return None
    except (OSError, ValueError):  # a name that no file can have
        return None
    if path.suffix == _WEIGHTS:
        return path
    if path.is_file():
        with os_errors_of(text, "reading"), path.open("rb") as file:
            head = file.read(32)
        if said := told_by(head):
            raise CtcliError(f"{text}: {said[0]}.", said[1])
    raise CtcliError(f"{text}: not a directory.", "Name the directory that holds it.")


def _on_hub(text: str) -> SourceName | None:
    if text.startswith(("http://", "https://")):
        return _of_page(text)
    named = _NAMED.fullmatch(text.removeprefix(_ON_HUB).rstrip("/"))
    if named is None or (named["folder"] and not text.startswith(_ON_HUB)):
        return None
    return SourceName(text, None, named["repo"], named["revision"], named["folder"] or "")


def _of_page(text: str) -> SourceName:
    """A model page's address: `https://hub/org/name/tree/main/folder`."""
    parts = [part for part in urlsplit(text).path.split("/") if part]
    if parts[:1] == ["models"]:
        del parts[0]
    repo, rest = "/".join(parts[:2]), "/".join(parts[2:])
    page = _PAGE.fullmatch(rest)
    if not HUB_ID.fullmatch(repo) or parts[0] in _OTHER_KINDS or (rest and not page):
        raise CtcliError(f"{text}: not the address of a model's page.", _HINT)
    if page is None:
        return SourceName(text, None, repo)
    folder = unquote(page["rest"] or "")
    if page["kind"] in ("blob", "resolve"):  # of a file
        folder = folder.rpartition("/")[0]
    # The slashes of a revision such as refs/pr/1 are quoted.
    return SourceName(text, None, repo, unquote(page["revision"]), folder)


def told_by(head: bytes) -> tuple[str, str] | None:
    """What a file is whose first bytes are no safetensors file's, and what to do; None: unknown."""
    return next(((what, hint) for start, what, hint in _HEADS if head.startswith(start)), None)


def near_paths(text: str) -> list[str]:
    """Directories and files here whose path is like that of one that is not there."""
    path = Path(text)
    try:
        names = {each.name: each for each in _siblings(path)}
    except (OSError, ValueError):
        return []
    near = difflib.get_close_matches(path.name, names, n=3, cutoff=0.7)
    return [str(names[name]) for name in near]


def _siblings(path: Path) -> Iterator[Path]:
    """What lies beside a path, where a checkpoint may be."""
    for each in path.parent.iterdir():
        if not each.name.startswith(".") and (each.is_dir() or each.suffix == _WEIGHTS):
            yield each


def _near(text: str) -> str:
    near = near_paths(text)
    return f"Near names: {', '.join(near)}. " if near else ""
