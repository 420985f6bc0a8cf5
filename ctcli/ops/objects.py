"""Object files of compiled kernels on the disk: beside the package, or in the user's cache.

They are looked for in both places, and written to the first that takes them; a directory in
NUMBA_CACHE_DIR takes the place of both. Each says what it is for in a first line; one that is not
whole, or for something else, does not count.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path

from ctcli.ops.native import Machine
from ctcli.ops.target import processor

_HERE = Path(__file__).parent


def load(name: str, types: str) -> Machine | None:
    """The machine code of a kernel for arguments of some types; None: it is to be compiled."""
    for folder in _folders():
        with suppress(OSError, ValueError):
            head, _, code = (folder / _file(name, types)).read_bytes().partition(b"\n")
            said = json.loads(head)
            if said["sha256"] == hashlib.sha256(code).hexdigest() and said["types"] == types:
                return Machine(tuple(said["result"]), said["is_tuple"], code)
    return None


def save(name: str, types: str, machine: Machine) -> None:
    """Keep machine code, if there is a place for it."""
    digest = hashlib.sha256(machine.code).hexdigest()
    head = {"types": types, "sha256": digest, **machine._asdict()}
    del head["code"]
    content = json.dumps(head).encode() + b"\n" + machine.code
    for folder in _folders():
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / _file(name, types)
            own = path.with_suffix(f".{os.getpid()}-{threading.get_ident()}")
            try:
                own.write_bytes(content)
                own.replace(path)  # others see all of it or nothing
            finally:
                own.unlink(missing_ok=True)
            return


def _folders() -> Iterator[Path]:
    """Where object files may be: each state of the sources has a folder of its own."""
    if given := os.environ.get("NUMBA_CACHE_DIR"):
        yield Path(given) / _state()
        return
    yield _HERE / "__pycache__" / _state()
    with suppress(RuntimeError):  # there is no home
        cache_home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        yield Path(cache_home) / "ctcli" / _state()


@cache
def _state() -> str:
    """Names what kernels are made of: the sources here, LLVM, and the processor."""
    from llvmlite import __version__

    sources = hashlib.sha256(repr((__version__, processor())).encode())
    for path in sorted(_HERE.glob("*.py")):
        sources.update(path.read_bytes())
    return f"kernels-{sources.hexdigest()[:16]}"


def _file(name: str, types: str) -> str:
    short = name.removeprefix("ctcli.ops.")
    return f"{short}-{hashlib.sha256(types.encode()).hexdigest()[:16]}.o"
