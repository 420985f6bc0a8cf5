"""From a Python function to machine code, by numba and LLVM."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping
from typing import Any

import numba
from llvmlite import binding
from numba.extending import overload

from ctcli.ops.native import Machine
from ctcli.ops.target import machine

OPTIONS: dict[str, Any] = {"error_model": "numpy", "fastmath": False, "_nrt": False}
_RESULTS = {"bool": "bool", "int64": "i8", "float32": "f4", "float64": "f8"}
# What code may call beside its own: C's memory functions.
_CALLABLE = re.compile(r"llvm\..*|mem(set|cpy|move)")
types: Any = numba.types
_lock = threading.Lock()
_introduced: set[Callable[..., Any]] = set()


def compiled(
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    inlined: Mapping[Callable[..., Any], bool],
) -> Machine:
    """Machine code of a kernel for arguments of these types.

    Args:
        function: the kernel.
        arguments: some of these types.
        inlined: functions that it may call; see `introduce`.

    Raises:
        TypeError: it returns, or calls, what object files of kernels cannot.
    """
    with _lock:
        introduce(inlined)
        dispatcher: Any = numba.njit(**OPTIONS)(function)
        signature = tuple(_type_of(argument) for argument in arguments)
        dispatcher.compile(signature)
        result = dispatcher.overloads[signature].signature.return_type
        text = _only_kernel(dispatcher.inspect_llvm(signature), function.__name__)
        code = machine().emit_object(binding.parse_assembly(text))
    is_tuple = isinstance(result, types.BaseTuple)
    results = () if result is types.none else tuple(result) if is_tuple else (result,)
    if unknown := [str(item) for item in results if str(item) not in _RESULTS]:
        raise TypeError(f"kernel {function.__name__} returns {', '.join(unknown)}")
    return Machine(tuple(_RESULTS[str(item)] for item in results), is_tuple, code)


def introduce(inlined: Mapping[Callable[..., Any], bool]) -> None:
    """Tell numba of functions that kernels may call, and whether their code goes into each call."""
    for function, is_merged in inlined.items():
        if function not in _introduced:
            options: Any = {**OPTIONS, "forceinline": is_merged}
            overload(function, jit_options=options, strict=False)(_itself(function))
            _introduced.add(function)


def _itself(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *_: function


def _type_of(value: Any) -> Any:
    """Numba's type of an argument: arrays count as writable, whether they are or not."""
    if isinstance(value, tuple):
        items = [_type_of(item) for item in value]
        is_named, alike = hasattr(value, "_fields"), len(set(items)) == 1
        if is_named and alike:
            return types.NamedUniTuple(items[0], len(items), type(value))
        return types.NamedTuple(items, type(value)) if is_named else types.Tuple(items)
    typeof: Any = numba.typeof
    found = typeof(value)
    return found.copy(readonly=False) if isinstance(found, types.Array) else found


def _only_kernel(text: str, name: str) -> str:
    """LLVM's text of a function without what numba adds for calls from Python; it is `kernel`."""
    kept: list[str] = []
    symbol, is_wrapper = "", False
    for line in text.split("\n"):
        if line.startswith("define "):
            defined = line.split("@", 1)[1].split("(", 1)[0]
            is_wrapper = "_ZN7cpython" in defined or "cfunc." in defined
            if not is_wrapper and " linkonce_odr " not in line:
                assert not symbol, "numba compiles one function at a time"
                symbol = defined
        if not is_wrapper:
            kept.append(line)
        is_wrapper = is_wrapper and line != "}"
    found = "\n".join(kept).replace(f"@{symbol}(", "@kernel(")
    for declared in re.findall(r"^declare .*?@([^(]*)\(", found, re.MULTILINE):
        if not _CALLABLE.fullmatch(declared) and found.count(f"@{declared}(") > 1:
            raise TypeError(f"kernel {name} calls {declared}")
    return found
