"""A checkpoint beside what it should be, before any values are looked at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ctcli.checkpoint.value import Checkpoint
from ctcli.storage.local import LocalFile
from ctcli.verifying.against import Pairing, pair
from ctcli.verifying.checks import Check, coded_checks, module_check, plain_check
from ctcli.verifying.findings import Finding
from ctcli.verifying.model import tied_pair
from ctcli.verifying.options import VerifyOptions
from ctcli.verifying.quantized import QuantizedModules, quantization_of
from ctcli.verifying.sparsity import pattern_checks
from ctcli.verifying.structure import Snapshot, look_at


@dataclass(frozen=True)
class Subject:
    """What is verified.

    Attributes:
        snapshot: the checkpoint.
        quantization: what of it is quantized.
        pairing: every tensor, beside what it should be if there is a source.
        findings: what is wrong already.
        notes: what cannot be checked.
        source: what the checkpoint should be, but for quantization; None: that is not known.
        hashed: the files whose hashes are asked for.
    """

    snapshot: Snapshot
    quantization: QuantizedModules
    pairing: Pairing
    findings: Sequence[Finding]
    notes: Sequence[str]
    source: Checkpoint | None
    hashed: Sequence[LocalFile]

    @property
    def checks(self) -> Sequence[Check]:
        """What is to be looked at."""
        return self.pairing.checks


def subject_of(directory: Path, options: VerifyOptions, source: Checkpoint | None) -> Subject:
    """Read all headers of the checkpoint in a directory.

    Args:
        directory: where it lies.
        options: what to check.
        source: what it should be, but for quantization; None: there is none to compare with.

    Raises:
        CtcliError: it cannot be read at all.
    """
    snapshot, findings = look_at(directory)
    quantization, found, notes = quantization_of(snapshot, options.parts)
    pairing = _paired(snapshot, quantization, source, options.parts)
    hashed: list[LocalFile] = []
    if manifest := options.sha256:
        there, files = manifest.resolve(), snapshot.files.values()
        hashed = [file for file in files if file.location.resolve() != there]
    return Subject(snapshot, quantization, pairing, [*findings, *found], notes, source, hashed)


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
