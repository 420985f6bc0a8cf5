"""A checkpoint that is quantized already, as one of floats, or as what its weights are."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ctcli.checkpoint.sharding import with_tensors
from ctcli.checkpoint.value import Checkpoint
from ctcli.errors import CtcliError
from ctcli.formats.declared import read_declaration
from ctcli.formats.quantized import quantized_format
from ctcli.formats.sources import SOURCES
from ctcli.formats.sources.cache import cache_scales
from ctcli.formats.sources.coded import Coded, Source, SourceError
from ctcli.lazy.nodes import LazyTensor
from ctcli.lazy.tensors import Stored, TensorSpec, content_of
from ctcli.models.config import quantizations, table, text_config
from ctcli.models.modules import Module
from ctcli.ops.dtypes import CODES, DTYPES, SHORT_FLOATS, WEIGHT_FLOATS

# Files in which tools say how they quantized, beside config.json.
SIDE_FILES = (
    "hf_quant_config.json",
    "quantize_config.json",
    "quant_config.json",
    "quant_strategy.json",
)
# Keys of config.json that say how weights are stored; `expert_dtype` is DeepSeek-V4's.
_KEYS = ("quantization_config", "compression_config", "expert_dtype")
# Last components of names that only quantized weights have beside them.
_SCALES = (
    *("weight_scale", "weight_scale_inv", "weight_scale_2", "weight_global_scale", "weight_packed"),
    *("weight_zero_point", "weight_shape", "weight_g_idx", "qweight", "qzeros", "g_idx"),
    *("absmax", "SCB", "pre_quant_scale", "output_scale", "scale2", "svdquant_lora_a"),
)
# What names of packed experts end with, where they are quantized.
_PACKED = re.compile(r".*\.(gate_up_proj|down_proj)(_(weight_)?scale(_inv|_2|s)?|_blocks)?")
_HINT = "Convert it with the tool that wrote it, or repair the checkpoint."


@dataclass(frozen=True)
class Reading:
    """The weights of a quantized checkpoint.

    Attributes:
        coded: every quantized weight, by the dense tensor's name.
        used: the names of all tensors that they take.
        cache: the scales of the key-value cache, by name.
        said: what the tool that quantized says, in config.json or a file of its own.
    """

    coded: Mapping[str, Coded]
    used: Collection[str]
    cache: Mapping[str, LazyTensor]
    said: Mapping[str, Any]

    @property
    def is_exact(self) -> bool:
        """Whether no weight is rounded."""
        return all(coded.is_exact for coded in self.coded.values())


def read_quantized(
    checkpoint: Checkpoint, dtype: str | None = None, presharded: Mapping[str, int] | None = None
) -> Reading | None:
    """The quantized weights of a checkpoint; None where there are none.

    Args:
        checkpoint: the checkpoint.
        dtype: safetensors tag of the floats that they become; None: what config.json says.
        presharded: pattern of modules whose rows were quantized in so many parts.

    Raises:
        CtcliError: lists all weights that cannot be read.
    """
    name, config = checkpoint.origin.name, checkpoint.config
    if not quantized_format(checkpoint.specs.items(), config):
        return None
    said = _said(checkpoint)
    return read_modules(name, checkpoint.modules, config, dtype, presharded, said)


def read_modules(
    origin: str,
    modules: Mapping[str, Module[LazyTensor]],
    config: Mapping[str, Any],
    dtype: str | None = None,
    presharded: Mapping[str, int] | None = None,
    said: Mapping[str, Any] | None = None,
) -> Reading | None:
    """The same of a checkpoint's modules and its config.json.

    Args:
        origin: the checkpoint's name, for messages.
        modules: all there are, by name.
        config: config.json.
        dtype: see `read_quantized`.
        presharded: likewise.
        said: what the tool that quantized says; None: what config.json does.
    """
    tensors = {
        module.tensor(leaf): tensor
        for module in modules.values()
        for leaf, tensor in module.parts.items()
    }
    method = quantized_format(((name, t.spec) for name, t in tensors.items()), config)
    if not method:
        return None
    if any(not isinstance(t, Stored) and _leaf(name) in _SCALES for name, t in tensors.items()):
        raise CtcliError(
            f"{origin}: it is quantized already, by an earlier step.",
            "Quantize last.",
        )
    plain = (tensor.spec for name, tensor in tensors.items() if _leaf(name) == "weight")
    source = Source(
        modules,
        config,
        _said_in(config) if said is None else said,
        read_declaration(config),
        dtype or default_dtype(config, plain),
        presharded or {},
    )
    _check_transforms(origin, source)
    coded: dict[str, Coded] = {}
    problems: dict[str, list[str]] = defaultdict(list)
    for module in modules.values():
        try:
            coded |= {each.name: each for each in _weights(module, source)}
        except SourceError as error:
            problems[str(error)].append(module.name)
    cache = cache_scales(tensors)
    used = {name for each in coded.values() for name in each.parts}
    if not problems:
        for name, tensor in tensors.items():
            if name not in used and (problem := _leftover(name, tensor)):
                problems[problem].append(name)
    if not (coded or problems):
        problems[f"it says that weights are quantized ({method}), and none is"] = ["config.json"]
    if problems:
        found = [f"{_some(names)}: {problem}." for problem, names in problems.items()]
        raise CtcliError(found, _HINT)
    return Reading(coded, used, cache, source.said)


def as_floats(
    checkpoint: Checkpoint, dtype: str | None = None, presharded: Mapping[str, int] | None = None
) -> Checkpoint:
    """The dense checkpoint that a quantized one stands for; a dense one is itself.

    Arguments and errors are those of `read_quantized`.
    """
    reading = read_quantized(checkpoint, dtype, presharded)
    return dense(checkpoint, reading) if reading else checkpoint


def dense(checkpoint: Checkpoint, reading: Reading) -> Checkpoint:
    """The checkpoint with floats in place of quantized weights, and a config.json that fits."""
    used = {*reading.used, *reading.cache}
    result = replaced(checkpoint, replace(reading, used=used, cache={}), _floats)
    return result.with_config(without_quantization(checkpoint.config))


def replaced(
    checkpoint: Checkpoint,
    reading: Reading,
    tensors: Callable[[Coded], Mapping[str, LazyTensor]],
) -> Checkpoint:
    """The checkpoint with other tensors, by name, in place of each quantized weight.

    Side files that say how it was quantized are left out; config.json stays.
    """
    homes: dict[str, list[Coded]] = defaultdict(list)
    for coded in reading.coded.values():
        homes[coded.parts[0]].append(coded)
    shards = []
    for shard in checkpoint.shards:
        made: dict[str, LazyTensor] = {}
        for name, tensor in shard.tensors.items():
            if name in homes:
                for coded in homes[name]:
                    made |= tensors(coded)
            elif name not in reading.used:
                made[name] = tensor
        shards.append(replace(shard, tensors=made))
    files = {name: file for name, file in checkpoint.files.items() if name not in SIDE_FILES}
    return replace(with_tensors(checkpoint, shards), files=files)


def _floats(coded: Coded) -> Mapping[str, LazyTensor]:
    return {coded.name: coded.weight}


def without_quantization(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json of a dense checkpoint, in all its parts."""
    return {
        key: without_quantization(value) if isinstance(value, dict) else value
        for key, value in config.items()
        if key not in _KEYS
    }


def default_dtype(config: Mapping[str, Any], specs: Iterable[TensorSpec]) -> str:
    """Safetensors tag of the floats that weights become.

    It is what config.json says, or else what most weights of norms are; BF16 where there are none.
    """
    said = [
        part.get(key) for part in (text_config(config), config) for key in ("dtype", "torch_dtype")
    ]
    names = {DTYPES[tag].torch_name: tag for tag in WEIGHT_FLOATS}
    known = (names.get(str(name).removeprefix("torch.")) for name in said)
    counts = Counter(s.dtype for s in specs if s.dtype in SHORT_FLOATS and len(s.shape) == 1)
    most = next((tag for tag, _ in counts.most_common(1)), "BF16")
    return next((tag for tag in known if tag), most)


def _said(checkpoint: Checkpoint) -> Mapping[str, Any]:
    """What is said of quantization: in config.json, else in the file of the tool that did it."""
    if found := _said_in(checkpoint.config):
        return found
    for name in SIDE_FILES:
        file = checkpoint.files.get(name)
        if file is None:
            continue
        try:
            content = json.loads(file if isinstance(file, bytes) else content_of(file))
        except ValueError as error:
            raise CtcliError(f"{name}: it is not valid JSON: {error}.", _HINT) from error
        return table(table(content).get("quantization", content))
    return {}


def _said_in(config: Mapping[str, Any]) -> Mapping[str, Any]:
    return next((table(said) for said in quantizations(config)), {})


def _weights(module: Module[LazyTensor], source: Source) -> list[Coded]:
    """The weights of a module, as the first format that knows any reads them."""
    for form in SOURCES:
        if found := [*form.weights(module, source)]:
            return found
    return []


def _check_transforms(origin: str, source: Source) -> None:
    """Refuse weights that are rotated: their floats are not the model's."""
    said = table(source.said.get("transform_config"))
    if transforms := table(said.get("config_groups")):
        raise CtcliError(
            f"{origin}: its weights are rotated ({', '.join(transforms)}), and the "
            "server rotates what they read: as floats they would be another model's.",
            "Start from the checkpoint without rotations.",
        )


def _leftover(name: str, tensor: LazyTensor) -> str:
    """What is wrong with a tensor that no weight took; empty: nothing."""
    leaf = _leaf(name)
    if leaf in _SCALES:
        return "it belongs to no quantized weight that is known"
    if _PACKED.fullmatch(name) and leaf not in ("gate_up_proj", "down_proj"):
        return "it belongs to no quantized weight that is known"
    is_weight = leaf == "weight" or (tensor.spec.shape[2:] and _PACKED.fullmatch(name))
    if (is_weight and tensor.spec.dtype in CODES) or tensor.spec.dtype in ("F8_E4M3", "F8_E5M2"):
        return f"it is {tensor.spec.dtype}, and no scale that is known goes with it"
    return ""


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown
