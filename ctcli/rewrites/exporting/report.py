"""What `ctcli export-bin` says of the file that it makes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from ctcli.lazy.nodes import LazyTensor
from ctcli.storage.llama2c import Header
from ctcli.units import format_bytes

_WORST = 5  # matrices with the largest error that the summary shows


@dataclass(frozen=True)
class FileTensor:
    """A tensor of the file.

    Attributes:
        name: llama2.c's.
        layer: the layer it belongs to, if it does.
        module: what the source calls it; the same as `name` for a table that is computed.
        parts: what it consists of, in order: one tensor, or codes and scales.
        offset: where it begins.
    """

    name: str
    layer: int | None
    module: str
    parts: Mapping[str, LazyTensor]
    offset: int

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return sum(part.spec.nbytes for part in self.parts.values())


@dataclass(frozen=True)
class ExportReport:
    """What exporting does.

    Attributes:
        header: of the file.
        places: its tensors, in order.
        errors: largest absolute quantization error by module, once it is known.
    """

    header: Header
    places: Sequence[FileTensor]
    errors: Mapping[str, float]

    def with_errors(self, measured: Mapping[str, Sequence[float]]) -> ExportReport:
        """The same with what was measured: the largest absolute error by module, if there is."""
        return replace(self, errors={m: error for m, found in measured.items() for error in found})

    def rows(self) -> list[tuple[str, str]]:
        """Labels and values, for people."""
        fields = {k: v for k, v in asdict(self.header).items() if v is not None}
        classifier = "shared" if fields.pop("shared_classifier") else "separate"
        rows = [("header", ", ".join(f"{name} {value}" for name, value in fields.items()))]
        rows += [("classifier", classifier)]
        if self.errors:
            rows += [("largest absolute error", f"{max(self.errors.values()):.9f}")]
        return rows

    def items(self) -> list[str]:
        """The matrices with the largest errors first, or where the tensors lie."""
        if self.errors:
            worst = sorted(self.errors.items(), key=lambda item: -item[1])
            lines = [f"{error:12.9f}  {module}" for module, error in worst[:_WORST]]
            return ["largest absolute quantization errors:", *lines]
        first = {place.name: place for place in reversed(self.places)}
        lines = []
        for name, place in reversed(first.items()):
            nbytes = sum(other.nbytes for other in self.places if other.name == name)
            layers = f" of {self.header.n_layers} layers" if place.layer is not None else ""
            lines.append(f"{place.offset:15,}  {format_bytes(nbytes):>8}  {name}{layers}")
        return ["offset, size, tensor:", *lines]

    def data(self) -> dict[str, Any]:
        """Everything, for programs."""
        last = self.places[-1]
        return {
            "header": asdict(self.header),
            "header_bytes": self.places[0].offset,
            "file_bytes": last.offset + last.nbytes,
            "max_error": max(self.errors.values(), default=None),
            "tensors": [
                {
                    "name": place.name,
                    "layer": place.layer,
                    "module": place.module,
                    "offset": place.offset,
                    "bytes": place.nbytes,
                    "max_error": self.errors.get(place.module),
                }
                for place in self.places
            ],
        }
