"""What verifying finds: single differences, and all that is said about a checkpoint."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from ctcli.units import counted, format_bytes
from ctcli.verifying.errors import LayerError

# In the order of the report: files, index, config.json, shapes, quantized tensors, values, the
# comparison with a source, its errors, what loaders demand, hashes.
FindingKind = Literal[
    "file", "index", "config", "shape", "scheme", "value", "difference", "error", "loader", "hash"
]


@dataclass(frozen=True, order=True)
class Finding:
    """One difference between a checkpoint and what it should be.

    Attributes:
        kind: what was checked.
        where: the file, tensor, module or fused set.
        message: what is wrong there: the rest of a sentence that begins with `where:`.
    """

    kind: FindingKind
    where: str
    message: str


@dataclass(frozen=True)
class Verification:
    """All that is said about a checkpoint.

    Attributes:
        findings: every difference.
        notes: what was not checked, and why.
        tensors: how many there are.
        quantized: how many modules of each scheme.
        nbytes: bytes of tensor data.
        against: name of the source, if there was a comparison.
        unchanged: tensors that equal the source's byte for byte.
        errors: of each module that was compared by value.
        hashes: whether they were compared with a file or written to it; None: neither.
    """

    findings: tuple[Finding, ...]
    notes: tuple[str, ...]
    tensors: int
    quantized: Mapping[str, int]
    nbytes: int
    against: str | None
    unchanged: int
    errors: Mapping[str, LayerError]
    hashes: str | None

    def rows(self) -> list[tuple[str, str]]:
        """Labels and values, for people."""
        schemes = ", ".join(f"{counted(n, 'module')} {name}" for name, n in self.quantized.items())
        rows = [
            ("tensors", f"{self.tensors:,}, {format_bytes(self.nbytes)}"),
            ("quantized", schemes or "nothing"),
        ]
        if self.against:
            equal = f"{counted(self.unchanged, 'tensor')} equal byte for byte"
            errors = f"{counted(len(self.errors), 'weight')} with errors"
            rows.append(("source", f"{self.against}: {equal}, {errors}"))
        if self.errors:
            name, worst = max(self.errors.items(), key=lambda item: item[1].relative)
            rows.append(("largest error", f"{worst.relative:.5f} of its rms in {name}"))
        if self.hashes:
            rows.append(("hashes", self.hashes))
        rows += [("not checked", note) for note in self.notes]
        kinds = Counter(finding.kind for finding in self.findings)
        listed = ", ".join(f"{n} {kind}" for kind, n in kinds.items())
        return [*rows, ("differences", f"{len(self.findings)}: {listed}" if listed else "none")]

    def data(self) -> dict[str, Any]:
        """Everything, for programs."""
        return {
            "differences": [asdict(finding) for finding in self.findings],
            "not_checked": list(self.notes),
            "tensors": self.tensors,
            "tensor_bytes": self.nbytes,
            "quantized": dict(self.quantized),
            "against": self.against,
            "unchanged": self.unchanged,
            "hashes": self.hashes,
            "errors": {module: error.data() for module, error in self.errors.items()},
        }
