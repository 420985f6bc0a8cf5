"""The journal on a hub: which files of an output lie on the working branch.

Lines of JSON: the run's key, then name, size, SHA-256 and measured errors of each file.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass

from ctcli.storage.hub.files import HubFile
from ctcli.storage.journal import ErrorSums, line_of

JOURNAL = "ctcli_journal.jsonl"


@dataclass(frozen=True)
class Pushed:
    """A file that lies on the hub.

    Attributes:
        name: path inside the checkpoint.
        size: length in bytes.
        sha256: hash of its content, hexadecimal.
        errors: what its derivation measured, for every module that was computed.
    """

    name: str
    size: int
    sha256: str
    errors: ErrorSums


def encode_pushed(key: str, files: Iterable[Pushed]) -> bytes:
    """The journal's content."""
    return "".join((line_of(key), *(line_of(astuple(file)) for file in files))).encode()


def decode_pushed(content: bytes, key: str, there: Mapping[str, HubFile]) -> dict[str, Pushed]:
    """The files that a journal names and that are there, by name.

    Args:
        content: the journal; one that is damaged, or another key's, names nothing.
        key: the run's.
        there: what lies beside the journal.
    """
    try:
        first, *entries = map(json.loads, content.decode().splitlines())
        if first != key:
            return {}
        files = [Pushed(name, size, sha256, dict(errors)) for name, size, sha256, errors in entries]
        return {file.name: file for file in files if _is(file, there.get(file.name))}
    except (ValueError, TypeError, RecursionError):
        return {}


def _is(file: Pushed, found: HubFile | None) -> bool:
    if found is None or found.size != file.size or found.checksum is None:
        return False
    return found.checksum.is_git or found.checksum.digest == file.sha256
