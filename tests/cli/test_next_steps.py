"""What a summary says is next."""

from __future__ import annotations

from pathlib import Path

import pytest

from ctcli.checkpoint.value import Checkpoint
from ctcli.cli.layouts import card_of
from ctcli.cli.next_steps import next_steps
from ctcli.rewrites.quantizing.options import QuantizeOptions
from ctcli.rewrites.quantizing.quantize import quantize
from ctcli.storage.opening import open_checkpoint

VERIFIED = "ctcli verify DST --against SRC"


@pytest.mark.parametrize(
    ("architecture", "is_served"), [("LlamaForCausalLM", True), ("Mine", False)]
)
def test_vllm_is_named_where_it_has_the_architecture(
    pylm: Path, architecture: str, is_served: bool
) -> None:
    config = {"architectures": [architecture], "quantization_config": {"quant_method": "fp8"}}
    made = open_checkpoint(str(pylm)).with_config(config)
    served = ["vllm serve DST"] if is_served else []
    assert told("quantize", made) == [VERIFIED, *served]


@pytest.mark.parametrize(
    ("scheme", "group_size", "is_served"),
    [("W4A16", 64, True), ("FP8_DYNAMIC", None, True), ("FP8_DYNAMIC", 64, False)],
)
def test_vllm_is_named_where_it_takes_the_scheme(
    pylm: Path, scheme: str, group_size: int | None, is_served: bool
) -> None:
    options = QuantizeOptions(scheme=(scheme,), group_size=group_size)
    made, report = quantize(open_checkpoint(str(pylm)), options)
    assert told("quantize", made) == [VERIFIED, *["vllm serve DST"] * is_served]
    card = card_of(made, "", "DST", None).decode()
    assert ("vllm serve DST" in card) == is_served
    rows = report.rows()
    taken = [value for label, value in rows if label == "loads in"]
    assert [value.partition(":")[0] for value in taken if "SGLang" not in value] == (
        ["vLLM", "transformers"] if is_served else ["transformers"]
    )
    refused = [value for label, value in rows if label == "not in"]
    assert any(value.startswith("vLLM: ") for value in refused) != is_served
    assert report.data()["loaders"]["vllm"]["loads"] == is_served


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("rotate", []),
        ("dequantize", []),
        ("equalize", ["ctcli quantize DST QUANTIZED --scheme W4A16 --observer signed"]),
    ],
)
def test_what_is_next_of_dense_checkpoints(pylm: Path, command: str, words: list[str]) -> None:
    assert told(command, open_checkpoint(str(pylm))) == [VERIFIED, *words]


def told(command: str, made: Checkpoint) -> list[str]:
    """The commands that are next."""
    (section,) = next_steps(command, "SRC", "DST", made)
    return [line for (line,) in section.lines]
