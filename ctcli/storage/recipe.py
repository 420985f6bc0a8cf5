"""`ctcli_recipe.toml`: how a checkpoint was made, kept with it.

The standard library reads TOML but does not write it; a recipe needs only tables of strings,
numbers, booleans and lists of them, which is the part of TOML written here (https://toml.io).
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from typing import Any

from ctcli import __version__
from ctcli.checkpoint import RECIPE_NAME, Checkpoint, Step
from ctcli.tensors import SourceFile


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


def read_history(file: SourceFile | None) -> tuple[tuple[Step, ...], list[str]]:
    """The steps that made the source, oldest first, and a warning if its recipe is unreadable."""
    if file is None:
        return (), []
    try:
        recipe = tomllib.loads(file.read(0, file.size).decode())
        return (*map(dict, recipe.get("history", ())), *map(dict, recipe["steps"])), []
    except (ValueError, KeyError, TypeError) as error:
        return (), [f"{RECIPE_NAME} of the source is not readable and not continued: {error}."]


def _table(heading: str, values: Mapping[str, Any]) -> str:
    lines = [f"{key} = {_value(value)}" for key, value in values.items() if value is not None]
    return "\n".join([heading, *lines] if heading else lines) + "\n"


def _value(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_value, value))}]"
    # JSON's strings, numbers and booleans are TOML's, but for the DEL character.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
