"""`ctcli_recipe.toml`: how a checkpoint was made, kept with it.

The standard library reads TOML (https://toml.io) but does not write it.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date, time
from pathlib import Path
from typing import Any

from ctcli import __version__
from ctcli.checkpoint.value import RECIPE_NAME, Checkpoint, StepTable
from ctcli.errors import CtcliError, os_errors_of
from ctcli.lazy.tensors import SourceFile, content_of
from ctcli.storage.llmcompressor import steps_of_yaml

_YAML = (".yaml", ".yml")
_DEEPEST = 50  # tables and lists inside one another; a recipe of ours has four


def encode_recipe(checkpoint: Checkpoint) -> bytes:
    """The recipe of the run that made `checkpoint` out of its source."""
    origin = checkpoint.origin
    source = {"name": origin.name, "commit": origin.commit, "headers_sha256": origin.headers_sha256}
    tables = [
        _table("", {"ctcli": __version__}),
        _table("[source]", source),
        *(_table("[[history]]", step) for step in checkpoint.history),
        *(_table("[[steps]]", step) for step in checkpoint.steps),
    ]
    return "\n".join(tables).encode()


@dataclass(frozen=True)
class Recipe:
    """A recipe as it was read.

    Attributes:
        steps: what to do, in order; `use` names a command, the other keys are its options.
        history: what was done to its source before.
        headers_sha256: which source it was made with, if it was.
    """

    steps: tuple[StepTable, ...]
    history: tuple[StepTable, ...]
    headers_sha256: str | None


def read_recipe(path: Path) -> Recipe:
    """Read a recipe that a user gives: TOML, or llm-compressor's YAML.

    Raises:
        CtcliError: it cannot be read, or is no recipe; lists every reason.
    """
    if path.is_dir():
        raise CtcliError(
            f"{path}: a directory, and no recipe.", "The order is: ctcli run RECIPE.toml SRC DST"
        )
    if not path.exists():
        raise CtcliError(f"{path}: no such file.", f"ctcli run --init SRC > {path} begins one.")
    with os_errors_of(str(path), "reading"):
        content = path.read_bytes()
    if path.suffix in _YAML:
        return Recipe(steps_of_yaml(str(path), content), (), None)
    try:
        recipe = parse_recipe(content)
    except ValueError as error:
        hint = "Correct the file; llm-compressor's recipes are read from files named .yaml."
        raise CtcliError(f"{path}: not valid TOML: {error}.", hint) from error
    if problems := [f"{path}: {problem}." for problem in _problems(recipe)]:
        hint = "Give tables [[steps]], each with `use` and a command's options."
        raise CtcliError(problems, hint)
    source = recipe.get("source", {})
    steps, history = tuple(recipe["steps"]), tuple(recipe.get("history", ()))
    return Recipe(steps, history, source.get("headers_sha256"))


def read_history(file: SourceFile | None) -> tuple[tuple[StepTable, ...], list[str]]:
    """The steps that made the source, oldest first, and a warning if its recipe is unreadable."""
    if file is None:
        return (), []
    try:
        recipe = parse_recipe(content_of(file))
        problems = [*_problems(recipe)]
    except ValueError as error:
        recipe, problems = {}, [str(error)]
    if problems:
        warning = f"{RECIPE_NAME} of the source is not readable and not continued: {problems[0]}."
        return (), [warning]
    return (*recipe.get("history", ()), *recipe["steps"]), []


def parse_recipe(content: bytes) -> dict[str, Any]:
    """A TOML file's tables; some editors put a byte order mark before them.

    Raises:
        ValueError: not UTF-8, not TOML, or nested too deeply.
    """
    try:
        recipe = tomllib.loads(content.decode("utf-8-sig"))
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    inner: list[Any] = [recipe]
    for _ in range(_DEEPEST):
        holders = [part for part in inner if isinstance(part, dict | list)]
        inner = [
            part
            for holder in holders
            for part in (holder.values() if isinstance(holder, dict) else holder)
        ]
    if inner:
        raise ValueError("nested too deeply")
    return recipe


def _problems(recipe: Mapping[str, Any]) -> Iterator[str]:
    if unknown := recipe.keys() - {"ctcli", "source", "history", "steps"}:
        yield f"unknown keys {', '.join(sorted(unknown))}"
    if not isinstance(recipe.get("source", {}), dict):
        yield "source is no table"
    for key in ("steps", "history"):
        tables = recipe.get(key, [])
        if not (isinstance(tables, list) and all(isinstance(table, dict) for table in tables)):
            yield f"{key} are no tables"
    if not recipe.get("steps"):
        yield "it has no steps"


def _table(heading: str, values: Mapping[str, Any]) -> str:
    lines = [f"{_key(key)} = {_value(value)}" for key, value in values.items() if value is not None]
    return "\n".join([heading, *lines] if heading else lines) + "\n"


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _value(key)


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{_key(k)} = {_value(v)}' for k, v in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, float):
        return repr(value)
    # JSON's strings, integers and booleans are TOML's, but for the DEL character; and a name from
    # a file system may not be Unicode.
    text = json.dumps(value, ensure_ascii=False).encode(errors="replace").decode()
    return text.replace("\x7f", "\\u007f")
