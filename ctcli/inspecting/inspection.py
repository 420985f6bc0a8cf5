"""`ctcli inspect`: everything that headers and configs tell."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
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
from ctcli.inspecting.weights import InspectedWeight, weights_of
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
        weights: its parameters.
        fused: its fused sets.
        tied: what config.json says of embedding and head; None: nothing.
        quantization: None if config.json declares none.
        stored: the quantized weights, alike ones together.
        abilities: which commands can run.
        anomalies: what is out of the ordinary.
        offers: what it would become under common schemes.
    """

    checkpoint: Checkpoint
    weights: Mapping[str, InspectedWeight]
    fused: tuple[FusedSet, ...]
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

    @cached_property
    def straddling(self) -> dict[FusedSet, list[str]]:
        """Fused sets that lie in several shards, and which."""
        home = self.checkpoint.home()
        found = {fused: {home[name] for name in fused.tensors} for fused in self.fused}
        return {
            f: sorted(shards, key=natural_key) for f, shards in found.items() if len(shards) > 1
        }

    def parameters(self, quantized: bool = False) -> int:
        """How many parameters there are, or those of quantized weights alone."""
        weights = self.weights.values()
        return sum(w.parameters for w in weights if w.is_quantized or not quantized)


def inspect(checkpoint: Checkpoint) -> Inspection:
    """Look at a checkpoint, reading nothing but what opening it has read, and small configs."""
    declared = read_declaration(checkpoint.config)
    weights = weights_of(checkpoint.modules, checkpoint.config, declared)
    reading: Reading | CtcliError | None
    try:
        reading = read_quantized(checkpoint)
    except CtcliError as error:
        reading = error
    found = Inspection(
        checkpoint,
        weights,
        tuple(fused_sets(checkpoint.specs)),
        is_tied(checkpoint.config),
        quantization(declared, weights, checkpoint.specs, checkpoint.config),
        stored_weights(checkpoint, reading) if isinstance(reading, Reading) else (),
        tuple(abilities(checkpoint, reading)),
        tuple(anomalies(checkpoint, weights, declared)),
    )
    if isinstance(reading, CtcliError):
        return found
    source = dense(checkpoint, reading) if reading else checkpoint
    return replace(found, offers=offers(source, found.parameters()))


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
        "parameters": found.parameters(),
        "parameters_quantized": found.parameters(quantized=True),
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
        "fused_sets": len(found.fused),
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
