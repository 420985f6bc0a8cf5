"""Schemes as users write them: preset names and single arguments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from ctcli.errors import UsageError
from ctcli.schemes import check, default_format, format_of
from ctcli.schemes.advice import advice_on
from ctcli.schemes.arguments import QuantizationArgs, Scheme, Strategy
from ctcli.schemes.presets import preset

# A scheme and the modules it is for: a pattern, or None for all linears that nothing else matches.
TargetedScheme = tuple[str | None, Scheme]
UNNAMED = "config_group_0"
_ALL = "`ctcli help quantize` lists all presets."
_COMMON = "Common ones: FP8_DYNAMIC, W4A16, NVFP4A16;"


@dataclass(frozen=True)
class Overrides:
    """Single arguments of the weights; None leaves what the preset says."""

    num_bits: int | None = None
    type: Literal["int", "float"] | None = None
    strategy: Strategy | None = None
    group_size: int | None = None
    block_structure: tuple[int, int] | None = None
    symmetric: bool | None = None
    format: str | None = None

    def given(self) -> dict[str, Any]:
        """Those that are set."""
        return {key: value for key, value in vars(self).items() if value is not None}


def parse_schemes(texts: Sequence[str], overrides: Overrides) -> tuple[TargetedScheme, ...]:
    """Parse `NAME` and `PATTERN=NAME`, and apply single arguments to each.

    Args:
        texts: as given; none, if the scheme is made of single arguments.
        overrides: the single arguments.

    Raises:
        UsageError: unknown presets, arguments that do not go together, or what would have no
            effect; lists them all.
    """
    if not texts and not overrides.given():
        raise UsageError(
            "no scheme is given.", f"Give --scheme, --config or --bits. {_COMMON} {_ALL}"
        )
    if idle := _idle_arguments(overrides):
        raise UsageError(idle, "Leave it out.")
    found: list[TargetedScheme] = []
    problems: list[str] = []
    hints: list[str] = []
    for text in texts or [""]:
        pattern, given, name = text.rpartition("=")
        if (texts and not name) or (given and not pattern):
            problems.append(f"--scheme {text!r}: give NAME, or PATTERN=NAME.")
            continue
        try:
            found.append((pattern or None, _scheme(name, overrides)))
        except KeyError:
            problems.append(f"--scheme {text}: there is no preset {name!r}.")
            hints.append(advice_on(name))
        except ValueError as error:
            problems.append(f"--scheme {text}: {error}." if text else f"{error}.")
    if problems:
        advice = " ".join(hint for hint in dict.fromkeys(hints) if hint)
        raise UsageError(problems, f"{advice or _COMMON} {_ALL}")
    _check_reached(texts, [pattern for pattern, _ in found])
    return tuple(found)


def _idle_arguments(overrides: Overrides) -> list[str]:
    """Why single arguments would have no effect beside a strategy."""
    strategy, block = overrides.strategy, overrides.block_structure
    problems = []
    if overrides.group_size and strategy not in (None, "group", "tensor_group"):
        problems.append(f"--group-size: it would have no effect: --strategy {strategy} has none.")
    elif overrides.group_size and block:
        problems.append("--group-size: it would have no effect: --block says what shares a scale.")
    if block and strategy not in (None, "block"):
        problems.append(f"--block: it would have no effect: --strategy {strategy} has none.")
    return problems


def _check_reached(texts: Sequence[str], patterns: Sequence[str | None]) -> None:
    """Refuse schemes of modules that an earlier scheme takes.

    Raises:
        UsageError: names each with the earlier one.
    """
    first: dict[str | None, int] = {}
    problems = [
        f"--scheme {text}: it would have no effect: --scheme {texts[earlier]} takes "
        f"{f'what {pattern} matches' if pattern else 'all linears'} before it."
        for number, (text, pattern) in enumerate(zip(texts, patterns, strict=False))
        if (earlier := first.setdefault(pattern, number)) < number
    ]
    if problems:
        raise UsageError(problems, "Give one scheme, or each a pattern: --scheme 'PATTERN=NAME'.")


def _scheme(name: str, overrides: Overrides) -> Scheme:
    base = preset(name) if name else _by_hand(overrides)
    changes = overrides.given()
    layout = changes.pop("format", None)
    if not changes and not layout:
        return _checked(base)
    if "block_structure" in changes:
        changes.setdefault("strategy", "block")
    elif changes.get("group_size"):
        changes.setdefault(
            "strategy", base.weights.strategy if base.weights.group_size else "group"
        )
    weights = replace(base.weights, **changes)
    if weights.type == "float" and overrides.symmetric is False:
        raise ValueError("floats have no zero point: leave --asymmetric out")
    if weights.strategy not in ("group", "tensor_group"):
        weights = replace(weights, group_size=None)
    if weights.strategy != "block":
        weights = replace(weights, block_structure=None)
    chosen = layout or default_format(weights, base.input_activations)
    return _checked(replace(base, weights=weights, format=chosen))


def _by_hand(overrides: Overrides) -> Scheme:
    bits = overrides.num_bits or 8
    weights = QuantizationArgs(bits, overrides.type or "int", "channel")
    if (weights.type, bits) == ("float", 4):
        weights = replace(preset("NVFP4A16").weights)
    return Scheme(UNNAMED, weights, None, default_format(weights, None))


def _checked(scheme: Scheme) -> Scheme:
    check(scheme.weights)
    format_of(scheme)
    return scheme
