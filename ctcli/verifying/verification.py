"""All checks of a checkpoint, one after the other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from ctcli.checkpoint.value import RECIPE_NAME, Checkpoint
from ctcli.schemes import words
from ctcli.verifying.against import error_findings
from ctcli.verifying.checks import Check, Seen
from ctcli.verifying.errors import layer_error
from ctcli.verifying.findings import Finding, Verification
from ctcli.verifying.manifest import compare, read_manifest, write_manifest
from ctcli.verifying.model import shape_findings, tie_findings
from ctcli.verifying.options import VerifyOptions
from ctcli.verifying.scanning import Scanned
from ctcli.verifying.subject import Subject, subject_of
from ctcli.verifying.targets import loader_findings
from ctcli.verifying.values import shared_findings

Results = Sequence[tuple[Check, Seen]]
_DECLARED = "quantization_config"


def verify(
    directory: Path,
    options: VerifyOptions,
    scan: Callable[[Subject], Scanned],
    source: Checkpoint | None = None,
) -> Verification:
    """Check the checkpoint in a directory.

    Args:
        directory: where it lies.
        options: what to check.
        scan: looks at all values, and hashes the files whose hashes are asked for.
        source: what it should be, but for quantization; None: there is none to compare with.

    Raises:
        CtcliError: it cannot be read at all.
    """
    subject = subject_of(directory, options, source)
    snapshot, quantization, pairing = subject.snapshot, subject.quantization, subject.pairing
    shapes, unchecked = shape_findings(snapshot, quantization)
    scanned = scan(subject)
    seen = scanned.results
    errors = {check.name: layer_error(found.errors) for check, found in seen if found.errors}
    demands, unknown = loader_findings(snapshot, quantization, options)
    findings = [
        *subject.findings,
        *tie_findings(snapshot),
        *shapes,
        *pairing.findings,
        *shared_findings(quantization.modules),
        *_faults(seen),
        *error_findings(errors, options.max_error),
        *demands,
    ]
    notes = [*subject.notes, *unchecked, *pairing.notes, *unknown]
    is_known = RECIPE_NAME in snapshot.files or _DECLARED in snapshot.config
    if source and _DECLARED in source.config and not is_known:
        notes.append("the source is quantized, and this is not: are they meant the other way?")
    hashes_are = None
    if manifest := options.sha256:
        if manifest.exists():
            findings += compare(read_manifest(manifest), scanned.hashes)
            hashes_are = f"compared with {manifest}"
        elif findings:
            notes.append(f"hashes: {manifest} is not written, as there are differences")
        else:
            write_manifest(manifest, scanned.hashes)
            hashes_are = f"written to {manifest}"
    return Verification(
        findings=tuple(findings),
        notes=tuple(notes),
        tensors=len(snapshot.tensors),
        quantized=Counter(
            (
                *(words(m.scheme.weights) for m in quantization.modules.values()),
                *(coded.method for coded in quantization.coded.values()),
            )
        ),
        nbytes=snapshot.nbytes,
        against=source.origin.name if source else None,
        unchanged=_unchanged(seen) if source else 0,
        errors=errors,
        hashes=hashes_are,
    )


def _faults(results: Results) -> list[Finding]:
    return [
        Finding("value", tensor, f"{count} of its {what}.")
        for _, seen in results
        for (tensor, what), count in seen.faults.items()
    ]


def _unchanged(results: Results) -> int:
    return sum(check.is_compared and not seen.faults for check, seen in results)
