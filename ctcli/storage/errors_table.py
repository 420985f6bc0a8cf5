"""The table of measured errors in a model card: its length is known before what it says is.

A layout fixes the length of every file. So the card is written with a table whose numbers are
blank and as wide as any, and they are filled in when all have been measured, by whoever publishes.
"""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from ctcli.checkpoint.value import Checkpoint
from ctcli.lazy.nodes import Computed, LazyTensor, Stacked
from ctcli.patterns import numberless
from ctcli.schemes.weights import Quantize
from ctcli.storage.journal import ErrorSums

CARD = "README.md"
_MOST_KINDS = 40
_WIDTH = 11  # of an error, such as 1.23e-05 %


def measured_modules(checkpoint: Checkpoint) -> list[str]:
    """The modules whose errors are measured when the checkpoint is written."""
    nodes = (part.node for _, tensor in checkpoint.tensors() for part in _computed(tensor))
    return [*dict.fromkeys(node.module for node in nodes if isinstance(node.kernel, Quantize))]


def _computed(tensor: LazyTensor) -> tuple[Computed, ...]:
    if isinstance(tensor, Stacked):
        return tensor.parts
    return (tensor,) if isinstance(tensor, Computed) else ()


def errors_table(modules: Iterable[str], errors: ErrorSums | None = None) -> list[str]:
    """Lines of Markdown, a row for each kind of module; equally long whatever the errors are.

    Args:
        modules: their names.
        errors: sums of squares of the error and of the weight, by module; None: not known yet.
    """
    return _table(_kinds([*modules]), errors)


def _table(kinds: Mapping[str, list[str]], errors: ErrorSums | None) -> list[str]:
    return [
        f"| modules | number | {'error':>{_WIDTH}} | {'largest':>{_WIDTH}} |",
        "| --- | ---: | ---: | ---: |",
        *(_row(kind, kinds[kind], errors) for kind in sorted(kinds)),
    ]


def filled(card: bytes, errors: ErrorSums) -> bytes:
    """A card with what was measured, if its table is of these modules and still blank."""
    known = {module: found for module, found in errors.items() if len(found) == 2}
    kinds = _kinds([*known])
    blank, table = ("\n".join(_table(kinds, of)).encode() for of in (None, known))
    return card.replace(blank, table, 1)


def fill(path: Path, errors: ErrorSums, fsync: bool) -> None:
    """Fill in the card at `path`, if there is one, so that nobody sees half of it."""
    content = b""
    if errors:
        with suppress(FileNotFoundError):
            content = path.read_bytes()
    if (new := filled(content, errors)) == content:
        return
    fresh = path.with_name(f"{path.name}.new")
    with fresh.open("wb") as file:
        os.fchmod(file.fileno(), path.stat().st_mode & 0o777)
        file.write(new)
        file.flush()
        if fsync:
            os.fsync(file.fileno())
    fresh.replace(path)


def _kinds(modules: list[str]) -> dict[str, list[str]]:
    """The modules by what they are told as: a pattern, or in a model of very many, a last word."""
    for kind in (numberless, lambda name: f"*.{name.split('.')[-1]}"):
        found: dict[str, list[str]] = defaultdict(list)
        for module in modules:
            found[kind(module)].append(module)
        if len(found) <= _MOST_KINDS:
            kinds: dict[str, list[str]] = defaultdict(list)
            for name, alike in found.items():
                kinds[_legible(name)] += alike
            return kinds
    return {"*": modules} if modules else {}


def _legible(name: str) -> str:
    """It as a cell of a table can hold it."""
    return "".join(c if c.isprintable() and c not in "|`" else "?" for c in name)


def _row(kind: str, modules: list[str], errors: ErrorSums | None) -> str:
    said = ["-", "-"] if errors is None else [*map(_percent, _errors(modules, errors))]
    return f"| `{kind}` | {len(modules):,} | {said[0]:>{_WIDTH}} | {said[1]:>{_WIDTH}} |"


def _errors(modules: list[str], errors: ErrorSums) -> Iterator[float]:
    """The relative error of all together, and the largest of one."""
    squares = [errors[module] for module in modules]
    yield _relative(*map(math.fsum, zip(*squares, strict=True)))
    yield max((_relative(*pair) for pair in squares), key=lambda x: (math.isnan(x), x))


def _relative(error: float, weight: float) -> float:
    return math.sqrt(error / weight) if weight else 0.0


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
