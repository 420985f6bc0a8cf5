"""All checks of a checkpoint, one after the other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from ctcli.checkpoint.value import Checkpoint
from ctcli.schemes import words
from ctcli.units import Advance
from ctcli.verifying.against import Pairing, error_findings, pair
from ctcli.verifying.errors import layer_error
from ctcli.verifying.findings import Finding, Verification
from ctcli.verifying.manifest import compare, hash_all, read_manifest, write_manifest
from ctcli.verifying.model import shape_findings, tie_findings, tied_pair
from ctcli.verifying.options import VerifyOptions
from ctcli.verifying.quantized import Quantization, quantization_of
from ctcli.verifying.scanning import Scan, Sight, scan_all
from ctcli.verifying.structure import Snapshot, look_at
from ctcli.verifying.targets import loader_findings
from ctcli.verifying.values import ModuleScan, PlainScan, shared_findings

# Makes a progress callback for so many bytes.
Progress = Callable[[str, int], AbstractContextManager[Advance]]
Seen = Sequence[tuple[Scan, Sight]]


def verify(directory: Path, options: VerifyOptions, progress: Progress) -> Verification:
    """Check the checkpoint in a directory.

    Raises:
        CtcliError: it cannot be read at all.
    """
    snapshot, findings = look_at(directory)
    quantization, found, notes = quantization_of(snapshot)
    shapes, unchecked = shape_findings(snapshot, quantization)
    pairing = _paired(snapshot, quantization, options.source)
    with progress("verify", sum(scan.nbytes for scan in pairing.scans)) as advance:
        seen = scan_all(pairing.scans, options.workers, advance)
    errors = {scan.name: layer_error(sight.errors) for scan, sight in seen if sight.errors}
    demands, unknown = loader_findings(snapshot, quantization, options)
    findings += [
        *found,
        *tie_findings(snapshot),
        *shapes,
        *pairing.findings,
        *shared_findings(quantization.modules),
        *_faults(seen),
        *error_findings(errors, options.max_error),
        *demands,
    ]
    notes += [*unchecked, *pairing.notes, *unknown]
    hashes_are = None
    if options.manifest:
        with progress("sha256", sum(file.size for file in snapshot.files.values())) as advance:
            hashes = hash_all(snapshot, options.manifest, options.workers, advance)
        if options.manifest.exists():
            findings += compare(read_manifest(options.manifest), hashes)
            hashes_are = f"compared with {options.manifest}"
        elif findings:
            notes.append(f"hashes: {options.manifest} is not written, as there are differences")
        else:
            write_manifest(options.manifest, hashes)
            hashes_are = f"written to {options.manifest}"
    return Verification(
        findings=tuple(findings),
        notes=tuple(notes),
        tensors=len(snapshot.tensors),
        quantized=Counter(words(m.scheme.weights) for m in quantization.modules.values()),
        nbytes=snapshot.nbytes,
        against=options.source.origin.name if options.source else None,
        unchanged=_unchanged(seen) if options.source else 0,
        errors=errors,
        hashes=hashes_are,
    )


def _paired(snapshot: Snapshot, quantization: Quantization, source: Checkpoint | None) -> Pairing:
    """What to look at, beside what it should be."""
    modules = quantization.modules
    if source:
        pairing = pair(snapshot, modules, source)
    else:
        parts = {f"{m.name}.{suffix}" for m in modules.values() for suffix in m.tensors}
        plain = {name: t for name, t in snapshot.tensors.items() if name not in parts}
        scans: list[Scan] = [ModuleScan(module) for module in modules.values()]
        pairing = Pairing([*scans, *(PlainScan(name, t) for name, t in plain.items())])
    head, embedding = tied_pair(snapshot) or (None, None)
    if head and embedding and snapshot.tensors[head].spec == snapshot.tensors[embedding].spec:
        expected = snapshot.tensors[embedding]
        owner = f"those of {embedding}, which tie_word_embeddings puts in its place"
        pairing.scans.append(PlainScan(head, snapshot.tensors[head], expected, owner))
    return pairing


def _faults(seen: Seen) -> list[Finding]:
    return [
        Finding("value", tensor, f"{count} of its {what}.")
        for _, sight in seen
        for (tensor, what), count in sight.faults.items()
    ]


def _unchanged(seen: Seen) -> int:
    return sum(
        isinstance(scan, PlainScan) and scan.expected is not None and not sight.faults
        for scan, sight in seen
    )
