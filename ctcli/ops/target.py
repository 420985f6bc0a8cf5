"""The processor that machine code is for: this one, or what numba's variables say."""

from __future__ import annotations

import os
import platform
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from llvmlite import binding


class Processor(NamedTuple):
    """What code is generated for, in LLVM's words.

    Attributes:
        triple: its architecture and system.
        name: its model.
        features: what it can do beside, or cannot.
    """

    triple: str
    name: str
    features: str


@cache
def processor() -> Processor:
    """This processor, or that of NUMBA_CPU_NAME and NUMBA_CPU_FEATURES."""
    from llvmlite import binding

    name, features = os.environ.get("NUMBA_CPU_NAME"), os.environ.get("NUMBA_CPU_FEATURES")
    return Processor(
        binding.get_process_triple(),
        binding.get_host_cpu_name() if name is None else name,
        binding.get_host_cpu_features().flatten() if features is None else features,
    )


@cache
def machine() -> binding.TargetMachine:
    """What generates code for the processor, as numba sets it up."""
    from llvmlite import binding

    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    is_x86 = platform.machine().lower() in ("x86_64", "amd64")
    options: dict[str, Any] = {"reloc": "static" if is_x86 else "default", "jit": True}
    triple, name, features = processor()
    target = binding.Target.from_triple(triple)
    return target.create_target_machine(
        cpu=name, features=features, opt=3, codemodel="jitdefault", **options
    )
