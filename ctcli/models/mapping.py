"""Architectures described by a user: the file behind `--mapping`.

The keys are those of SpinQuantMapping and NormMapping in llm-compressor, and three of our own;
values that name modules are exact names, or `re:` and an expression. In TOML:

    embedding = "model.embed_tokens"
    attn = "re:.*self_attn$"
    attn_q = "re:.*q_proj$"         # attn_k, attn_v, attn_o likewise
    attn_head_dim = 128             # where config.json does not tell
    mlp_in = ["re:.*gate_proj$", "re:.*up_proj$"]      # routers too
    mlp_out = ["re:.*down_proj$"]
    lm_head = "lm_head"
    norm_kind = "rms"               # or "layer"
    gain_offset = 0.0               # 1.0 where the model adds 1 to the gain
    ignore = ["re:.*q_norm$"]       # what neither reads nor writes the residual stream
    [[norms]]
    norm = "re:.*input_layernorm$"
    linears = ["re:.*q_proj$", "re:.*k_proj$", "re:.*v_proj$"]
"""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ctcli.errors import CtcliError
from ctcli.models.architecture import NormKind


@dataclass(frozen=True)
class NormMapping:
    """A norm, and everything that reads it; pairs are found layer by layer."""

    norm: str
    linears: tuple[str, ...]


@dataclass(frozen=True)
class ArchitectureMapping:
    """What the file says; every value is a pattern of module names unless noted.

    Attributes:
        embedding: the token embedding.
        attn: the attention blocks.
        attn_q: their query linears; `attn_k`, `attn_v`, `attn_o` likewise.
        mlp_in: linears of MLPs that read the residual stream, and routers.
        mlp_out: linears of MLPs that write it.
        lm_head: the head.
        norms: the norms that read the stream.
        attn_head_dim: size of a head; None: config.json tells.
        norm_kind: `rms` or `layer`.
        gain_offset: what the model adds to a stored gain.
        ignore: modules, or tensors, that neither read nor write the stream.
    """

    embedding: str
    attn: str
    attn_q: str
    attn_k: str
    attn_v: str
    attn_o: str
    mlp_in: tuple[str, ...]
    mlp_out: tuple[str, ...]
    lm_head: str
    norms: tuple[NormMapping, ...]
    attn_head_dim: int | None = None
    norm_kind: NormKind = "rms"
    gain_offset: float = 0.0
    ignore: tuple[str, ...] = ()


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(part, str) for part in value)


def _is_tables(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(part, dict) for part in value)


# What a key's value has to be.
_KEYS: Mapping[str, Callable[[object], bool]] = {
    **dict.fromkeys(("embedding", "attn", "attn_q", "attn_k", "attn_v", "attn_o"), _is_text),
    **dict.fromkeys(("mlp_in", "mlp_out", "ignore"), _is_texts),
    "lm_head": _is_text,
    "norms": _is_tables,
    "attn_head_dim": lambda value: value is None or (type(value) is int and value > 0),
    "norm_kind": lambda value: value in ("rms", "layer"),
    "gain_offset": lambda value: type(value) in {int, float},
}
_NORM_KEYS: Mapping[str, Callable[[object], bool]] = {"norm": _is_text, "linears": _is_texts}
_OPTIONAL = ("attn_head_dim", "norm_kind", "gain_offset", "ignore")


def parse_mapping(name: str, text: str) -> ArchitectureMapping:
    """Read a mapping file.

    Args:
        name: its name; `.json` is JSON, anything else TOML.
        text: its content.

    Raises:
        CtcliError: lists syntax errors, unknown and missing keys, and values of a wrong type.
    """
    try:
        data = json.loads(text) if name.endswith(".json") else tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise _refusal([f"{name}: {error}."]) from error
    if not isinstance(data, dict):
        raise _refusal([f"{name}: it is no table of keys and values."])
    problems = _problems(data, _KEYS)
    norms = data["norms"] if _is_tables(data.get("norms")) else []
    for i, norm in enumerate(norms):
        problems += [f"norms[{i}]: {problem}" for problem in _problems(norm, _NORM_KEYS)]
    if problems:
        raise _refusal([f"{name}: {problem}." for problem in problems])
    values: dict[str, Any] = {
        key: tuple(v) if isinstance(v, list) else v for key, v in data.items()
    }
    values["norms"] = tuple(NormMapping(n["norm"], tuple(n["linears"])) for n in norms)
    return ArchitectureMapping(**values)


def _refusal(problems: list[str]) -> CtcliError:
    return CtcliError(
        problems, f"A mapping file has the keys {', '.join(_KEYS)}; a norm has norm and linears."
    )


def _problems(data: Mapping[str, Any], keys: Mapping[str, Callable[[object], bool]]) -> list[str]:
    """What is wrong with the keys of a table."""
    problems = []
    for key, value in data.items():
        if key not in keys:
            near = difflib.get_close_matches(key, keys, n=3, cutoff=0.5)
            like = f" (near it: {', '.join(near)})" if near else ""
            problems.append(f"{key} is no key{like}")
        elif not keys[key](value):
            problems.append(f"{key} cannot be {value!r}")
    return problems + [f"{key} is missing" for key in keys if key not in {*data, *_OPTIONAL}]
