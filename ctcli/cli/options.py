"""Options that commands share."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, cast

from ctcli.engine.plan import Settings
from ctcli.engine.shares import Share
from ctcli.options import (
    OptionError,
    argument,
    cores,
    memory,
    option,
    revision,
    size,
    subfolder,
    threads,
)
from ctcli.storage.naming import HUB_ID, parse_source

_ON_HUB = "hf://"
on_hub = partial(option, panel="Hub")
_on_output = partial(option, panel="Output")


@dataclass(frozen=True)
class Destination:
    """Where the output goes.

    Attributes:
        path: DST, or where it grows if it stays on a hub only.
        repo: the hub repository that it goes to instead of this disk.
    """

    path: Path
    repo: str | None = None

    def __str__(self) -> str:
        return f"{_ON_HUB}{self.repo}" if self.repo else str(self.path)


def as_path(text: str) -> str:
    """What names something.

    Raises:
        OptionError: it is empty.
    """
    if not text:
        raise OptionError("an empty path.")
    return text


def _directory(text: str) -> Destination:
    return Destination(Path(as_path(text)))


def _file(text: str) -> Destination:
    if text.endswith("/"):
        raise OptionError(f"{text!r}: a folder; name the file in it, such as {text}model.bin.")
    if text.lower().endswith((".gguf", ".safetensors")):
        raise OptionError(f"{text!r}: what is written is llama2.c's format; name it .bin.")
    return Destination(Path(as_path(text)))


def _repo(text: str) -> str:
    if not HUB_ID.fullmatch(text):
        raise OptionError(f"{text!r} is no repository: give ORG/NAME.")
    return text


def as_target(text: str) -> Destination:
    """DST, on this disk or on a hub.

    Raises:
        OptionError: it is neither.
    """
    if not text.startswith(_ON_HUB):
        if text.startswith(("hf:", "http://", "https://")):
            raise OptionError(f"{text!r}: a repository is named hf://ORG/NAME.")
        return _directory(text)
    repo = _repo(text.removeprefix(_ON_HUB))
    return Destination(Path(repo.replace("/", "--")), repo)


def _share(text: str) -> Share:
    number, slash, count = text.partition("/")
    if slash and number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count):
        return Share(int(number), int(count))
    raise OptionError(f"{text!r} is no part: give I/N, such as 1/4 to 4/4.")


def _cluster(text: str) -> str:
    kind, _, count = text.partition(":")
    is_local = kind == "local" and count.isdecimal() and int(count) > 0
    if is_local or "://" in text or Path(text).is_file():
        return text
    raise OptionError(f"{text!r}: give tcp://HOST:PORT, a scheduler file that exists, or local:N.")


def source() -> str:
    """SRC."""
    text = "Checkpoint: a directory, or on a hub org/name, org/name@revision or its address."
    return cast(str, argument("SRC", text, parse=as_path))


def as_json() -> bool:
    """The option of commands that show a result."""
    text = "Print the result as one JSON object on stdout."
    return option(False, text, panel="Messages")


def quiet(text: str = "Print errors only (and --json's object).") -> bool:
    """The option of commands that show progress."""
    return option(False, text, flags="--quiet -q", panel="Messages")


def cluster(do: str) -> str | None:
    """The option of commands whose work the machines of a cluster divide by files."""
    return option(
        None,
        f"Have the workers of a Dask cluster {do} the files: a scheduler's address or file, or "
        "local:N for N processes here.",
        "this process",
        metavar="WHERE",
        parse=_cluster,
        panel="Machine",
    )


@dataclass(frozen=True)
class Places:
    """What a command reads, and the checkpoint that it makes."""

    source: str = source()
    destination: Destination = argument(
        "DST",
        "Directory to make; it must not exist yet, or be empty. Or hf://ORG/NAME.",
        parse=as_target,
    )


@dataclass(frozen=True)
class FilePlaces(Places):
    """What a command reads, and the one file that it makes."""

    destination: Destination = argument(
        "OUT.bin", "File to make; it must not exist yet.", parse=_file
    )


def source_directory(source: str, revision: str | None) -> Path | None:
    """The directory or file that SRC names, or None where it is on a hub.

    Raises:
        CtcliError: it names nothing.
        UsageError: a directory with a revision.
    """
    return parse_source(source, revision).path


@dataclass(frozen=True)
class Shared:
    """The options that every command has which writes one."""

    revision: str | None = revision()
    subfolder: str | None = subfolder()
    num_workers: int | None = threads()
    max_memory: int = memory()
    stream: bool = on_hub(
        False,
        "Fetch the shards of a hub SRC while others are worked on, and delete each after its last "
        "use, instead of filling the hub cache.",
    )
    max_disk: int | None = size(
        None,
        "Bytes that fetched shards and output may occupy together.",
        "no limit",
        panel="Hub",
    )
    push: str | None = on_hub(
        None,
        "Publish the output on a hub, too; nobody sees it there before it is complete.",
        metavar="ORG/NAME",
        parse=_repo,
    )
    private: bool = on_hub(False, "Make the repository private if it does not exist yet.")
    branch: str = on_hub("main", "Branch of the repository to publish on.", metavar="NAME")
    commit_message: str | None = on_hub(
        None, "Of the commit that publishes.", "one that names ctcli", metavar="TEXT"
    )
    include: tuple[str, ...] = on_hub(
        (),
        "File to publish although no model needs its kind; a secret by its whole path. Repeatable.",
        "kinds that models need",
        metavar="PATTERN",
    )
    resume_from_hub: bool = on_hub(
        False, "Continue what a run on another machine pushed before it died."
    )
    part: Share | None = option(
        None,
        "Make the I-th of N equal shares of the files; any machines, in any order, that see DST. "
        "The last one publishes.",
        "all of it",
        metavar="I/N",
        parse=_share,
        panel="Machine",
    )
    cluster: str | None = cluster("make")
    dry_run: bool = _on_output(False, "Check everything and say what would be done.")
    overwrite: bool = _on_output(False, "Replace DST, once its successor is complete.")
    fsync: bool = _on_output(
        False, "Put each file on the disk before it counts as complete: survives a power cut."
    )
    json: bool = as_json()
    quiet: bool = quiet()
    log_format: Literal["text", "json"] = option(
        "text",
        "Of progress, warnings and errors on stderr: for people, or one JSON object a line for job "
        "runners.",
        panel="Messages",
    )

    def __post_init__(self) -> None:
        """Refuse two ways at once."""
        if self.part and self.cluster:
            raise OptionError("--part and --cluster are two ways to the same; give one.")

    def settings(self, link: bool, keeps: bool) -> Settings:
        """These options as the engine takes them."""
        return Settings(
            workers=self.num_workers or cores(),
            max_memory=self.max_memory,
            overwrite=self.overwrite,
            fsync=self.fsync,
            link=link,
            max_disk=self.max_disk,
            keeps=keeps,
        )
