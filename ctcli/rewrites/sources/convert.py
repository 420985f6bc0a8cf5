"""`ctcli convert`: quantized checkpoints of other tools as compressed-tensors ones."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import replace

from ctcli.checkpoint.sharding import cut_to_size
from ctcli.checkpoint.value import Checkpoint
from ctcli.errors import CtcliError
from ctcli.formats.sources.cache import as_compressed, cache_problem
from ctcli.formats.sources.coded import Coded
from ctcli.formats.sources.reading import SIDE_FILES, Reading, read_quantized, without_quantization
from ctcli.lazy.nodes import LazyTensor
from ctcli.rewrites.quantizing.config import quantization_config
from ctcli.rewrites.quantizing.selection import Selection
from ctcli.rewrites.sources.options import ConvertOptions
from ctcli.rewrites.sources.report import SourceReport
from ctcli.schemes import words

# Kinds of modules that a reader of config.json could take for quantized.
_LINEARS = ("linear", "head", "router", "experts")


def convert(checkpoint: Checkpoint, options: ConvertOptions) -> tuple[Checkpoint, SourceReport]:
    """Give quantized weights compressed-tensors' names and layouts; their numbers stay.

    Raises:
        CtcliError: there are none, or some have no counterpart.
    """
    reading = read_quantized(checkpoint, None, options.parts)
    if reading is None or not reading.coded:
        raise CtcliError(
            f"{checkpoint.origin.name}: none of its weights is quantized.",
            "Quantize it with ctcli quantize.",
        )
    _check(reading)
    homes = reading.homes

    def tensors(given: Mapping[str, LazyTensor]) -> Iterator[tuple[str, LazyTensor]]:
        for name, tensor in given.items():
            if name in homes:
                for coded in (leaf for home in homes[name] for leaf in home.leaves):
                    for suffix, stored in coded.stored.items():
                        yield f"{coded.module}.{suffix}", stored
            elif name in reading.cache:
                yield as_compressed(name, tensor)
            elif name not in reading.used:
                yield name, tensor

    shards = tuple(
        replace(shard, tensors=dict(tensors(shard.tensors))) for shard in checkpoint.shards
    )
    files = {name: file for name, file in checkpoint.files.items() if name not in SIDE_FILES}
    leaves = [leaf for coded in reading.coded.values() for leaf in coded.leaves]
    schemes = {coded.module: coded.scheme for coded in leaves if coded.scheme}
    taken = {*schemes, *(coded.module for coded in reading.coded.values())}
    kept = {
        module.name: "not quantized"
        for module in checkpoint.modules.values()
        if module.name not in taken and module.kind in _LINEARS and module.weight
    }
    tied = [] if "lm_head" in {*schemes, *kept} else ["lm_head"]
    selection = Selection(schemes, kept)
    config = without_quantization(checkpoint.config)
    config["quantization_config"] = quantization_config(selection, tied, bool(reading.cache))
    result = replace(
        checkpoint,
        shards=tuple(shard for shard in shards if shard.tensors),
        files=files,
        steps=(*checkpoint.steps, {"use": "convert", **options.recipe}),
    ).with_config(config)
    if options.max_shard_size:
        result = cut_to_size(result, options.max_shard_size)
    became = {coded.name: f"{coded.method} -> {_words(coded)}" for coded in leaves}
    return result, SourceReport("converted", became, True, checkpoint.nbytes, result.nbytes)


def _words(coded: Coded) -> str:
    assert coded.scheme, "it was checked"
    return f"{coded.scheme.name} ({words(coded.scheme.weights)}, {coded.scheme.format})"


def _check(reading: Reading) -> None:
    """Refuse weights that have no counterpart, each reason once."""
    if reading.cache and (problem := cache_problem(reading.said)):
        name = next(iter(reading.cache))
        raise CtcliError(f"{name}: {problem}.", "Turn it into floats with ctcli dequantize.")
    reasons: dict[str, list[str]] = defaultdict(list)
    for coded in (leaf for each in reading.coded.values() for leaf in each.leaves):
        if coded.scheme is None:
            reasons[f"{coded.method}: {coded.refusal}"].append(coded.module)
    if reasons:
        raise CtcliError(
            [
                f"{modules[0]} ({len(modules)} like it): {reason}."
                for reason, modules in reasons.items()
            ],
            "Turn it into floats with ctcli dequantize, or quantize it anew with ctcli quantize.",
        )
