"""How far quantized checkpoints of a model are from it: KL divergence and perplexity.

Every checkpoint is written by ctcli and run by transformers, in float32, on the same tokens. KL is
the mean of KL(source || quantized) over next-token distributions, in nats; what a method removes is
its share of round-to-nearest's.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.helpers.operating import run_steps

NEAREST = "round to nearest"
_EVEN, _FUSED, _ROTATED = {"use": "equalize"}, {"use": "fuse-norms"}, {"use": "rotate"}
_LEARNED = {"use": "rotate", "transform_type": "learned"}


@dataclass(frozen=True)
class Method:
    """What is done before and while weights are rounded.

    Attributes:
        before: steps before `quantize`.
        observer: of `quantize`.
    """

    before: tuple[Mapping[str, Any], ...] = ()
    observer: str = "minmax"


METHODS: Mapping[str, Method] = {
    NEAREST: Method(),
    "fuse-norms": Method((_FUSED,)),
    "rotate": Method((_ROTATED,)),
    "rotate, learned": Method((_LEARNED,)),
    "mse": Method(observer="mse"),
    "signed": Method(observer="signed"),
    "pnorm": Method(observer="pnorm"),
    "equalize": Method((_EVEN,)),
    "equalize, signed": Method((_EVEN,), "signed"),
    "equalize, pnorm": Method((_EVEN,), "pnorm"),
}
_PLAIN = tuple(name for name, method in METHODS.items() if method.observer in ("minmax", "mse"))
# Scheme -> the methods that it takes.
SCHEMES: Mapping[str, tuple[str, ...]] = {
    "W4A16": tuple(METHODS),
    "W3A16": tuple(METHODS),
    "W4A16_ASYM": _PLAIN,
    "NVFP4A16": _PLAIN,
    "MXFP4A16": _PLAIN,
}


@dataclass(frozen=True)
class Measured:
    """What a checkpoint gives on some text.

    Attributes:
        divergence: mean KL from the source's distributions, in nats.
        perplexity: exp of the mean negative log-likelihood.
    """

    divergence: float
    perplexity: float


def text_tokens(model: Path, text: str, windows: int, length: int) -> Tensor:
    """Some windows of a text's tokens, [windows, length]; bytes, where a token is one."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    vocabulary = len(tokenizer)
    ids = tokenizer(text[: 16 * windows * length], add_special_tokens=False)["input_ids"]
    if vocabulary <= 256:
        ids = list(text.encode()[: windows * length])
    if len(ids) < windows * length:
        raise SystemExit(f"The text has {len(ids)} tokens, fewer than {windows} x {length}.")
    return torch.tensor(ids[: windows * length]).view(windows, length)


@torch.inference_mode()
def log_probabilities(folder: Path, tokens: Tensor) -> Tensor:
    """What a checkpoint predicts behind each token, [windows, length, vocabulary] float32."""
    declared = json.loads((folder / "config.json").read_text()).get("quantization_config", {})
    is_fp4 = "fp4" in declared.get("format", "")
    dtype = torch.bfloat16 if is_fp4 else torch.float32
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    if is_fp4:  # it is decompressed, to bfloat16 alone, when it first runs
        model(input_ids=tokens[:1, :1])
        nn.Module.float(model)
    found = [model(input_ids=window[None]).logits.float() for window in tokens]
    return torch.cat(found).log_softmax(-1)


def measured(found: Tensor, expected: Tensor, tokens: Tensor) -> Measured:
    """Compare predictions with the source's, window by window."""
    divergence, loss = 0.0, 0.0
    for ours, theirs, window in zip(found, expected, tokens, strict=True):
        divergence += float((theirs.exp() * (theirs - ours)).sum(-1).double().mean())
        loss -= float(ours[:-1].gather(-1, window[1:, None]).double().mean())
    return Measured(divergence / len(tokens), math.exp(loss / len(tokens)))


def measure(
    model: Path, tokens: Tensor, schemes: list[str], methods: list[str]
) -> Iterator[tuple[str, str, Measured | str]]:
    """Each scheme and method with what it gives, or why it cannot be done."""
    expected = log_probabilities(model, tokens)
    yield "", "the model itself", measured(expected, expected, tokens)
    for scheme in schemes:
        for name in (name for name in methods if name in SCHEMES.get(scheme, _PLAIN)):
            with tempfile.TemporaryDirectory() as folder:
                out = Path(folder) / "out"
                try:
                    quantized(model, out, scheme, METHODS[name])
                except Exception as error:  # a model may not admit a method: all others count
                    yield scheme, name, str(error).partition("\n")[0]
                    continue
                yield scheme, name, measured(log_probabilities(out, tokens), expected, tokens)
                shutil.rmtree(out)


def quantized(model: Path, out: Path, scheme: str, method: Method) -> None:
    """Write a checkpoint; groups that do not divide a weight's columns are smaller."""
    last = {"use": "quantize", "scheme": scheme, "observer": method.observer}
    run_steps(model, out, *method.before, {**last, "on_indivisible": "smaller-group"})


def main() -> None:
    """Print a table, line by line."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.quality", description=__doc__)
    parser.add_argument("model", type=Path, help="a checkpoint that transformers loads")
    parser.add_argument("--text", type=Path, help="what to predict (default: pydoc's topics)")
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--length", type=int, default=256, help="tokens of a window")
    parser.add_argument("--schemes", nargs="+", default=[*SCHEMES])
    parser.add_argument("--methods", nargs="+", default=[*METHODS], choices=[*METHODS])
    given = parser.parse_args()
    text = (
        given.text.read_text() if given.text else "\n".join(topics[key] for key in sorted(topics))
    )
    tokens = text_tokens(given.model, text, given.windows, given.length)
    methods = list(dict.fromkeys([NEAREST, *given.methods]))
    _say(f"{given.model.name}: {given.windows} windows of {given.length} tokens")
    _say(f"{'scheme':<12} {'method':<18} {'KL':>9} {'removed':>8} {'perplexity':>11}")
    nearest = math.nan
    for scheme, name, found in measure(given.model, tokens, given.schemes, methods):
        if isinstance(found, str):
            _say(f"{scheme:<12} {name:<18} {found}")
            continue
        nearest = found.divergence if name == NEAREST else nearest
        share = f"{100 * (1 - found.divergence / nearest):7.0f}%" if scheme else ""
        line = f"{scheme:<12} {name:<18} {found.divergence:9.5f} {share:>8}"
        _say(f"{line} {found.perplexity:11.4f}")


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
