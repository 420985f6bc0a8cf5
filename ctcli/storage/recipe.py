"""`ctcli_recipe.toml`: how a checkpoint was made, kept with it.

The standard library reads TOML (https://toml.io) but does not write it.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from datetime import date, time
from typing import Any

from ctcli import __version__
from ctcli.checkpoint import RECIPE_NAME, Checkpoint, Step
from ctcli.tensors import SourceFile, content_of


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
        recipe = tomllib.loads(content_of(file).decode())
        return (*map(dict, recipe.get("history", ())), *map(dict, recipe["steps"])), []
    except (ValueError, KeyError, TypeError) as error:
        return (), [f"{RECIPE_NAME} of the source is not readable and not continued: {error}."]


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
