"""All checks of a checkpoint, one after the other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from ctcli.checkpoint.value import Checkpoint
from ctcli.options import cores
from ctcli.schemes import words
from ctcli.units import Advance
from ctcli.verifying.against import Pairing, error_findings, pair
from ctcli.verifying.checks import Check, Seen, coded_checks, module_check, plain_check
from ctcli.verifying.errors import layer_error
from ctcli.verifying.findings import Finding, Verification
from ctcli.verifying.manifest import compare, hash_all, read_manifest, write_manifest
from ctcli.verifying.model import shape_findings, tie_findings, tied_pair
from ctcli.verifying.options import VerifyOptions
from ctcli.verifying.quantized import QuantizedModules, quantization_of
from ctcli.verifying.scanning import bytes_to_read, scan_all
from ctcli.verifying.sparsity import pattern_checks
from ctcli.verifying.structure import Snapshot, look_at
from ctcli.verifying.targets import loader_findings
from ctcli.verifying.values import shared_findings

# Makes a progress callback for so many bytes.
Progress = Callable[[str, int], AbstractContextManager[Advance]]
Results = Sequence[tuple[Check, Seen]]


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
    workers, manifest = options.num_workers or cores(), options.sha256
    snapshot, findings = look_at(directory)
    quantization, found, notes = quantization_of(snapshot, options.parts)
    shapes, unchecked = shape_findings(snapshot, quantization)
    pairing = _paired(snapshot, quantization, source, options.parts)
    with progress("verify", bytes_to_read(pairing.checks)) as advance:
        seen = scan_all(pairing.checks, workers, options.max_memory, advance)
    errors = {check.name: layer_error(found.errors) for check, found in seen if found.errors}
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
    if manifest:
        with progress("sha256", sum(file.size for file in snapshot.files.values())) as advance:
            hashes = hash_all(snapshot, manifest, workers, advance)
        if manifest.exists():
            findings += compare(read_manifest(manifest), hashes)
            hashes_are = f"compared with {manifest}"
        elif findings:
            notes.append(f"hashes: {manifest} is not written, as there are differences")
        else:
            write_manifest(manifest, hashes)
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


def _paired(
    snapshot: Snapshot,
    quantization: QuantizedModules,
    source: Checkpoint | None,
    presharded: Mapping[str, int],
) -> Pairing:
    """What to look at, beside what it should be."""
    modules, coded = quantization.modules, quantization.coded
    if source:
        pairing = pair(snapshot, modules, coded, source, presharded)
    else:
        parts = {f"{m.name}.{suffix}" for m in modules.values() for suffix in m.tensors}
        parts |= {name for each in coded.values() for name in each.parts}
        plain = {name: t for name, t in snapshot.tensors.items() if name not in parts}
        checks = [module_check(module) for module in modules.values()]
        checks += [check for each in coded.values() for check in coded_checks(each)]
        pairing = Pairing([*checks, *(plain_check(name, t) for name, t in plain.items())])
    pairing.checks += pattern_checks(snapshot, modules)
    head, embedding = tied_pair(snapshot) or (None, None)
    if head and embedding and snapshot.tensors[head].spec == snapshot.tensors[embedding].spec:
        expected = snapshot.tensors[embedding]
        owner = f"those of {embedding}, which tie_word_embeddings puts in its place"
        pairing.checks.append(plain_check(head, snapshot.tensors[head], expected, owner))
    return pairing


def _faults(results: Results) -> list[Finding]:
    return [
        Finding("value", tensor, f"{count} of its {what}.")
        for _, seen in results
        for (tensor, what), count in seen.faults.items()
    ]


def _unchanged(results: Results) -> int:
    return sum(check.is_compared and not seen.faults for check, seen in results)
