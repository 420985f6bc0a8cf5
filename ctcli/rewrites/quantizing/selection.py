"""Which modules are quantized, and how; which are left alone, and why."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from ctcli.checkpoint.value import Modules
from ctcli.errors import CtcliError, UsageError
from ctcli.lazy.nodes import LazyTensor
from ctcli.models.experts import EXPERT
from ctcli.models.fused import FusedSet, fused_sets
from ctcli.models.modules import Module
from ctcli.models.protected import REASONS
from ctcli.ops.dtypes import WEIGHT_FLOATS
from ctcli.patterns import check_patterns, matching
from ctcli.schemes.arguments import Scheme
from ctcli.schemes.presets import PRESETS

OnIndivisible = Literal["error", "skip", "smaller-group"]


@dataclass(frozen=True)
class Choice:
    """What a user asks for.

    Attributes:
        schemes: pattern and scheme; the first that matches a module counts, exact names before
            expressions; the pattern None stands for all linears that nothing else matches.
        targets: patterns of modules to quantize although they are protected by default.
        ignore: patterns of modules to leave alone.
        default_ignore: whether the modules of `models.protected` are left alone.
        on_indivisible: what to do where a group size does not divide a weight's columns.
    """

    schemes: tuple[tuple[str | None, Scheme], ...]
    targets: tuple[str, ...]
    ignore: tuple[str, ...]
    default_ignore: bool
    on_indivisible: OnIndivisible


@dataclass(frozen=True)
class Selection:
    """The outcome.

    Attributes:
        schemes: scheme by module.
        kept: the reason by module that is a linear (or embedding) and left alone.
        fused: the sets that these modules form, each with one scheme or none.
    """

    schemes: Mapping[str, Scheme]
    kept: Mapping[str, str]
    fused: Sequence[FusedSet]


def select(linears: Modules, choice: Choice, known: Collection[str]) -> Selection:
    """Decide over every module with a two-dimensional weight.

    Args:
        linears: these modules.
        choice: what the user asks for.
        known: names that patterns may match.

    Raises:
        CtcliError: patterns without a match, targets without an effect, group sizes that do not
            divide, fused sets whose members disagree; each lists all cases.
    """
    patterns = [pattern for pattern, _ in choice.schemes if pattern is not None]
    check_patterns((*patterns, *choice.targets, *choice.ignore), known)
    _check_targets(linears, choice)
    schemes: dict[str, Scheme] = {}
    kept: dict[str, str] = {}
    ranked = sorted(choice.schemes, key=lambda entry: _rank(entry[0]))
    chosen: dict[str, Scheme] = {}
    for pattern, scheme in reversed(ranked):
        found = linears if pattern is None else matching([pattern], linears)
        chosen |= dict.fromkeys(found, scheme)
    ignored = matching(choice.ignore, linears)
    named = {*(pattern for pattern, _ in choice.schemes), *matching(choice.targets, linears)}
    for name, module in linears.items():
        reason = (
            "--ignore"
            if name in ignored
            else reason_to_keep(module, choice.default_ignore, name in named)
        )
        if reason or name not in chosen:
            kept[name] = reason or "no scheme for it"
        else:
            schemes[name] = chosen[name]
    del chosen  # of very many modules, each table counts
    _divide(linears, schemes, kept, choice.on_indivisible)
    fused = fused_sets([*schemes, *kept])
    _check_fused(fused, schemes)
    if not schemes:
        raise CtcliError(
            "no module is left to quantize.", "Look at --dry-run, --targets and --ignore."
        )
    return Selection(schemes, kept, fused)


def _check_targets(linears: Modules, choice: Choice) -> None:
    """Refuse targets that are all quantized by default: --targets adds modules, and restricts none.

    Raises:
        UsageError: names each.
    """
    idle = [
        pattern
        for pattern in choice.targets
        if (found := matching([pattern], linears))
        and not any(reason_to_keep(linears[name], True, False) for name in found)
    ]
    if idle:
        names = [scheme.name for _, scheme in choice.schemes if scheme.name in PRESETS]
        raise UsageError(
            [
                f"--targets {pattern}: it would have no effect: none of the modules that it names "
                "is protected by default."
                for pattern in idle
            ],
            f"Leave it out; or, to quantize these alone, give --scheme '{idle[0]}="
            f"{names[0] if names else 'W4A16'}'.",
        )


def _rank(pattern: str | None) -> int:
    if pattern is None:
        return 2
    return 1 if pattern.startswith("re:") else 0


def reason_to_keep(module: Module[LazyTensor], default_ignore: bool, is_named: bool) -> str | None:
    """Why a linear is left alone; None: it is not.

    Args:
        module: a module with a weight.
        default_ignore: whether the kinds of `models.protected` are.
        is_named: whether the user names it.
    """
    assert module.weight, "it has a weight of two dimensions"
    spec = module.weight.spec
    if not spec.nbytes:
        return "it is empty"
    if is_named:
        return None
    if default_ignore and module.kind in REASONS:
        return REASONS[module.kind]
    return None if spec.dtype in WEIGHT_FLOATS else f"dtype {spec.dtype}"


def _divide(
    linears: Modules,
    schemes: dict[str, Scheme],
    kept: dict[str, str],
    on_indivisible: OnIndivisible,
) -> None:
    """Settle the modules whose columns are no multiple of the group size."""
    groups = ((module, scheme.weights.group_size) for module, scheme in schemes.items())
    odd = [(module, n) for module, n in groups if n and linears[module].shape[1] % n]
    if not odd:
        return
    problems, chosen = [], dict(schemes)
    common: set[int] = set()
    for module, group in odd:
        scheme, columns = schemes[module], linears[module].shape[1]
        smaller = _smaller_group(scheme, columns)
        if on_indivisible == "skip":
            del schemes[module]
            kept[module] = f"group size {group} does not divide {columns} columns"
        elif on_indivisible == "smaller-group" and smaller:
            schemes[module] = smaller
        else:
            choices = (
                f"smaller-group: {smaller.weights.group_size}" if smaller else "no smaller one"
            )
            problems.append(
                f"{module}: group size {group} does not divide {columns} columns ({choices})."
            )
            common.add(smaller.weights.group_size or 0 if smaller else 0)
    if problems:
        # Powers of two: the smallest one divides what the others divide.
        size = f"give --group-size {min(common)}" if min(common) else "choose another --group-size"
        raise CtcliError(
            problems,
            "--on-indivisible skip leaves these modules as they are, smaller-group gives them the "
            f"size in brackets; or {size} for all.",
        )
    _keep_experts_alike(chosen, schemes, kept)


def _keep_experts_alike(
    chosen: Mapping[str, Scheme], schemes: dict[str, Scheme], kept: dict[str, str]
) -> None:
    """What had to be done to one linear of a layer's experts is done to all: loaders want it so.

    Args:
        chosen: the schemes before.
        schemes: the schemes now.
        kept: reasons by module that is left alone.
    """
    members: dict[str, list[str]] = defaultdict(list)
    for module in chosen:
        if match := EXPERT.fullmatch(module):
            members[match["parent"]].append(module)
    for parent, modules in members.items():
        if all(schemes.get(module) is chosen[module] for module in modules):
            continue
        left = [module for module in modules if module not in schemes]
        sizes = [schemes[m].weights.group_size or 0 for m in modules if m in schemes]
        for module in modules:
            if left:
                schemes.pop(module, None)
                kept.setdefault(module, f"another linear of {parent} is left alone")
            elif (smaller := _smaller_group(chosen[module], min(sizes))) is not None:
                schemes[module] = smaller


def _smaller_group(scheme: Scheme, columns: int) -> Scheme | None:
    """The scheme with the largest power of two that divides; None where its size is fixed."""
    arguments = scheme.weights
    group = columns & -columns
    while group > (arguments.group_size or 0):
        group //= 2
    if arguments.scale_dtype or group < 2:
        return None
    return replace(
        scheme, name=f"{scheme.name}_G{group}", weights=replace(arguments, group_size=group)
    )


def _check_fused(sets: Sequence[FusedSet], schemes: Mapping[str, Scheme]) -> None:
    """Servers load a fused set as one matrix: all members alike, or none."""
    problems = []
    for fused in sets:
        found = [schemes.get(member) for member in fused.tensors]
        if found.count(found[0]) < len(found):
            how = ", ".join(
                f"{member.rpartition('.')[2]} {scheme.name if scheme else 'left alone'}"
                for member, scheme in zip(fused.tensors, found, strict=True)
            )
            problems.append(f"{fused.name}: its members must be quantized alike, but: {how}.")
    if problems:
        raise CtcliError(problems, "Let the patterns match all members of a set, or none.")
