"""All checks of a checkpoint, one after the other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from ctcli.checkpoint.value import Checkpoint
from ctcli.formats.declared import words
from ctcli.options import cores
from ctcli.units import Advance
from ctcli.verifying.against import Pairing, error_findings, pair
from ctcli.verifying.errors import layer_error
from ctcli.verifying.findings import Finding, Verification
from ctcli.verifying.manifest import Manifest, compare, hash_all, read_manifest, write_manifest
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


def verify(
    directory: Path,
    options: VerifyOptions,
    progress: Progress,
    source: Checkpoint | None = None,
) -> Verification:
    """Check the checkpoint in a directory.

    Args:
        directory: where it lies.
        options: what to check.
        progress: is told of bytes that were read.
        source: what it should be, but for quantization; None: there is none to compare with.

    Raises:
        CtcliError: it cannot be read at all.
    """
    workers = options.num_workers or cores()
    snapshot, findings = look_at(directory)
    quantization, found, notes = quantization_of(snapshot)
    shapes, unchecked = shape_findings(snapshot, quantization)
    pairing = _paired(snapshot, quantization, source)
    with progress("verify", sum(scan.nbytes for scan in pairing.scans)) as advance:
        seen = scan_all(pairing.scans, workers, advance)
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
    if options.sha256:
        with progress("sha256", sum(file.size for file in snapshot.files.values())) as advance:
            hashes = hash_all(snapshot, options.sha256, workers, advance)
        hashes_are, different = _check_hashes(options.sha256, hashes, is_sound=not findings)
        findings += different
        if not hashes_are:
            notes.append(f"hashes: {options.sha256} is not written, as there are differences")
    return Verification(
        findings=tuple(findings),
        notes=tuple(notes),
        tensors=len(snapshot.tensors),
        quantized=Counter(words(m.scheme.weights) for m in quantization.modules.values()),
        nbytes=snapshot.nbytes,
        against=source.origin.name if source else None,
        unchanged=_unchanged(seen) if source else 0,
        errors=errors,
        hashes=hashes_are,
    )


def _check_hashes(path: Path, hashes: Manifest, is_sound: bool) -> tuple[str | None, list[Finding]]:
    """Compare hashes with a file, or write it for a sound checkpoint; says which."""
    if path.exists():
        return f"compared with {path}", [*compare(read_manifest(path), hashes)]
    if not is_sound:
        return None, []
    write_manifest(path, hashes)
    return f"written to {path}", []


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
