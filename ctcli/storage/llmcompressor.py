"""llm-compressor's `recipe.yaml` as the steps of a recipe: its modifiers that need no data.

Stages hold modifiers, and these their arguments
(https://github.com/vllm-project/llm-compressor, `llmcompressor/recipe`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ctcli.checkpoint.value import StepTable
from ctcli.errors import CtcliError

_HINT = "`ctcli help recipes` says what is read of llm-compressor's recipes."
# Of every modifier, and without meaning where there is no training.
_IDLE = {"start", "end", "update", "index", "group", "initialized_", "finalized_", "initialized"}
_ROTATIONS = {"R1", "R2", "R3", "R4"}


def steps_of_yaml(name: str, content: bytes) -> tuple[StepTable, ...]:
    """The steps that do what a recipe's modifiers do, in their order.

    Args:
        name: of the file, for messages.
        content: of it.

    Raises:
        CtcliError: not YAML, not such a recipe, or modifiers that need data; lists every reason.
    """
    import yaml

    try:
        recipe = yaml.safe_load(content)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        line = " ".join(str(error).split())
        raise CtcliError(f"{name}: not valid YAML: {line}.", "Correct the file.") from error
    problems: list[str] = []
    steps: list[StepTable] = []
    for modifier, arguments in _modifiers(recipe):
        try:
            steps.append(_step(modifier, arguments))
        except _RefusedError as refused:
            problems.append(f"{name}: {modifier}: {refused}.")
    if problems:
        raise CtcliError(problems, _HINT)
    if not steps:
        raise CtcliError(f"{name}: it has no modifiers.", _HINT)
    return tuple(steps)


class _RefusedError(Exception):
    pass


def _modifiers(part: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The modifiers of all stages, each with its arguments."""
    for key, value in part.items() if isinstance(part, dict) else ():
        if str(key).endswith("Modifier"):
            yield str(key), value if isinstance(value, dict) else {}
        elif isinstance(value, list):
            for each in value:
                yield from _modifiers(each)
        else:
            yield from _modifiers(value)


def _step(modifier: str, arguments: Mapping[str, Any]) -> StepTable:
    translate = _TRANSLATED.get(modifier)
    if translate is None:
        raise _RefusedError(_REFUSED.get(modifier, "it needs calibration data, or is not known"))
    given = {k: v for k, v in arguments.items() if k not in _IDLE and v is not None}
    step = translate(given)
    if given:
        raise _RefusedError(f"{', '.join(map(str, given))} cannot be said in a recipe of ctcli")
    return step


def _quantize(given: dict[str, Any]) -> StepTable:
    if "config_groups" in given:
        raise _RefusedError("put its config_groups into a JSON file, and give that as `config`")
    step: dict[str, Any] = {"use": "quantize"}
    targets = _texts(given.pop("targets", "Linear"))
    scheme = given.pop("scheme", None)
    if isinstance(scheme, dict):
        pairs = [(target, str(name)) for name, each in scheme.items() for target in _texts(each)]
    elif isinstance(scheme, str):
        pairs = [(target, scheme) for target in targets]
    else:
        raise _RefusedError("it names no scheme")
    step["scheme"] = [name if target == "Linear" else f"{target}={name}" for target, name in pairs]
    if ignore := _texts(given.pop("ignore", [])):
        step["ignore"] = ignore
    return step


def _rotate(given: dict[str, Any]) -> StepTable:
    if given.pop("learnable", False):
        raise _RefusedError("learnable rotations need training; give theirs as `rotation_file`")
    given.pop("precision", None)
    rotations = [text.upper() for text in _texts(given.pop("rotations", ["R1", "R2"]))]
    if not rotations or not _ROTATIONS.issuperset(rotations):
        raise _RefusedError(f"rotations {rotations}: give some of R1, R2, R3, R4")
    step: dict[str, Any] = {"use": "rotate", "rotations": rotations}
    for theirs, ours in (("transform_type", "transform_type"), ("randomize", "randomize")):
        if (value := given.pop(theirs, None)) not in (None, False):
            step[ours] = value
    if size := given.pop("transform_block_size", None):
        step["block_size"] = size
    return step


def _texts(value: Any) -> list[str]:
    every = value if isinstance(value, list) else [value]
    if not all(isinstance(each, str) for each in every):
        raise _RefusedError(f"{value!r} is not a text or a list of texts")
    return list(every)


_TRANSLATED: Mapping[str, Callable[[dict[str, Any]], StepTable]] = {
    "QuantizationModifier": _quantize,
    "SpinQuantModifier": _rotate,
}
_REFUSED: Mapping[str, str] = {
    "QuIPModifier": "it turns inputs and outputs of every linear, which no step says in words; put "
    "them as a TransformConfig into a JSON file, and give that to a step `rotate` as "
    "`transform_config` (`ctcli help rotations` has it)",
}
