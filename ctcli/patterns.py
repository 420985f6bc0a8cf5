"""Module patterns as compressed-tensors has them: exact names, or `re:` and an expression."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping

from ctcli.errors import CtcliError
from ctcli.expressions import expression

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")


def alike(told: Mapping[str, str]) -> list[tuple[str, int, str]]:
    """Names that differ in numbers alone as one: `model.layers.*.mlp`, their count, what is said.

    Args:
        told: what is said of each name.
    """
    counts = Counter((numberless(name), what) for name, what in told.items())
    return [(pattern, count, what) for (pattern, what), count in counts.items()]


def numberless(name: str) -> str:
    """A name with `*` in the place of its numbers, as of layers and experts."""
    return _NUMBER.sub("*", name)


def matches(pattern: str, module: str) -> bool:
    """Whether a pattern names a module; expressions are anchored at its start, not at its end.

    Raises:
        re.error: it is no expression, or might take too long to match.
    """
    if pattern.startswith("re:"):
        return expression(pattern[3:]).matches(module)
    return pattern == module


def fault_of(pattern: str) -> str | None:
    """Why a pattern cannot be matched; None: it can."""
    try:
        matches(pattern, "")
    except re.error as error:
        return str(error)
    return None


def matching(patterns: Iterable[str], modules: Collection[str]) -> set[str]:
    """The modules that one of the patterns names."""
    found: set[str] = set()
    for pattern in patterns:
        if pattern.startswith("re:"):
            found.update(filter(re.compile(pattern[3:]).match, modules))
        elif pattern in modules:
            found.add(pattern)
    return found


def check_patterns(patterns: Iterable[str], modules: Collection[str], kind: str = "module") -> None:
    """Refuse patterns that are no expressions, or that match nothing, naming what is near.

    Args:
        patterns: what was given.
        modules: the names.
        kind: what these are names of.

    Raises:
        CtcliError: lists them all.
    """
    if not (patterns := [*patterns]):
        return  # of very many modules, a further table of names counts
    problems = []
    names = frozenset(modules)
    example = ""
    for pattern in patterns:
        try:
            is_name = not pattern.startswith("re:")
            if pattern in names if is_name else any(matches(pattern, name) for name in modules):
                continue
        except re.error as error:
            problems.append(f"pattern {pattern!r} cannot be matched: {error}.")
            continue
        near = difflib.get_close_matches(pattern.removeprefix("re:"), modules, n=3, cutoff=0.4)
        hint = f"; near names: {', '.join(near)}" if near else ""
        problems.append(f"pattern {pattern!r} matches no {kind}{hint}.")
        if is_name and any(pattern in name for name in modules):
            example = f": 're:.*{re.escape(pattern)}'"
    if problems:
        raise CtcliError(
            problems,
            f"Give a {kind}'s full name, or re: and an expression that matches its start{example}.",
        )


def cover(modules: Collection[str], others: Collection[str]) -> list[str]:
    """Patterns that match exactly `modules` and none of `others`.

    Numbers between dots are left open where no other module differs in them alone; the patterns
    for two disjoint collections never overlap, so that their order cannot matter.
    """
    taken = {_shape(module) for module in others}
    shapes: dict[str, list[str]] = {}
    for module in modules:
        shapes.setdefault(_shape(module), []).append(module)
    found: list[str] = []
    for shape, members in shapes.items():
        found += members if shape in taken or len(members) == 1 else [f"re:^{shape}$"]
    return sorted(found)


def _shape(module: str) -> str:
    return r"\.".join(r"\d+" if part.isdecimal() else re.escape(part) for part in module.split("."))
