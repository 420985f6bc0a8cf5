"""`ctcli convert`: the same quantized numbers under other names and in other layouts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from ctcli.checkpoint.sharding import cut_to_size
from ctcli.checkpoint.value import Checkpoint
from ctcli.errors import CtcliError
from ctcli.formats.sources.cache import as_compressed, cache_problem
from ctcli.formats.sources.coded import Coded
from ctcli.formats.sources.reading import (
    Reading,
    read_quantized,
    replaced,
    without_quantization,
)
from ctcli.lazy.nodes import LazyTensor, Stacked
from ctcli.rewrites.quantizing.config import Release, quantization_config
from ctcli.rewrites.quantizing.options import QuantizeOptions
from ctcli.rewrites.quantizing.quantize import quantize
from ctcli.rewrites.quantizing.report import QuantizeReport
from ctcli.rewrites.sources.nvfp4 import as_nvfp4
from ctcli.rewrites.sources.options import ConvertOptions
from ctcli.rewrites.sources.report import SourceReport
from ctcli.schemes import words

# Kinds of modules that a reader of config.json could take for quantized.
_LINEARS = ("linear", "head", "router", "experts")


def convert(
    checkpoint: Checkpoint, options: ConvertOptions
) -> tuple[Checkpoint, SourceReport | QuantizeReport]:
    """Give quantized weights the names and layouts of compressed-tensors, or of DeepSeek's FP8.

    Raises:
        CtcliError: there are none, or some have no counterpart.
    """
    reading = read_quantized(checkpoint, None, options.parts)
    if reading is None or not reading.coded:
        raise CtcliError(
            f"{checkpoint.origin.name}: none of its weights is quantized.",
            "Quantize it with ctcli quantize.",
        )
    step = {"use": "convert", **options.recipe}
    leaves = [leaf for coded in reading.coded.values() for leaf in coded.leaves]
    refused = [coded for coded in leaves if coded.scheme is None]
    if refused and options.requantize:
        schemes = tuple(f"{coded.module}={options.requantize}" for coded in refused)
        again = QuantizeOptions(
            scheme=schemes,
            ct_version=options.ct_version,
            max_shard_size=options.max_shard_size,
        )
        result, requantized = quantize(checkpoint, again)
        return replace(result, steps=(*checkpoint.steps, step)), requantized
    _check(refused)
    if options.to == "nvfp4":
        reading = _with_nvfp4(checkpoint, reading)
        leaves = [leaf for coded in reading.coded.values() for leaf in coded.leaves]
    if reading.cache and (problem := cache_problem(reading.said)):
        name = next(iter(reading.cache))
        raise CtcliError(f"{name}: {problem}.", "Turn it into floats with ctcli dequantize.")
    used = {*reading.used}
    kept = {
        module.name: "not quantized"
        for module in checkpoint.modules.values()
        if module.kind in _LINEARS
        and module.weight
        and not {module.name, module.tensor("weight")} & used
    }
    if options.to == "fp8":
        result, said = _as_fp8(checkpoint, reading, kept)
    else:
        result, said = _as_compressed(checkpoint, reading, kept, options.ct_version)
    config = {**without_quantization(checkpoint.config), "quantization_config": said}
    result = replace(result, steps=(*checkpoint.steps, step)).with_config(config)
    if options.max_shard_size:
        result = cut_to_size(result, options.max_shard_size)
    became = {coded.name: f"{coded.method} -> {_words(coded)}" for coded in leaves}
    exact = not any(coded.has_reciprocal for coded in leaves)
    return result, SourceReport("converted", became, exact, checkpoint.nbytes, result.nbytes)


def _with_nvfp4(checkpoint: Checkpoint, reading: Reading) -> Reading:
    """The same weights with NVFP4 in the place of MXFP4.

    Raises:
        CtcliError: none is MXFP4.
    """
    found = as_nvfp4([leaf for coded in reading.coded.values() for leaf in coded.leaves])
    if not found:
        raise CtcliError(
            f"{checkpoint.origin.name}: none of its weights is MXFP4.",
            "Quantize it anew with ctcli quantize --scheme NVFP4A16.",
        )
    coded = {
        name: found.get(name) or replace(c, linears=tuple(found.get(x.name, x) for x in c.linears))
        for name, c in reading.coded.items()
    }
    return replace(reading, coded=coded)


def _as_compressed(
    checkpoint: Checkpoint, reading: Reading, kept: Mapping[str, str], release: Release
) -> tuple[Checkpoint, dict[str, Any]]:
    """The checkpoint in compressed-tensors' layouts, and its quantization_config."""
    leaves = [leaf for coded in reading.coded.values() for leaf in coded.leaves]
    schemes = {coded.module: coded.scheme for coded in leaves if coded.scheme}
    tied = [] if "lm_head" in {*schemes, *kept} else ["lm_head"]
    named = {name for name, m in checkpoint.modules.items() if m.kind in ("embedding", "head")}
    said = quantization_config(
        schemes, kept, tied, named=named, kv_cache=bool(reading.cache), release=release
    )
    result = replaced(checkpoint, reading, lambda c: _named(c, "weight_scale"))
    shards = (
        replace(
            shard,
            tensors=dict(
                as_compressed(name, tensor) if name in reading.cache else (name, tensor)
                for name, tensor in shard.tensors.items()
            ),
        )
        for shard in result.shards
    )
    return replace(result, shards=tuple(shards)), said


def _as_fp8(
    checkpoint: Checkpoint, reading: Reading, kept: Mapping[str, str]
) -> tuple[Checkpoint, dict[str, Any]]:
    """The checkpoint as transformers' and vLLM's `fp8` method reads it, and what that is told.

    Fields: https://huggingface.co/docs/transformers, `FineGrainedFP8Config`.

    Raises:
        CtcliError: not all of its weights are FP8 blocks of one size.
    """
    leaves = [leaf for coded in reading.coded.values() for leaf in coded.leaves]
    arguments = {coded.scheme.weights for coded in leaves if coded.scheme}
    block = next(iter(arguments)).block_structure
    if len(arguments) > 1 or not block or next(iter(arguments)).type != "float":
        found = ", ".join(sorted(words(each) for each in arguments))
        raise CtcliError(
            f"{checkpoint.origin.name}: fp8 stores blocks of one size, and this is {found}.",
            "Leave --to away: compressed-tensors stores them all.",
        )

    said = {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "modules_to_not_convert": sorted(kept),
        "quant_method": "fp8",
        "weight_block_size": list(block),
    }
    return replaced(checkpoint, reading, lambda c: _named(c, "weight_scale_inv")), said


def _named(coded: Coded, scale: str) -> dict[str, LazyTensor]:
    """The tensors of a weight, or of the linears that it is made of, by name."""
    return {
        f"{leaf.module}.{scale if suffix == 'weight_scale' else suffix}": tensor
        for leaf in coded.leaves
        for suffix, tensor in leaf.stored.items()
    }


def _words(coded: Coded) -> str:
    assert coded.scheme, "it was checked"
    return f"{coded.scheme.name} ({words(coded.scheme.weights)}, {coded.scheme.format})"


def _check(refused: Collection[Coded]) -> None:
    """Refuse weights that have no counterpart, each reason once."""
    reasons: dict[str, list[str]] = defaultdict(list)
    for coded in refused:
        reasons[f"{coded.method}: {coded.refusal}"].append(coded.module)
    if reasons:
        raise CtcliError(
            [
                f"{modules[0]} ({len(modules)} like it): {reason}."
                for reason, modules in reasons.items()
            ],
            refusal_hint(refused),
        )


def refusal_hint(refused: Collection[Coded]) -> str:
    """What to do with weights that have no counterpart; experts in one tensor are no linears."""
    if all(isinstance(coded.weight, Stacked) and not coded.weight.linears for coded in refused):
        return "Serve it as it is, or make floats with ctcli dequantize."
    return "Quantize these anew with --requantize SCHEME, or make floats with ctcli dequantize."
