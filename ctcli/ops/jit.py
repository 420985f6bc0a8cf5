"""Compiled kernels: plain loops that numba turns into machine code, once on each machine.

Numba is loaded only to compile. What it makes is kept as object files (`ops.objects`), which are
called as the C functions that they are (`ops.native`): that spares each run half a second.

A kernel takes arrays, numbers and (named) tuples of these, and returns nothing, a number, a truth
value or a tuple of float64. It allocates nothing: scratch comes from the caller.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any, TypeVar, cast

from ctcli.ops.native import Native, operands_of, plain

_Function = TypeVar("_Function", bound=Callable[..., Any])
_SLOW = 1.0  # seconds of compiling after which somebody is told
_IS_OFF = os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0")
_listeners: list[Callable[[], None]] = []


INLINED: dict[Callable[..., Any], bool] = {}
"""All functions that kernels call, and whether they are `merged`."""


def on_slow_compilation(listener: Callable[[], None]) -> None:
    """Have something called, on a thread of its own, when a kernel's compilation takes a second.

    It is called once at most, however many kernels there are.
    """
    _listeners.append(listener)


def _notify() -> None:
    while _listeners:
        _listeners.pop()()


class CompiledKernel:
    """A function that is compiled when it is first called with arguments of some types."""

    def __init__(self, function: Callable[..., Any], name: str) -> None:
        self._function = function
        self._name = name
        self._natives: dict[str, Native] = {}
        self._lock = threading.Lock()

    def __call__(self, *arguments: Any) -> Any:
        """The function's result."""
        if _IS_OFF:
            return self._function(*map(plain, arguments))
        types, operands = operands_of(arguments)
        native = self._natives.get(types)
        if native is None:
            with self._lock:
                native = self._natives.get(types) or self._load(types, arguments)
                self._natives[types] = native
        return native(operands)

    def _load(self, types: str, arguments: tuple[Any, ...]) -> Native:
        """Machine code for arguments of some types, from the disk if it is there."""
        from ctcli.ops.objects import load, save

        found = load(self._name, types)
        if found is None:
            from ctcli.ops.compiling import compiled

            timer = threading.Timer(_SLOW, _notify)
            timer.daemon = True
            timer.start()
            try:
                found = compiled(self._function, tuple(map(plain, arguments)), INLINED)
            finally:
                timer.cancel()
            save(self._name, types, found)
        return Native(self._name, types, found)


def kernel(function: _Function) -> _Function:
    """Compile a function that is called from Python, and keep the machine code on the disk."""
    return cast(
        _Function, CompiledKernel(function, f"{function.__module__}.{function.__qualname__}")
    )


def inlined(function: _Function) -> _Function:
    """Make a function one that kernels can call, a closure too. It stays as it is."""
    INLINED[function] = False
    return function


def merged(function: _Function) -> _Function:
    """The same, and its code becomes a part of each caller: for what is done with each element."""
    INLINED[function] = True
    return function
