"""What the options of all rewrites share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

from ctcli.errors import CtcliError, os_errors_of
from ctcli.options import option, size
from ctcli.storage.destination import DIRECTORY, Form
from ctcli.storage.steps import record
from ctcli.storage.strict_json import parse_json


def shard_size() -> int | None:
    """The option of commands that can lay a checkpoint out anew."""
    return size(
        None,
        "Lay the checkpoint out anew, in natural order and shards of at most so many bytes of "
        "tensor data (5GB, 300MiB).",
        "the shards stay",
        is_common=True,
        panel="Output",
    )


def ct_version() -> Literal["0.19", "0.20"]:
    """The option of commands that write compressed-tensors' config."""
    text = "Spelling of config.json; compressed-tensors 0.20 leaves out what is null."
    words = "0.19, for vLLM 0.32"
    return option("0.19", text, words, recorded="unless default", panel="Output")


def device() -> str:
    """The option of commands that compute."""
    text = "Where to compute: cpu, cuda, ..."
    return option(
        "cpu", text, metavar="NAME", is_common=True, recorded="unless default", panel="Machine"
    )


@dataclass(frozen=True)
class RewriteOptions:
    """The options of a command that makes a checkpoint of another.

    Making an instance reads the files that options name and checks all that can be checked without
    the checkpoint.

    Raises:
        OptionError: options do not go together.
        CtcliError: a file cannot be used, or the device is not there.
    """

    form: ClassVar[Form] = DIRECTORY  # of what the command makes

    @property
    def links(self) -> bool:
        """Whether shards that do not change become hard links."""
        return False

    @cached_property
    def recipe(self) -> Mapping[str, Any]:
        """The options as the keys of a recipe's step."""
        return record(self)


def read_json(path: Path) -> Mapping[str, Any]:
    """The object in a JSON file.

    Raises:
        CtcliError: it cannot be read, or holds something else.
    """
    with os_errors_of(str(path), "reading"):
        content = path.read_bytes()
    try:
        parsed = parse_json(content)
    except ValueError as error:
        raise CtcliError(f"{path}: not JSON: {error}.", "Correct the file.") from error
    if not isinstance(parsed, dict):
        raise CtcliError(f"{path}: no JSON object.", "Correct the file.")
    return parsed


def check_device(device: str) -> None:
    """Refuse a device that torch cannot use here.

    Raises:
        CtcliError: says why.
    """
    if device == "cpu":
        return
    import torch

    try:
        torch.zeros(1, device=device).item()  # "meta" has no numbers
    except (RuntimeError, AssertionError) as error:
        first_line = str(error).partition("\n")[0]
        raise CtcliError(
            f"--device {device}: torch cannot use it: {first_line}", "Give --device cpu."
        ) from error
