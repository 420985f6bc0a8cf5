"""`ctcli inspect`: everything that headers and configs tell."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from ctcli.checkpoint.sharding import natural_key
from ctcli.checkpoint.value import Checkpoint, Shard
from ctcli.errors import CtcliError
from ctcli.formats.declared import read_declaration
from ctcli.formats.sources.reading import Reading, dense, read_quantized
from ctcli.inspecting.abilities import Ability, abilities
from ctcli.inspecting.anomalies import anomalies, stored_heads
from ctcli.inspecting.offers import Offer, offers
from ctcli.inspecting.quantization import QuantizationSummary, quantization
from ctcli.inspecting.stored import StoredWeights, stored_weights
from ctcli.inspecting.weights import weights_of
from ctcli.lazy.tensors import Stored
from ctcli.models.config import is_tied
from ctcli.models.families import model_type
from ctcli.models.fused import FusedSet, fused_sets
from ctcli.rewrites.sparsifying.options import pruning_of


@dataclass(frozen=True)
class Inspection:
    """What was found.

    Attributes:
        checkpoint: just opened.
        parameters: how many there are.
        parameters_quantized: how many of them are in quantized weights.
        fused: how many fused sets there are.
        straddling: those that lie in several shards, and which.
        tied: what config.json says of embedding and head; None: nothing.
        quantization: None if config.json declares none.
        stored: the quantized weights, alike ones together.
        abilities: which commands can run.
        anomalies: what is out of the ordinary.
        offers: what it would become under common schemes.
    """

    checkpoint: Checkpoint
    parameters: int
    parameters_quantized: int
    fused: int
    straddling: Mapping[FusedSet, list[str]]
    tied: bool | None
    quantization: QuantizationSummary | None
    stored: tuple[StoredWeights, ...]
    abilities: tuple[Ability, ...]
    anomalies: tuple[str, ...]
    offers: tuple[Offer, ...] = ()

    @property
    def family(self) -> str | None:
        """The model type; None where there is no config.json."""
        return model_type(self.checkpoint.config) if self.checkpoint.config else None

    @property
    def heads(self) -> list[str]:
        """Heads with a weight of their own."""
        return stored_heads(self.checkpoint)

    @property
    def sparsity(self) -> str | None:
        """How its weights were pruned, as its recipe has it; None: they were not."""
        options = pruning_of(self.checkpoint.history)
        return options.sparsity.words if options else None

    @cached_property
    def bytes_by_dtype(self) -> dict[str, int]:
        """The largest first."""
        found: Counter[str] = Counter()
        for spec in self.checkpoint.specs.values():
            found[spec.dtype] += spec.nbytes
        return dict(found.most_common())


def inspect(checkpoint: Checkpoint) -> Inspection:
    """Look at a checkpoint, reading nothing but what opening it has read, and small configs."""
    reading: Reading | CtcliError | None
    try:
        reading = read_quantized(checkpoint)
    except CtcliError as error:
        reading = error
    found = _found(checkpoint, reading)
    if isinstance(reading, CtcliError):
        return found
    source = dense(checkpoint, reading) if reading else checkpoint
    return replace(found, offers=offers(source, found.parameters))


def _found(checkpoint: Checkpoint, reading: Reading | CtcliError | None) -> Inspection:
    """All but the offers: what is said of each weight and set takes memory, and is let go."""
    declared = read_declaration(checkpoint.config)
    weights = weights_of(checkpoint.modules, checkpoint.config, declared)
    parameters = sum(weight.parameters for weight in weights.values())
    quantized = sum(weight.parameters for weight in weights.values() if weight.is_quantized)
    summary = quantization(declared, weights, checkpoint.specs, checkpoint.config)
    odd = tuple(anomalies(checkpoint, weights, declared))
    del weights
    fused = fused_sets(checkpoint.specs)
    return Inspection(
        checkpoint,
        parameters,
        quantized,
        len(fused),
        _straddling(checkpoint, fused),
        is_tied(checkpoint.config),
        summary,
        stored_weights(checkpoint, reading) if isinstance(reading, Reading) else (),
        tuple(abilities(checkpoint, reading)),
        odd,
    )


def _straddling(checkpoint: Checkpoint, fused: Iterable[FusedSet]) -> dict[FusedSet, list[str]]:
    if len(checkpoint.shards) == 1:
        return {}
    home = checkpoint.home()
    found = {each: {home[name] for name in each.tensors} for each in fused}
    return {each: sorted(names, key=natural_key) for each, names in found.items() if len(names) > 1}


def file_bytes(shard: Shard) -> int:
    """Length of a shard's file, header included."""
    stored = (tensor for tensor in shard.tensors.values() if isinstance(tensor, Stored))
    return next((tensor.file.size for tensor in stored), 0)


def data_of(found: Inspection) -> dict[str, Any]:
    """Everything, for programs."""
    checkpoint = found.checkpoint
    return {
        "family": found.family,
        "architectures": checkpoint.config.get("architectures"),
        "parameters": found.parameters,
        "parameters_quantized": found.parameters_quantized,
        "tensors": len(checkpoint.specs),
        "tensor_bytes": checkpoint.nbytes,
        "bytes_by_dtype": found.bytes_by_dtype,
        "tied": found.tied,
        "heads": found.heads,
        "shards": [
            {
                "name": shard.name,
                "tensors": len(shard.tensors),
                "tensor_bytes": shard.nbytes,
                "file_bytes": file_bytes(shard),
            }
            for shard in checkpoint.shards
        ],
        "fused_sets": found.fused,
        "fused_sets_straddling": [
            {"set": fused.name, "shards": shards} for fused, shards in found.straddling.items()
        ],
        "can_run": {
            ability.name: {
                "possible": not ability.reasons,
                "reasons": list(ability.reasons),
                "hint": ability.hint or None,
                "note": ability.note or None,
            }
            for ability in found.abilities
        },
        "quantization": _quantization_data(found.quantization),
        "stored_weights": [
            {
                "pattern": each.pattern,
                "weights": each.count,
                "method": each.method,
                "bits_per_weight": each.bits,
                "converts_to": each.scheme,
            }
            for each in found.stored
        ],
        "schemes": [offer.data() for offer in found.offers],
        "history": [dict(step) for step in checkpoint.history],
        "sparsity": found.sparsity,
        "anomalies": list(found.anomalies),
    }


def _quantization_data(found: QuantizationSummary | None) -> dict[str, Any] | None:
    if found is None:
        return None
    return {
        "method": found.method,
        "groups": [
            {**group.scheme.to_config(list(group.targets)), "name": group.name, "modules": count}
            for group, count in found.groups
        ],
        "modules_left_alone": found.left_alone,
        "online_transforms": {name: list(places) for name, places in found.transforms.items()},
        "loaders": {
            loader: {
                "loads": not refusals,
                "problems": refusals,
                "has_architecture": loader not in found.strangers,
            }
            for loader, refusals in found.refusals.items()
        },
        "vllm_needs": found.machine,
        "sglang_needs": found.capability,
    }
