"""A checkpoint that several processes verify: what they have to agree on, and what each does.

The unit is a name of weights files: the checks whose largest tensors lie in a file of that name,
and the hashes of the checkpoint's file of that name.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256

from ctcli.lazy.nodes import all_nodes
from ctcli.storage.weights import some_of
from ctcli.units import Advance
from ctcli.verifying.checks import Seen
from ctcli.verifying.manifest import Manifest, hash_files
from ctcli.verifying.options import VerifyOptions
from ctcli.verifying.scanning import Scanned, scan_all
from ctcli.verifying.subject import Subject


@dataclass(frozen=True)
class View:
    """What a process sees of DST and SRC, so that a difference can be named.

    Attributes:
        key: of all checks.
        files: size and time of change of each file, by whose it is and its name; of a file on a
            hub, whose commit is known, the size alone.
    """

    key: str
    files: Mapping[tuple[str, str], tuple[int, str]]

    def differences(self, other: View) -> list[str]:
        """Where another one differs, a sentence each; none if they are equal."""
        found = [*self._differences(other)]
        if self.key != other.key and not found:
            return ["it would check something else."]
        return found

    def _differences(self, other: View) -> Iterator[str]:
        for owner in ("DST", "SRC"):
            there, here = (
                {name: seen for (whose, name), seen in view.files.items() if whose == owner}
                for view in (self, other)
            )
            if missing := sorted(there.keys() - here.keys()):
                yield f"{owner}: it has no {some_of(missing)}."
            if extra := sorted(here.keys() - there.keys()):
                yield f"{owner}: it has {some_of(extra)}, too."
            shared = sorted(there.keys() & here.keys())
            if changed := [name for name in shared if there[name] != here[name]]:
                yield f"{owner}: another size or time of change of {some_of(changed)}."


def view_of(subject: Subject, is_on_hub: bool) -> View:
    """What this process sees.

    Args:
        subject: the checkpoint.
        is_on_hub: whether it lies in a hub's cache.
    """
    nodes = all_nodes([check.node for check in subject.checks])
    read = {tensor.file for node in nodes for tensor in node.reads}
    own, source = subject.snapshot.files, subject.source
    files = {
        ("DST", name): (file.size, "" if is_on_hub else file.stamp) for name, file in own.items()
    }
    for file in read:
        if own.get(file.name) is not file:
            stamp = "" if source and source.origin.commit else file.stamp
            files["SRC", file.name] = file.size, stamp
    digest = sha256()
    for node in nodes:
        digest.update(f"{node.key}\0{node.shape}".encode())
        for tensor in node.reads:
            digest.update(f"\0{tensor.file.name}\0{tensor.start}\0{tensor.spec}".encode())
    return View(digest.hexdigest(), files)


def names_of(subject: Subject) -> list[str]:
    """The names of files that the work is divided by."""
    names = {check.place[0] for check in subject.checks} | {file.name for file in subject.hashed}
    return sorted(names)


@dataclass(frozen=True)
class Part:
    """What was seen by one process of some files.

    Attributes:
        seen: by the key of the check's node.
        hashes: of the files whose hashes are asked for.
    """

    seen: Mapping[str, Seen]
    hashes: Manifest


def look_at_files(
    subject: Subject,
    names: Collection[str],
    options: VerifyOptions,
    workers: int,
    advance: Advance,
) -> Part:
    """Do a part of what `scan_here` does.

    Args:
        subject: the checkpoint.
        names: some of `names_of`.
        options: how.
        workers: threads.
        advance: is told bytes that were read.

    Raises:
        CtcliError: see `scan_all`.
    """
    checks = [check for check in subject.checks if check.place[0] in names]
    results = scan_all(checks, workers, options.max_memory, advance)
    files = [file for file in subject.hashed if file.name in names]
    hashes = hash_files(files, subject.snapshot, workers, advance)
    return Part({check.node.key: seen for check, seen in results}, hashes)


def together(subject: Subject, parts: Sequence[Part]) -> Scanned:
    """What was seen of all files."""
    seen = {key: each for part in parts for key, each in part.seen.items()}
    files = {name: digest for part in parts for name, digest in part.hashes.files.items()}
    tensors = {name: text for part in parts for name, text in part.hashes.tensors.items()}
    return Scanned(
        [(check, seen[check.node.key]) for check in subject.checks],
        Manifest(dict(sorted(files.items())), dict(sorted(tensors.items()))),
    )
