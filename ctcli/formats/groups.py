"""`config_groups` and `ignore`, read from a checkpoint's config.json or from a user's own file.

Fields: https://github.com/vllm-project/compressed-tensors, `QuantizationConfig`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ctcli.errors import CtcliError
from ctcli.models.config import shown, table
from ctcli.patterns import fault_of, matches
from ctcli.schemes import check, default_format, format_of
from ctcli.schemes.arguments import QuantizationArgs, Scheme
from ctcli.schemes.parsing import TargetedScheme

_LINEAR = "Linear"
# Types of the values that a group, or the arguments in it, may give.
_GROUP: Mapping[str, tuple[type, ...]] = {"format": (str,)}
_ARGUMENTS: Mapping[str, tuple[type, ...]] = {
    **dict.fromkeys(("num_bits", "group_size"), (int,)),
    **dict.fromkeys(("type", "strategy", "scale_dtype"), (str,)),
    "block_structure": (list,),
    "symmetric": (bool,),
    "dynamic": (bool, str),
}


@dataclass(frozen=True)
class Group:
    """One of the `config_groups`.

    Attributes:
        name: its key.
        targets: names, `re:` expressions, or the class Linear.
        scheme: how it quantizes.
    """

    name: str
    targets: tuple[str, ...]
    scheme: Scheme

    def names(self, module: str) -> bool:
        """Whether a target other than a class matches a module."""
        return any(target != _LINEAR and matches(target, module) for target in self.targets)

    @property
    def takes_linears(self) -> bool:
        """Whether the class Linear is among the targets."""
        return _LINEAR in self.targets


def parse_config(
    name: str, config: Mapping[str, Any]
) -> tuple[tuple[TargetedScheme, ...], tuple[str, ...]]:
    """The schemes and ignored patterns that a user gives as compressed-tensors' JSON.

    Args:
        name: the file's, for messages.
        config: its content; a whole config.json is fine, too.

    Returns:
        The schemes in order, and the patterns to leave alone.

    Raises:
        CtcliError: groups that ctcli cannot make; lists them all.
    """
    own = config.get("quantization_config", config)
    reader = GroupReader(name, writes=True)
    groups, ignore = reader.groups(table(own)), reader.ignore(table(own))
    schemes = [
        (None if target == _LINEAR else target, group.scheme)
        for group in groups
        for target in group.targets
    ]
    problems = [*reader.problems]
    if not schemes and not problems:
        problems.append(f"{name}: it has no config_groups.")
    if problems:
        raise CtcliError(problems, "See compressed-tensors' QuantizationConfig for the fields.")
    return tuple(schemes), ignore


class GroupReader:
    """Reads `config_groups` and `ignore`, and notes what is wrong with them.

    Attributes:
        problems: a line each.
        has_unreadable_patterns: whether names or expressions had to be left out.
    """

    def __init__(self, name: str, writes: bool) -> None:
        """Read for a file.

        Args:
            name: the file's, for messages.
            writes: whether weights are to be quantized as it says, rather than read.
        """
        self.problems: list[str] = []
        self.has_unreadable_patterns = False
        self._name, self._writes = name, writes

    def groups(self, config: Mapping[str, Any]) -> tuple[Group, ...]:
        """The groups that can be read, in the file's order."""
        entries = config.get("config_groups")
        if entries is not None and not isinstance(entries, Mapping):
            self._note(f"config_groups is {shown(entries)}, and not a table")
        found = []
        for name, entry in table(entries).items():
            try:
                found.append(self._group(name, _typed(entry, _GROUP), config.get("format")))
            except ValueError as error:
                self._note(f"{name}: {error}")
        return tuple(found)

    def ignore(self, config: Mapping[str, Any]) -> tuple[str, ...]:
        """Patterns of modules to leave alone."""
        try:
            return self._patterns("ignore", config.get("ignore"))
        except ValueError as error:
            self._note(str(error))
            return ()

    def _group(self, name: str, entry: Mapping[str, Any], overall: object) -> Group:
        if not entry.get("weights"):
            raise ValueError("it does not quantize weights")
        if entry.get("output_activations"):
            why = "quantized output activations need calibration data"
            unknown = "it quantizes output activations, which ctcli does not know"
            raise ValueError(why if self._writes else unknown)
        weights = self._arguments(entry["weights"])
        inputs = entry.get("input_activations")
        activations = self._arguments(inputs) if inputs else None
        layout = entry.get("format")
        if not layout and not self._writes and overall != "mixed-precision":
            layout = overall if isinstance(overall, str) else None
        scheme = Scheme(name, weights, activations, layout or default_format(weights, activations))
        given = entry.get("targets")
        targets = self._patterns("targets", [_LINEAR] if given is None else given)
        if self._writes:
            format_of(scheme)
            _check_classes(targets)
        return Group(name, targets, scheme)

    def _arguments(self, entry: Any) -> QuantizationArgs:
        given = _typed(entry, _ARGUMENTS)
        block = given.get("block_structure", [1, 1])
        if [type(size) for size in block] != [int, int]:
            raise ValueError(f"block_structure cannot be {shown(block)}")
        # The order in which columns were calibrated does not concern a reader.
        found = QuantizationArgs.from_config(given if self._writes else {**given, "actorder": None})
        check(found)
        return found

    def _patterns(self, key: str, value: Any) -> tuple[str, ...]:
        """The names and expressions in a list, or one alone."""
        given = [value] if isinstance(value, str) else value or []
        if not isinstance(given, list):
            raise ValueError(f"{key} is {shown(value)}, and not a list of names")
        # A user's own expressions are checked when they are matched.
        good = [p for p in given if isinstance(p, str) and (self._writes or not fault_of(p))]
        for pattern in (p for p in given if p not in good):
            self.has_unreadable_patterns = True
            self._note(f"{shown(pattern)} is no name and no regular expression")
        return tuple(good)

    def _note(self, problem: str) -> None:
        self.problems.append(f"{self._name}: {problem}.")


def _typed(entry: Any, types: Mapping[str, tuple[type, ...]]) -> dict[str, Any]:
    """What a table gives, but for nulls.

    Raises:
        ValueError: it is no table, or a value has not one of its types.
    """
    if not isinstance(entry, Mapping):
        raise ValueError(f"it is {shown(entry)}, and not a table")
    given = {key: value for key, value in entry.items() if value is not None}
    for key, value in given.items():
        if key in types and type(value) not in types[key]:
            raise ValueError(f"{key} cannot be {shown(value)}")
    return given


def _check_classes(targets: Iterable[str]) -> None:
    for target in targets:
        if target != _LINEAR and target[:1].isupper() and "." not in target:
            raise ValueError(f"target {target!r}: of classes, only Linear is known")
