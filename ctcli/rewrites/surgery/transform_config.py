"""compressed-tensors' own TransformConfig: schemes of a type each, applied to modules by pattern.

With M the matrix or, where `inverse`, its transpose: `weight_input` makes W M^T of a linear's W,
`weight_output` M^T W (an embedding's E M); `input`, `output`, `q_attn` and `k_cache` are applied by
the server. Whether they cancel is up to whoever wrote the file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ctcli.errors import CtcliError
from ctcli.models.modules import modules_of
from ctcli.models.protected import is_embedding
from ctcli.patterns import check_patterns, fault_of, matches
from ctcli.rewrites.surgery.kernels import RowMap
from ctcli.rewrites.surgery.matrices import made
from ctcli.rewrites.surgery.online import matrix
from ctcli.rewrites.surgery.surgery import Surgery

if TYPE_CHECKING:
    from ctcli.ops.rotation import Rotation

_ONLINE = ("input", "output", "q_attn", "k_cache")
_LOCATIONS = ("weight_input", "weight_output", *_ONLINE)
_TYPES = ("hadamard", "random-hadamard", "random-matrix")
_SCHEME_KEYS = ("type", "apply", "randomize", "requires_grad", "head_dim", "precision")
_PLACE_KEYS = ("targets", "location", "inverse", "ignore")
_HINT = "Correct the file: it holds config_groups, as in compressed-tensors' TransformConfig."


@dataclass(frozen=True)
class Application:
    """Where a scheme is applied."""

    targets: tuple[str, ...]
    location: str
    inverse: bool
    ignore: tuple[str, ...]


@dataclass(frozen=True)
class TransformScheme:
    """One of the config's groups."""

    name: str
    transform_type: str
    block_size: int | None
    places: tuple[Application, ...]
    declaration: Mapping[str, Any]

    def folds(self, module: str) -> bool:
        """Whether a module's weight changes."""
        return any(
            place.location not in _ONLINE
            and any(_targets(target, module) for target in place.targets)
            and not any(matches(pattern, module) for pattern in place.ignore)
            for place in self.places
        )

    @property
    def is_online(self) -> bool:
        """Whether a server has something to apply."""
        return any(place.location in _ONLINE for place in self.places)


def parse_transform_config(name: str, data: Mapping[str, Any]) -> tuple[TransformScheme, ...]:
    """The schemes of a config.

    Args:
        name: of the file, for messages.
        data: its content.

    Raises:
        CtcliError: lists every problem.
    """
    groups = data.get("config_groups")
    problems: list[str] = []
    if not isinstance(groups, dict) or not groups:
        raise CtcliError(f"{name}: no config_groups.", _HINT)
    for group, scheme in groups.items():
        if not group.isprintable():  # tensors are called after it
            problems.append(f"{name}: {group!r} is no name for a group.")
        problems += [f"{name}: {group}: {what}." for what in _problems(scheme)]
    if problems:
        raise CtcliError(problems, _HINT)
    return tuple(
        TransformScheme(
            group,
            scheme["type"],
            scheme.get("head_dim"),
            tuple(
                Application(
                    _texts(place["targets"]),
                    place["location"],
                    bool(place.get("inverse")),
                    _texts(place.get("ignore", ())),
                )
                for place in scheme["apply"]
            ),
            _declared(scheme),
        )
        for group, scheme in groups.items()
    )


def transform(
    surgery: Surgery, schemes: Iterable[TransformScheme], seed: int | None, save_online: bool
) -> list[tuple[str, str]]:
    """Fold the offline places into weights, and write the matrices of the online ones.

    Returns:
        Each scheme's name, and its matrices in words.
    """
    changes = []
    for scheme in schemes:
        found = _Scheme(surgery, scheme, seed)
        for place in scheme.places:
            if place.location in _ONLINE:
                found.serve(place, save_online)
            else:
                found.fold(place)
        words = dict.fromkeys(rotation.description for rotation in found.matrices.values())
        changes.append((scheme.name, ", ".join(words)))
    return changes


class _Scheme:
    """A scheme while it is applied: its matrices by size, drawn in turn."""

    def __init__(self, surgery: Surgery, scheme: TransformScheme, seed: int | None) -> None:
        from ctcli.ops.draws import Draws

        self._surgery = surgery
        self._scheme = scheme
        self._draws = Draws(seed)
        self._saved: set[int] = set()
        self.matrices: dict[int, Rotation] = {}

    def fold(self, place: Application) -> None:
        """Into the weights of all modules that match."""
        for module in self._modules(place):
            if module in self._surgery.architecture.transposed:
                raise CtcliError(
                    f"{module}: its weight is stored [in, out], and a TransformConfig has no word "
                    "for that.",
                    "Give --rotations instead.",
                )
            rows, columns = self._surgery.stored[f"{module}.weight"].spec.shape
            by_columns = place.location == "weight_input" or is_embedding(module)
            once = self._matrix(module, columns if by_columns else rows)
            # W M^T, but E M and M^T W.
            if (place.location == "weight_input") != place.inverse:
                once = once.inverse
            if by_columns:
                self._surgery.columns[module].append(once)
            else:
                self._surgery.rows[module].append(RowMap(once))

    def serve(self, place: Application, save: bool) -> None:
        """Write the matrix for the first module of each size."""
        on_heads = place.location in ("q_attn", "k_cache")
        queries = {block.module: block.q for block in self._surgery.architecture.attentions}
        for module in self._modules(place):
            home = f"{queries[module].module if on_heads else module}.weight"
            size = self._surgery.stored[home].spec.shape[place.location == "input"]
            size = queries[module].size if on_heads else size
            once = self._matrix(module, size)
            if not once.is_hadamard:
                raise CtcliError(
                    f"{self._scheme.name}: {once.description} is no Hadamard matrix, and readers "
                    "of online transforms take no other.",
                    "Give a head_dim that has one (a power of two), or another type.",
                )
            if once.size not in self._saved and (save or not on_heads):
                self._saved.add(once.size)
                name = f"{module}.{self._scheme.name}_{place.location}"
                self._surgery.added[home] |= matrix(name, once)

    def _matrix(self, module: str, coordinates: int) -> Rotation:
        """The matrix for a module; a size that does not fit it may be too large to be made."""
        size = self._scheme.block_size or coordinates
        if coordinates % size:
            raise CtcliError(
                f"{module}: {self._scheme.name} rotates {size} coordinates, which do not divide "
                f"its {coordinates}.",
                _HINT,
            )
        if size not in self.matrices:
            self.matrices[size] = made(
                self._scheme.name, self._scheme.transform_type, size, self._draws
            )
        return self.matrices[size]

    def _modules(self, place: Application) -> list[str]:
        """The modules that match; classes as compressed-tensors names them."""
        # Norms of queries and keys may have a gain for each head, [heads, head_dim].
        matrices = {
            name: None
            for name, module in modules_of(self._surgery.stored, {}).items()
            if len(module.shape) == 2 and module.kind != "norm"
        }
        # Readers expect a shared matrix with the first module of the model that uses it.
        linears = [name for name in self._surgery.architecture.linears if name in matrices]
        weights = list(dict.fromkeys([*linears, *matrices]))
        every = weights
        if place.location in ("q_attn", "k_cache"):
            every = [block.module for block in self._surgery.architecture.attentions]
        patterns = [target for target in place.targets if target not in ("Linear", "Embedding")]
        check_patterns(patterns, every)
        check_patterns(place.ignore, every)
        return [
            module
            for module in every
            if any(_targets(target, module) for target in place.targets)
            and not any(matches(pattern, module) for pattern in place.ignore)
        ]


def _declared(scheme: Mapping[str, Any]) -> dict[str, Any]:
    """A scheme with all keys that compressed-tensors writes."""
    defaults = {"randomize": False, "requires_grad": False, "head_dim": None}
    places = [{"inverse": False, "ignore": [], **place} for place in scheme["apply"]]
    return {**defaults, "precision": "torch.float64", **scheme, "apply": places}


def _targets(target: str, module: str) -> bool:
    if target in ("Linear", "Embedding"):
        return is_embedding(module) == (target == "Embedding")
    return matches(target, module)


def _problems(scheme: object) -> list[str]:
    if not isinstance(scheme, dict):
        return ["no object"]
    problems = [f"unknown key {key!r}" for key in scheme if key not in _SCHEME_KEYS]
    if scheme.get("type") not in _TYPES:
        problems.append(f"type {scheme.get('type')!r} is none of {', '.join(_TYPES)}")
    if scheme.get("randomize"):
        problems.append("randomize permutes the matrix, which is not done here")
    block = scheme.get("head_dim")
    if block is not None and not (type(block) is int and block > 0):
        problems.append(f"head_dim {block!r} is no size")
    places = scheme.get("apply")
    if not isinstance(places, list) or not places:
        return [*problems, "apply lists no place"]
    for place in places:
        problems += _place_problems(place, block)
    return problems


def _place_problems(place: object, block: object) -> list[str]:
    if not isinstance(place, dict):
        return ["apply: no object"]
    problems = [f"apply: unknown key {key!r}" for key in place if key not in _PLACE_KEYS]
    location = place.get("location")
    if location not in _LOCATIONS:
        problems.append(f"location {location!r} is none of {', '.join(_LOCATIONS)}")
    if location in ("q_attn", "k_cache") and block is None:
        problems.append(f"{location} needs a head_dim")
    for key in ("targets", "ignore"):
        texts = place.get(key, [])
        if not isinstance(texts, str) and not (
            isinstance(texts, list) and all(isinstance(text, str) for text in texts)
        ):
            problems.append(f"{key} {texts!r} are no names")
            continue
        faults = {text: fault_of(text) for text in _texts(texts)}
        problems += [
            f"{key}: pattern {text!r} cannot be matched: {fault}"
            for text, fault in faults.items()
            if fault
        ]
    if not place.get("targets"):
        problems.append("apply: no targets")
    return problems


def _texts(value: str | Iterable[str]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)
