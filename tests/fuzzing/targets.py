"""What reads input from strangers, each as a function of bytes."""

from __future__ import annotations

import gc
import io
import json
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import typer.main

from ctcli import __main__ as process
from ctcli.errors import CtcliError
from ctcli.interrupts import Interrupts
from tests.fuzzing.checkpoints import CONFIG, CONFIG_GROUPS, MAPPING, RECIPE, TRANSFORM, write
from tests.helpers.checkpoints import write_raw

CORPUS = Path(__file__).parent / "corpus"  # what was found once
# Typer takes half the time of a dry run to make its commands.
_typer: Any = typer.main
_typer.get_command = cache(typer.main.get_command)
Read = Callable[[Path, bytes], None]


class UnexpectedError(Exception):
    """A command ended in something else than its expected error."""


@dataclass(frozen=True)
class Target:
    """Something that reads input.

    Attributes:
        seeds: sound inputs to begin with.
        read: reads an input, in a folder that holds a checkpoint `source`.
    """

    seeds: tuple[bytes, ...]
    read: Read


def run(*words: str | Path) -> str:
    """Run `ctcli` in this process, and return what it says.

    Raises:
        Exception: what no command should end in.
        UnexpectedError: an exit status or words that no command has.
    """
    out, err, status = io.StringIO(), io.StringIO(), 0
    leave, argv = process._leave, sys.argv
    setattr(process, "_leave", sys.exit)  # noqa: B010 (it does not return)
    sys.argv = ["ctcli", *map(str, words)]
    try:
        with redirect_stdout(out), redirect_stderr(err):
            process._run(Interrupts())
    except SystemExit as done:
        status = int(done.code or 0)
    finally:
        setattr(process, "_leave", leave)  # noqa: B010
        sys.argv = argv
        gc.enable()
    said = out.getvalue() + err.getvalue()
    if status not in (0, 1, 2, 3) or "Traceback" in said or "\x1b" in said:
        raise UnexpectedError(f"{status}: {said[-2000:]}")
    return said


def _in_source(name: str, *commands: tuple[str, ...]) -> Read:
    """Commands on a checkpoint of which one file is the input."""

    def read(folder: Path, content: bytes) -> None:
        path = folder / "source" / name
        kept = path.read_bytes() if path.exists() else None
        path.write_bytes(content)
        try:
            for command, *options in commands:
                _run_on(folder, command, options)
        finally:
            path.unlink() if kept is None else path.write_bytes(kept)

    return read


def _run_on(folder: Path, command: str, options: list[str]) -> None:
    given = [option.replace("FILE", str(folder / "input")) for option in options]
    out = [] if command in ("inspect", "verify") else [folder / "out.bin"]
    dry = ["--dry-run"] if out else []
    if command == "run":
        run(command, folder / "input", folder / "source", *out, *dry)
    else:
        run(command, folder / "source", *out, *given, *dry)


def _as_option(suffix: str, *words: str) -> Read:
    """A command that is given the input as a file."""

    def read(folder: Path, content: bytes) -> None:
        (folder / f"input{suffix}").write_bytes(content)
        command, *options = words
        _run_on(folder, command, [option.replace("FILE", f"FILE{suffix}") for option in options])

    return read


def _as_recipe(folder: Path, content: bytes) -> None:
    (folder / "input").write_bytes(content)
    _run_on(folder, "run", [])


def _tokenizer(folder: Path, content: bytes) -> None:  # noqa: ARG001 (as all targets)
    from ctcli.storage.tokenizers import (
        UnfitTokenizerError,
        read_sentencepiece,
        read_tokenizer_json,
    )

    for read in (read_tokenizer_json, read_sentencepiece):
        with suppress(UnfitTokenizerError):
            read(content).pieces(32)


def _expression(folder: Path, content: bytes) -> None:  # noqa: ARG001 (as all targets)
    import re

    from ctcli.expressions import expression

    try:
        found = expression(content.decode(errors="replace"))
    except re.error:
        return
    for name in ("model.layers.0.mlp.up_proj", "a" * 300, "a.b\n"):
        found.matches(name)


def _hub_listing(folder: Path, content: bytes) -> None:  # noqa: ARG001 (as all targets)
    import httpx
    import huggingface_hub

    from ctcli.storage.hub.errors import silence_client
    from ctcli.storage.hub.files import list_hub
    from ctcli.storage.hub.guard import guard_client

    silence_client()  # once: it sets a factory of its own

    def answer(_: httpx.Request) -> httpx.Response:
        return httpx.Response(200, content=content, headers={"ETag": '"x"', "X-Repo-Commit": "x"})

    huggingface_hub.set_client_factory(lambda: httpx.Client(transport=httpx.MockTransport(answer)))
    try:
        with suppress(CtcliError):
            list_hub("org/name", None)
    finally:
        guard_client.cache_clear()  # or it would hold that its factory is set
        guard_client()


def _hub_journal(folder: Path, content: bytes) -> None:  # noqa: ARG001 (as all targets)
    from ctcli.storage.hub.pushed import decode_pushed

    decode_pushed(content, "key", {})


def _local_journal(folder: Path, content: bytes) -> None:
    from ctcli.storage.journal import is_foreign, read_journal

    path = folder / "journal"
    path.write_bytes(content)
    read_journal(path, "key")
    is_foreign(path, "key")


def _rotation_file(suffix: str) -> Read:
    def read(folder: Path, content: bytes) -> None:
        path = folder / f"R{suffix}"
        path.write_bytes(content)
        run("rotate", folder / "source", folder / "out", "--rotation-file", path, "--dry-run")

    return read


def _rotation_seed(folder: Path) -> bytes:
    specs = {"R1": {"dtype": "F32", "shape": [4, 4], "data_offsets": [0, 64]}}
    return write_raw(folder / "seed", specs, np.eye(4, dtype="<f4").tobytes()).read_bytes()


READING = (("inspect",), ("verify",))
WRITING: tuple[tuple[str, ...], ...] = (
    *(
        ("reindex",),
        ("fuse-norms",),
        ("rotate",),
        ("equalize",),
        ("quantize", "--scheme", "FP8_DYNAMIC"),
    ),
    *(("quantize", "--scheme", "NVFP4A16"), ("export-bin",), ("export-bin", "--version", "2")),
)


def _json(value: object) -> bytes:
    return json.dumps(value).encode()


def targets(folder: Path) -> Mapping[str, Target]:
    """All targets by name, for a folder in which a checkpoint is made."""
    source = write(folder / "source")
    index = source / "model.safetensors.index.json"
    header = (source / "model-00001-of-00002.safetensors").read_bytes()
    quantized = {**CONFIG, "quantization_config": CONFIG_GROUPS}
    every = (*READING, *WRITING)
    return {
        "config": Target((_json(CONFIG), _json(quantized)), _in_source("config.json", *every)),
        "index": Target((index.read_bytes(),), _in_source(index.name, *READING, ("reindex",))),
        "header": Target(
            (header,),
            _in_source("model-00001-of-00002.safetensors", ("inspect",), *WRITING[:4]),
        ),
        "history": Target((RECIPE,), _in_source("ctcli_recipe.toml", *READING, ("reindex",))),
        "generation": Target(
            (b'{"temperature": 1}',), _in_source("generation_config.json", *READING)
        ),
        "recipe": Target((RECIPE,), _as_recipe),
        "mapping": Target((MAPPING,), _as_option(".toml", "fuse-norms", "--mapping", "FILE")),
        "groups": Target(
            (_json(CONFIG_GROUPS), _json(quantized)),
            _as_option(".json", "quantize", "--config", "FILE"),
        ),
        "transform": Target(
            (_json(TRANSFORM),), _as_option(".json", "rotate", "--transform-config", "FILE")
        ),
        "rotation": Target((_rotation_seed(folder),), _rotation_file(".safetensors")),
        "pickle": Target((b"\x80\x02}q\x00.", b"PK\x03\x04"), _rotation_file(".bin")),
        "tokenizer": Target((_json(TOKENIZER),), _tokenizer),
        "expression": Target((rb"re:.*\.(q|k)_proj$", b"(a|b)*c{2,3}"), _expression),
        "listing": Target((_json(LISTING),), _hub_listing),
        "pushed": Target((b'"key"\n["a", 1, "00", {}]\n',), _hub_journal),
        "journal": Target((b'"key"\n["a", {}]\n["b", ["k", 0], 4, []]\n',), _local_journal),
    }


TOKENIZER = {
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2, "<0x0A>": 3}, "merges": ["a b"]},
    "added_tokens": [{"id": 4, "content": "<s>", "special": True}],
    "pre_tokenizer": None,
    "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}]},
}
LISTING = {
    "id": "org/name",
    "sha": "0" * 40,
    "private": False,
    "tags": [],
    "siblings": [
        {"rfilename": "model.safetensors", "size": 8, "blobId": "0" * 40},
        {"rfilename": "x", "size": 9, "lfs": {"sha256": "0" * 64, "size": 9, "pointerSize": 1}},
    ],
}

os.environ.setdefault("COLUMNS", "200")
