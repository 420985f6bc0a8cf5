"""What a user should know of a scheme before it costs accuracy: measured, not guessed.

The figures are changes of the KL divergence from the source's predictions, by weight-only schemes
of 4 bits in groups of 128 unless another is named, on three small models: one trained without
outlier channels, SmolLM2-135M and Gemma-3-270M.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from ctcli.checkpoint.value import StepTable
from ctcli.schemes import format_of
from ctcli.schemes.arguments import Scheme
from ctcli.schemes.family import Observer
from ctcli.schemes.presets import preset

# What scales of norms, or rotations, do to rounding that no activations share.
_HARM = {
    "fuse-norms": "17 to 125 % more on two models, and ruined a third",
    "rotate": "6 to 75 % more on two models",
}
# What `nox -s quality` measured: the mean KL divergence from the source's predictions, in nats, by
# scheme, and by what is done before and by the observer.
_MODELS = ("SmolLM2-135M", "the bundled model")
_NEAREST: tuple[str | None, Observer] = (None, "minmax")
_LOSSES: Mapping[str, Mapping[tuple[str | None, Observer], tuple[float | None, float | None]]] = {
    "W4A16": {
        _NEAREST: (0.529, 0.01094),
        (None, "signed"): (0.475, None),
        ("equalize", "minmax"): (0.417, 0.01124),
        ("equalize", "signed"): (0.291, 0.00961),
        ("rotate", "minmax"): (0.767, 0.01169),
        ("rotate --transform-type learned", "minmax"): (0.856, 0.00919),
    },
    "W4A16_ASYM": {
        _NEAREST: (0.419, 0.00868),
        ("equalize", "minmax"): (0.264, 0.00903),
    },
    "W3A16": {
        _NEAREST: (2.248, 0.05468),
        ("equalize", "minmax"): (2.223, 0.06025),
        ("equalize", "signed"): (1.354, 0.04588),
    },
    "NVFP4A16": {
        _NEAREST: (0.248, 0.00796),
        ("equalize", "minmax"): (0.178, 0.00825),
    },
    "MXFP4A16": {
        _NEAREST: (0.459, None),
        ("equalize", "minmax"): (0.399, None),
    },
}
_GROUPS = (32, 64, 128)  # sizes that were measured; smaller ones where 128 does not divide


def measured_loss(
    schemes: Iterable[Scheme], observer: Observer, steps: Sequence[StepTable]
) -> list[str]:
    """What was measured of small models that were quantized so, a line for each scheme."""
    method = _last_change(steps), observer
    lines = []
    for name in dict.fromkeys(each.name for each in schemes if _was_measured(each)):
        losses = _LOSSES[name]
        pairs = zip(_MODELS, losses.get(method, ()), losses.get(_NEAREST, ()), strict=False)
        found = [
            f"{loss} on {model}" + (f" (to the nearest {nearest})" if method != _NEAREST else "")
            for model, loss, nearest in pairs
            if loss is not None
        ]
        if found:
            lines.append(f"{name}: KL divergence {', '.join(found)}")
    return lines


def _was_measured(scheme: Scheme) -> bool:
    """Whether it is a preset that was measured, no option having changed more than its groups."""
    if scheme.name not in _LOSSES:
        return False
    measured, size = preset(scheme.name), scheme.weights.group_size
    weights = replace(measured.weights, group_size=size)
    is_near = size == measured.weights.group_size or size in _GROUPS
    return is_near and replace(measured, weights=weights) == scheme


def _last_change(steps: Sequence[StepTable]) -> str | None:
    """The last step that changed what rounding loses, as it is typed; None: there was none."""
    for step in reversed(steps):
        if (name := str(step.get("use"))) in ("equalize", *_HARM):
            kind = step.get("transform_type", "hadamard")
            return name if kind == "hadamard" else f"{name} --transform-type {kind}"
    return None


def advice(schemes: Iterable[Scheme], observer: Observer, steps: Sequence[StepTable]) -> list[str]:
    """Warnings, one for each kind of mistake.

    Args:
        schemes: of the modules that are quantized.
        observer: what finds their scales.
        steps: all that was done to the weights before, oldest first.
    """
    chosen = list(dict.fromkeys(schemes))
    return [*_of_steps(chosen, steps), *_of_squares(chosen, observer), *_of_few(chosen, observer)]


def _of_steps(schemes: Iterable[Scheme], steps: Sequence[StepTable]) -> Iterator[str]:
    names = [str(step.get("use")) for step in steps]
    after = names[len(names) - names[::-1].index("equalize") :] if "equalize" in names else names
    harmful = [name for name in dict.fromkeys(after) if name in _HARM]
    alone = [s.name for s in schemes if not s.input_activations and s.weights.num_bits < 8]
    if "rotate" in harmful:  # which fuses norms itself
        harmful = ["rotate"]
    for name in harmful if alone else ():
        yield (
            f"{', '.join(alone)}: {name} before weights alone are rounded to fewer than 8 bits "
            f"lost {_HARM[name]}. equalize in its place took away 21 to 59 % of the loss where "
            "channels stand out."
        )


def _of_squares(schemes: Iterable[Scheme], observer: Observer) -> Iterator[str]:
    if observer != "mse":
        return
    four = [each for each in schemes if each.weights.num_bits == 4]
    # Under scales of their own, FP4 groups of 16 gain by it.
    harmed = [s.name for s in four if s.weights.type == "int" or s.weights.strategy == "group"]
    if harmed:
        yield (
            f"{', '.join(harmed)}: --observer mse cuts the largest weights off, and at 4 bits lost "
            "6 to 72 % more on two of three models. signed never lost any, pnorm less than it."
        )


def _of_few(schemes: Iterable[Scheme], observer: Observer) -> Iterator[str]:
    if observer != "minmax":
        return
    few = [each for each in schemes if each.weights.type == "int" and each.weights.num_bits < 4]
    signed = [s for s in few if format_of(s).observer_problem(s, "signed") is None]
    if signed:
        yield (
            f"{', '.join(s.name for s in signed)}: --observer signed took away 22 to 29 % of the "
            "loss at 3 bits, and 49 % at 2."
        )
    if others := [s.name for s in few if s not in signed]:
        yield (
            f"{', '.join(others)}: --observer mse took away 17 % of the loss at 3 bits, and 51 % "
            "at 2."
        )
