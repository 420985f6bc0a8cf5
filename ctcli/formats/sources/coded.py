"""What a source format says of a weight: which tensors make it up, and what it is as floats."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from ctcli.formats.declared import Declaration
from ctcli.lazy.nodes import Computed, LazyTensor, Stacked
from ctcli.lazy.tensors import Stored
from ctcli.models.modules import Module
from ctcli.schemes.arguments import Scheme


@dataclass(frozen=True)
class Coded:
    """A weight that a checkpoint stores quantized.

    Attributes:
        name: of the tensor that a model without quantization has in its place.
        method: how it is stored, for people: `FP8, blocks of 128x128`.
        parts: the names of all tensors that it takes; the weight belongs where the first one is.
        weight: it as floats, in the dtype of the dense checkpoint; before they are rounded, too.
        is_exact: whether its numbers are floats of 16 bits, so that nothing is rounded.
        scheme: the compressed-tensors scheme that holds the same numbers; None: there is none.
        stored: under that scheme, its tensors by suffix.
        refusal: why there is no such scheme.
        has_reciprocal: under that scheme a scale is the reciprocal of what is stored, which float32
            rounds.
        linears: what it is made of, where these have schemes rather than it.
    """

    name: str
    method: str
    parts: tuple[str, ...]
    weight: Computed | Stacked
    is_exact: bool
    scheme: Scheme | None = None
    stored: Mapping[str, LazyTensor] = field(default_factory=dict)
    refusal: str = ""
    has_reciprocal: bool = False
    linears: tuple[Coded, ...] = ()

    @property
    def module(self) -> str:
        """Its module; of experts that are packed without one, the tensor's name."""
        return self.name.removesuffix(".weight")

    @property
    def leaves(self) -> tuple[Coded, ...]:
        """The weights that have schemes: it, or the linears that it is made of."""
        return self.linears or (self,)


@dataclass(frozen=True)
class MadeWhenRead(Mapping[str, LazyTensor]):
    """Tensors by suffix that are made when the first of them is read: most commands never do.

    Attributes:
        make: makes them all.
    """

    make: Callable[[], Mapping[str, LazyTensor]]

    @cached_property
    def _found(self) -> Mapping[str, LazyTensor]:
        return self.make()

    def __getitem__(self, suffix: str) -> LazyTensor:
        return self._found[suffix]

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)


@dataclass(frozen=True)
class Source:
    """What is known of a checkpoint when its weights are read.

    Attributes:
        modules: its modules by name.
        config: config.json.
        said: its quantization_config; empty where there is none.
        declared: the same, as compressed-tensors'.
        dtype: safetensors tag of the floats that weights become.
        presharded: pattern of modules whose rows are parts of their own, and how many parts.
    """

    modules: Mapping[str, Module[LazyTensor]]
    config: Mapping[str, Any]
    said: Mapping[str, Any]
    declared: Declaration | None
    dtype: str
    presharded: Mapping[str, int]


class SourceFormat(ABC):
    """A way in which some tool stores quantized weights. Its instances are alike."""

    @abstractmethod
    def weights(self, module: Module[LazyTensor], source: Source) -> Iterator[Coded]:
        """The weights among the tensors of a module that are stored in this way.

        Raises:
            SourceError: they are, and something is wrong with them.
        """


class SourceError(ValueError):
    """Why weights cannot be read; without the name of their module."""


def part(module: Module[LazyTensor], leaf: str) -> Stored | None:
    """One of a module's tensors, where it lies in a file."""
    found = module.parts.get(leaf)
    return found if isinstance(found, Stored) else None


def dtype_of(module: Module[LazyTensor], leaf: str) -> str:
    """The dtype of one of a module's tensors; empty: there is no such tensor."""
    found = part(module, leaf)
    return found.spec.dtype if found else ""
