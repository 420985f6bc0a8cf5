"""Option types that commands share."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from ctcli.engine.plan import Settings
from ctcli.storage.opening import HUB_ID, local_directory
from ctcli.units import parse_bytes

OFF = "off"
_ON_HUB = "hf://"
_HUB_PANEL = "Hub"


def _size(text: str | int) -> int:
    try:
        return parse_bytes(str(text))
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def _path(text: str) -> str:
    if not text:
        raise typer.BadParameter("an empty path.")
    return text


@dataclass(frozen=True)
class Target:
    """Where the output goes.

    Attributes:
        path: DST, or where it grows if it stays on a hub only.
        repo: the hub repository that it goes to instead of this disk.
    """

    path: Path
    repo: str | None = None


def _repo(text: str) -> str:
    if not HUB_ID.fullmatch(text):
        raise typer.BadParameter(f"{text!r} is no repository: give ORG/NAME.")
    return text


def _target(text: str) -> Target:
    if not text.startswith(_ON_HUB):
        return Target(Path(_path(text)))
    repo = _repo(text.removeprefix(_ON_HUB))
    return Target(Path(repo.replace("/", "--")), repo)


Source = Annotated[
    str,
    typer.Argument(
        metavar="SRC",
        parser=_path,
        help="Checkpoint: a local directory or a hub id (org/name).",
    ),
]
Destination = Annotated[
    Target,
    typer.Argument(
        metavar="DST",
        parser=_target,
        help="Directory to make; it must not exist yet, or be empty. Or hf://ORG/NAME.",
    ),
]


BinFile = Annotated[
    Target,
    typer.Argument(
        metavar="OUT.bin",
        parser=lambda text: Target(Path(_path(str(text)))),
        help="File to make; it must not exist yet.",
    ),
]


Revision = Annotated[
    str | None,
    typer.Option(metavar="REV", show_default="main", help="Branch, tag or commit of a hub SRC."),
]
AsJson = Annotated[
    bool,
    typer.Option("--json", show_default=OFF, help="Print the result as one JSON object on stdout."),
]
Quiet = Annotated[
    bool,
    typer.Option(
        "--quiet", "-q", show_default=OFF, help="Print errors only (and --json's object)."
    ),
]
Workers = Annotated[
    int | None, typer.Option(min=1, metavar="N", show_default="the cores", help="Threads.")
]


def source_directory(source: str, revision: str | None) -> Path | None:
    """The directory that SRC names, or None where it is a hub id; only that has revisions."""
    directory = local_directory(source)
    if directory and revision:
        raise typer.BadParameter("--revision is for hub ids, and SRC is a directory.")
    return directory


@dataclass(frozen=True)
class Shared:
    """The options that every command has which writes one."""

    revision: Revision = None
    num_workers: Workers = None
    max_memory: Annotated[
        int,
        typer.Option(
            parser=_size,
            metavar="SIZE",
            show_default="2GB",
            help="Bytes that all jobs under way may hold together (500MB, 2GiB).",
        ),
    ] = parse_bytes("2GB")
    stream: Annotated[
        bool,
        typer.Option(
            "--stream",
            rich_help_panel=_HUB_PANEL,
            show_default=OFF,
            help="Fetch the shards of a hub SRC while others are worked on, and delete each after "
            "its last use, instead of filling the hub cache.",
        ),
    ] = False
    max_disk: Annotated[
        int | None,
        typer.Option(
            parser=_size,
            metavar="SIZE",
            rich_help_panel=_HUB_PANEL,
            show_default="no limit",
            help="Bytes that fetched shards and output may occupy together.",
        ),
    ] = None
    push: Annotated[
        str | None,
        typer.Option(
            parser=_repo,
            metavar="ORG/NAME",
            rich_help_panel=_HUB_PANEL,
            show_default="none",
            help="Publish the output on a hub, too; nobody sees it there before it is complete.",
        ),
    ] = None
    private: Annotated[
        bool,
        typer.Option(
            "--private",
            rich_help_panel=_HUB_PANEL,
            show_default=OFF,
            help="Make the repository private if it does not exist yet.",
        ),
    ] = False
    branch: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            rich_help_panel=_HUB_PANEL,
            show_default="main",
            help="Branch of the repository to publish on.",
        ),
    ] = "main"
    commit_message: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            rich_help_panel=_HUB_PANEL,
            show_default="one that names ctcli",
            help="Of the commit that publishes.",
        ),
    ] = None
    resume_from_hub: Annotated[
        bool,
        typer.Option(
            "--resume-from-hub",
            rich_help_panel=_HUB_PANEL,
            show_default=OFF,
            help="Continue what a run on another machine pushed before it died.",
        ),
    ] = False
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", show_default=OFF, help="Check everything and say what would be done."
        ),
    ] = False
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite", show_default=OFF, help="Replace DST, once its successor is complete."
        ),
    ] = False
    fsync: Annotated[
        bool,
        typer.Option(
            "--fsync",
            show_default=OFF,
            help="Put each file on the disk before it counts as complete: survives a power cut.",
        ),
    ] = False
    json: AsJson = False
    quiet: Quiet = False

    log_format: Annotated[
        Literal["text", "json"],
        typer.Option(
            show_default="text",
            help="Of progress, warnings and errors on stderr: for people, or one JSON object a "
            "line for job runners.",
        ),
    ] = "text"

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


def cores() -> int:
    """Those that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # fewer than os.cpu_count() in a container
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


MaxShardSize = Annotated[
    int | None,
    typer.Option(
        parser=_size,
        metavar="SIZE",
        show_default="the shards stay",
        help="Lay the checkpoint out anew, in natural order and shards of at most so many bytes of "
        "tensor data (5GB, 300MiB).",
    ),
]
MappingFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        show_default="by model_type",
        help="TOML or JSON that says what embeds, reads and writes, for a model type that is not "
        "known (SpinQuantMapping's and NormMapping's fields).",
    ),
]
Device = Annotated[
    str,
    typer.Option(metavar="NAME", show_default="cpu", help="Where to compute: cpu, cuda, ..."),
]
