"""Two checkpoints side by side, from headers and configs alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ctcli.checkpoint.sharding import natural_key
from ctcli.checkpoint.value import Checkpoint
from ctcli.console import ResultSection
from ctcli.lazy.tensors import TensorSpec
from ctcli.patterns import alike
from ctcli.units import counted, format_bytes

_SHOWN = 60  # characters of a value of config.json


def compare(one: Checkpoint, other: Checkpoint) -> dict[str, Any]:
    """What differs, for programs."""
    first, second = one.specs, other.specs
    both = [name for name in first if name in second]
    return {
        "only_in_first": _only(first, second),
        "only_in_second": _only(second, first),
        "different": {
            name: {"first": _look(first[name]), "second": _look(second[name])}
            for name in both
            if first[name] != second[name]
        },
        "alike": sum(first[name] == second[name] for name in both),
        "tensor_bytes": [one.nbytes, other.nbytes],
        "config": {
            key: {"first": one.config.get(key), "second": other.config.get(key)}
            for key in dict.fromkeys((*one.config, *other.config))
            if one.config.get(key) != other.config.get(key)
        },
    }


def rows_of(data: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Labels and values of a comparison."""
    before, after = data["tensor_bytes"]
    return [
        ("tensor bytes", f"{format_bytes(before)} and {format_bytes(after)}"),
        ("alike", f"{counted(data['alike'], 'tensor')} of the same name, dtype and shape"),
        ("different", counted(len(data["different"]), "tensor")),
        ("only in the first", counted(len(data["only_in_first"]), "tensor")),
        ("only in the second", counted(len(data["only_in_second"]), "tensor")),
    ]


def sections_of(data: Mapping[str, Any]) -> list[ResultSection]:
    """What differs, alike names together."""
    different = {
        name: f"{_words(looks['first'])} -> {_words(looks['second'])}"
        for name, looks in data["different"].items()
    }
    sections = [
        ResultSection("different", [*_lines(different)]),
        ResultSection("only in the first", [*_lines(dict.fromkeys(data["only_in_first"], ""))]),
        ResultSection("only in the second", [*_lines(dict.fromkeys(data["only_in_second"], ""))]),
        ResultSection("config.json", [*_config(data["config"])]),
    ]
    return [section for section in sections if section.lines]


def _lines(told: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    for pattern, count, what in alike(told):
        yield pattern, f"{count:,} x", what


def _config(changes: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    for key, values in changes.items():
        yield key, " -> ".join(_short(values[side]) for side in ("first", "second"))


def _short(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]} ..."


def _look(spec: TensorSpec) -> dict[str, Any]:
    return {"dtype": spec.dtype, "shape": list(spec.shape)}


def _words(look: Mapping[str, Any]) -> str:
    return f"{look['dtype']} {look['shape']}"


def _only(one: Mapping[str, TensorSpec], other: Mapping[str, TensorSpec]) -> list[str]:
    return sorted((name for name in one if name not in other), key=natural_key)
