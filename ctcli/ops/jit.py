"""Compiled kernels: plain loops that numba turns into machine code, once on each machine.

Machine code is kept beside the package if that can be written, else in the user's cache directory;
if neither can, it lives as long as the process.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import numba

_Function = TypeVar("_Function", bound=Callable[..., Any])
config: Any = numba.config  # its attributes are the environment variables NUMBA_...
_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": False}
_SLOW = 1.0  # seconds of compiling after which somebody is told
_listeners: list[Callable[[], None]] = []


def on_slow_compilation(listener: Callable[[], None]) -> None:
    """Have something called, on a thread of its own, when a kernel's compilation takes a second.

    It is called once at most, however many kernels there are.
    """
    _listeners.append(listener)


def _notify() -> None:
    while _listeners:
        _listeners.pop()()


class Kernel:
    """A function of arrays and numbers that is compiled when it is first called.

    Attributes:
        is_compiled: whether it has been called in this process.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._compiled = _cached(function)
        self.is_compiled = bool(config.DISABLE_JIT)

    def __call__(self, *arguments: Any) -> Any:
        """The function's result."""
        if self.is_compiled:
            return self._compiled(*arguments)
        timer = threading.Timer(_SLOW, _notify)
        timer.daemon = True
        timer.start()
        try:
            found = self._compiled(*arguments)
        except OSError:  # the cache cannot be written after all, or the disk is full
            self._compiled = numba.njit(**_OPTIONS)(self._function)
            found = self._compiled(*arguments)
        finally:
            timer.cancel()
        self.is_compiled = True
        return found


def kernel(function: _Function) -> _Function:
    """Compile a function that is called from Python, and keep the machine code on the disk."""
    return cast(_Function, Kernel(function))


def inlined(function: _Function) -> _Function:
    """Compile a function that only kernels call: it becomes a part of each."""
    return cast(_Function, numba.njit(**_OPTIONS)(function))


def merged(function: _Function) -> _Function:
    """The same without a compilation, and a name, of its own: for long loops, and closures."""
    return cast(_Function, numba.njit(inline="always", **_OPTIONS)(function))


def _cached(function: Callable[..., Any]) -> Callable[..., Any]:
    before = config.CACHE_DIR
    try:
        config.CACHE_DIR = _directory(before)
        return cast(Callable[..., Any], numba.njit(cache=True, **_OPTIONS)(function))
    except (RuntimeError, OSError):  # no directory can be written
        return cast(Callable[..., Any], numba.njit(**_OPTIONS)(function))
    finally:
        config.CACHE_DIR = before


def _directory(given: str) -> str:
    """Where code is kept beside the package, or in a directory that the user gave.

    Numba keeps code as long as the file of the kernel is the same, whatever the files that it
    takes functions from say: so each state of these files has a directory of its own. Empty, which
    leaves the choice to numba, if it cannot be written.
    """
    here = Path(__file__).parent
    sources = hashlib.sha256()
    for path in sorted(here.glob("*.py")):
        sources.update(path.read_bytes())
    directory = Path(given or here / "__pycache__") / f"kernels-{sources.hexdigest()[:16]}"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        probe = directory / f"probe-{threading.get_ident()}"
        probe.touch()
        probe.unlink()
    except OSError:
        return given
    return str(directory)
