"""Calling machine code that numba made, as the C function that it is.

Numba hands arguments over one number at a time: an array as two pointers that are null for memory
which it does not manage, size, bytes of an element, address, shape and strides; a tuple as what is
in it. Before them come addresses for the result and for an exception, and the function returns 0.
"""

from __future__ import annotations

import ctypes
import threading
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from llvmlite import binding
    from numpy.typing import NDArray

_NUMBERS: dict[type, tuple[str, Any]] = {
    bool: ("bool", ctypes.c_bool),
    int: ("i8", ctypes.c_int64),
    float: ("f8", ctypes.c_double),
    **{
        dtype: (np.dtype(dtype).str[1:], np.ctypeslib.as_ctypes_type(dtype))
        for dtype in (np.float32, np.float64, np.int64, np.int32, np.int16, np.int8)
    },
    **{
        dtype: (np.dtype(dtype).str[1:], np.ctypeslib.as_ctypes_type(dtype))
        for dtype in (np.uint64, np.uint32, np.uint16, np.uint8)
    },
}
_C_TYPES = dict(_NUMBERS.values())
_ARRAY = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p)

_engines: list[binding.ExecutionEngine] = []
_lock = threading.Lock()


class Machine(NamedTuple):
    """Machine code of one function, `kernel`, for arguments of some types.

    Attributes:
        result: the types of what it returns, as `operands_of` names them; empty: nothing.
        is_tuple: whether it returns a tuple of them.
        code: an object file.
    """

    result: tuple[str, ...]
    is_tuple: bool
    code: bytes


def operands_of(arguments: tuple[Any, ...]) -> tuple[str, list[Any]]:
    """The types of arguments, in one word, and what is handed over for them."""
    types: list[str] = []
    operands: list[Any] = []
    for argument in arguments:
        _add(argument, types, operands)
    return " ".join(types), operands


class Prepared:
    """An argument that kernels are given often: what is handed over for it is found once.

    Attributes:
        value: the argument, whose arrays it keeps.
    """

    def __init__(self, value: Any) -> None:
        self.value = value
        self.types: list[str] = []
        self.operands: list[Any] = []
        _add(value, self.types, self.operands)


def plain(argument: Any) -> Any:
    """An argument as the kernel's function takes it."""
    return argument.value if isinstance(argument, Prepared) else argument


def _add(value: Any, types: list[str], operands: list[Any]) -> None:
    if isinstance(value, np.ndarray):
        flags = value.flags
        layout = "C" if flags.c_contiguous else "F" if flags.f_contiguous else "A"
        types.append(f"{value.dtype.char}:{value.ndim}{layout}")
        size, shape = value.size, value.shape
        operands += (None, None, size, value.itemsize, _address(value), *shape, *value.strides)
    elif isinstance(value, Prepared):
        types += value.types
        operands += value.operands
    elif isinstance(value, tuple):
        types.append(f"{type(value).__name__}(")
        for item in value:
            _add(item, types, operands)
        types.append(")")
    else:
        types.append(_NUMBERS[type(value)][0])
        operands.append(value.item() if isinstance(value, np.generic) else value)


def _address(array: NDArray[Any]) -> int:
    """Where an array lies; numpy itself takes longer to say so."""
    if array.flags.c_contiguous and array.flags.writeable and array.size:
        return ctypes.addressof(ctypes.c_char.from_buffer(array.data))
    return int(array.ctypes.data)


class Native:
    """A kernel that can be called with arguments of some types."""

    def __init__(self, name: str, types: str, machine: Machine) -> None:
        self._name = name
        self._result = machine
        self._holder = _struct(machine.result)
        prototype = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p, *_c(types))
        self._call = prototype(_linked(machine.code))

    def __call__(self, operands: list[Any]) -> Any:
        """Call it, without the interpreter's lock."""
        result, exception = self._holder(), ctypes.c_void_p()
        status = self._call(ctypes.addressof(result), ctypes.addressof(exception), *operands)
        if status:
            raise RuntimeError(f"{self._name} failed with status {status}")
        values = tuple(getattr(result, field) for field, *_ in result._fields_)
        if self._result.is_tuple:
            return values
        return values[0] if self._result.result else None


def _c(types: str) -> list[Any]:
    """The C types that arguments are handed over as."""
    found: list[Any] = []
    for word in types.split():
        if ":" in word:
            dimensions = int(word.split(":")[1][:-1])
            found += [*_ARRAY, *[ctypes.c_int64] * (2 * dimensions)]
        elif word in _C_TYPES:
            found.append(_C_TYPES[word])
    return found


def _struct(types: tuple[str, ...]) -> type[ctypes.Structure]:
    fields = [(f"field{i}", _C_TYPES[name]) for i, name in enumerate(types)]

    class Result(ctypes.Structure):
        _fields_ = fields or [("nothing", ctypes.c_void_p)]

    return Result


def _linked(code: bytes) -> int:
    """The address of `kernel` in an object file, which is made ready to run."""
    from llvmlite import binding

    from ctcli.ops.target import machine

    with _lock:
        engine = binding.create_mcjit_compiler(binding.parse_assembly(""), machine())
        engine.add_object_file(binding.ObjectFileRef.from_data(code))
        engine.finalize_object()
        _engines.append(engine)  # owns the memory
        return int(engine.get_function_address("kernel"))
