"""An inspection for people: rows, and sections of lines."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import zip_longest

from ctcli.console import ResultSection
from ctcli.formats.declared import QUANT_METHOD
from ctcli.formats.loaders import NAMES
from ctcli.formats.wide import wide_inputs
from ctcli.inspecting.abilities import Ability
from ctcli.inspecting.inspection import Inspection
from ctcli.inspecting.offers import Offer
from ctcli.inspecting.quantization import QuantizationSummary
from ctcli.models.config import classes
from ctcli.schemes import words
from ctcli.schemes.arguments import Scheme
from ctcli.units import counted, format_bytes

_REASONS = 3  # of a command that a line each is given to


def rows_of(found: Inspection) -> list[tuple[str, str]]:
    """Labels and values."""
    checkpoint, straddling = found.checkpoint, len(found.straddling)
    dtypes = ", ".join(f"{dtype} {format_bytes(n)}" for dtype, n in found.bytes_by_dtype.items())
    rows = [
        ("family", _family(found)),
        ("parameters", _parameters(found)),
        ("tensors", f"{len(checkpoint.specs):,} in {counted(len(checkpoint.shards), 'shard')}"),
        ("tensor bytes", f"{format_bytes(checkpoint.nbytes)}: {dtypes}"),
        ("tied", _tied(found)),
        ("fused sets", _fused_words(found.fused, straddling)),
    ]
    if checkpoint.history:
        rows.append(("made by", ", ".join(str(step.get("use")) for step in checkpoint.history)))
    if found.sparsity:
        rows.append(("pruned", found.sparsity))
    if found.quantization is None:
        rows.append(("quantization", "none"))
    elif not found.quantization.groups:
        rows.append(("quantization", found.quantization.method))
    if not found.anomalies:
        rows.append(("anomalies", "none"))
    return rows


def sections_of(found: Inspection) -> list[ResultSection]:
    """Commands, quantization, loaders, shards, straddling sets and anomalies, where there are."""
    shards = [
        (shard.name, counted(len(shard.tensors), "tensor"), format_bytes(shard.nbytes))
        for shard in found.checkpoint.shards
    ]
    straddling = [
        (f"{fused.name}: {', '.join(name.removesuffix('.safetensors') for name in names)}",)
        for fused, names in found.straddling.items()
    ]
    sections = [ResultSection("can it run", [*_abilities(found.abilities)])]
    if found.quantization:
        sections += _quantization(found.quantization)
    stored = [
        (f"{each.count:,} x", f"{each.pattern}: {each.method}; {each.bits:.3g} bits per weight")
        for each in found.stored
    ]
    sections.append(ResultSection("quantized weights", stored))
    if found.quantization is None or found.quantization.method != QUANT_METHOD:
        heading = "what `ctcli quantize --scheme` would make of it"
        sections.append(ResultSection(heading, [*_offers(found.offers)]))
    sections += [
        ResultSection("shards", shards),
        ResultSection("fused sets that straddle shards (reindex brings them together)", straddling),
        ResultSection("anomalies", [(line,) for line in found.anomalies]),
    ]
    return [section for section in sections if section.lines]


def _family(found: Inspection) -> str:
    if found.family is None:
        return "not told: config.json is missing, empty or not JSON"
    named = classes(found.checkpoint.config)
    return f"{found.family} ({', '.join(named)})" if named else found.family


def _parameters(found: Inspection) -> str:
    total, quantized = found.parameters, found.parameters_quantized
    text = f"{total:,}"
    return f"{text}, {quantized:,} of them in quantized weights" if quantized else text


def _tied(found: Inspection) -> str:
    if found.heads:
        return "no: the head has a weight of its own"
    if found.tied:
        return "yes: the head is the embedding"
    return "no head is stored" + (", and config.json does not say" if found.tied is None else "")


def _abilities(abilities: tuple[Ability, ...]) -> Iterator[tuple[str, ...]]:
    told: set[tuple[str, ...]] = set()
    for ability in abilities:
        if not ability.reasons:
            yield ability.name, f"yes: {ability.note}" if ability.note else "yes"
        elif ability.reasons in told:
            yield ability.name, "no, as above"
        else:
            told.add(ability.reasons)
            yield from _under(ability.name, "no: ", ability.reasons)


def _under(name: str, verdict: str, reasons: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """A line for each of the first reasons, the name before the first."""
    lines = [*reasons[:_REASONS]]
    if rest := len(reasons) - _REASONS:
        lines += [f"... and {rest} more: --json lists them all"] if rest > 0 else []
    for label, line in zip_longest([name], lines, fillvalue=""):
        yield label, (verdict if label else " " * len(verdict)) + line


def _quantization(found: QuantizationSummary) -> Iterator[ResultSection]:
    groups = [
        (group.name, counted(count, "module"), _words(group.scheme))
        for group, count in found.groups
    ]
    if groups:
        groups.append(("left alone", counted(found.left_alone, "module"), ""))
        yield ResultSection(f"quantization ({found.method})", groups)
    if found.transforms:
        places = [(name, ", ".join(where)) for name, where in found.transforms.items()]
        yield ResultSection("rotations at run time", places)
    loaders: list[tuple[str, ...]] = []
    for loader, refusals in found.refusals.items():
        if refusals:
            loaders += _under(NAMES[loader], "no: ", tuple(refusals))
        else:
            machine = {"vllm": found.machine, "sglang": found.capability}.get(loader)
            on = f", on {machine}" if machine else ""
            if wide := wide_inputs(loader, (group.scheme for group, _ in found.groups)):
                on += f"; {wide}"
            if loader in found.strangers:
                on += "; the architecture: not known to it"
            loaders.append((NAMES[loader], f"yes{on}"))
    yield ResultSection("does it load in", loaders)


def _offers(offers: tuple[Offer, ...]) -> Iterator[tuple[str, ...]]:
    """A line for each scheme: size, bits per weight, memory, who loads it, what else to give."""
    for offer in offers:
        if offer.nbytes is None:
            yield offer.scheme, "no", "", "", offer.problem
            continue
        loaders = [f"vLLM ({offer.machine})"] if offer.machine else []
        loaders += ["transformers"] if offer.in_transformers else []
        loaders += [f"SGLang ({offer.capability})"] if offer.capability else []
        words = ", ".join(loaders) or "no loader"
        yield (
            offer.scheme,
            format_bytes(offer.nbytes),
            f"{offer.bits:.3g} bits",
            f"fits {offer.fits}",
            f"{words}; give {offer.options}" if offer.options else words,
        )


def _words(scheme: Scheme) -> str:
    inputs = scheme.input_activations
    parts = [words(scheme.weights), f"inputs {words(inputs)}" if inputs else "", scheme.format]
    return "; ".join(part for part in parts if part)


def _fused_words(number: int, straddling: int) -> str:
    """How many fused sets there are, and how many of them lie in several shards."""
    if not number:
        return "0"
    straddle = "straddles" if straddling == 1 else "straddle"
    return f"{number:,}, of which {straddling or 'none'} {straddle} shards"
