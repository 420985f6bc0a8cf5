"""What was quantized and becomes floats is not called left alone."""

from __future__ import annotations

from ctcli.rewrites.quantizing.options import QuantizeOptions
from ctcli.rewrites.quantizing.quantize import quantize
from ctcli.storage.opening import open_checkpoint
from tests.conftest import ROOT

SOURCES = ROOT / "fixtures" / "sources"


def test_packed_experts_that_become_floats_are_told_and_the_size_is_warned_of() -> None:
    source = open_checkpoint(str(SOURCES / "gpt-oss" / "checkpoint"))
    made, report = quantize(source, QuantizeOptions(scheme=("W4A16",), group_size=16))
    rows = report.rows()
    assert ("as floats", "4 modules: MXFP4, in packed experts -> BF16") in rows
    assert not [value for label, value in rows if label == "left alone" and "experts" in value]
    told = "model.layers.*.mlp.experts.down_proj "
    assert [line.partition("2 x  ")[2] for line in report.items() if line.startswith(told)] == [
        "as floats: MXFP4, in packed experts -> BF16"
    ]
    assert "model.layers.0.mlp.experts.down_proj" in report.data()["as_floats"]
    (warning,) = made.warnings
    assert warning == "The result is larger than the source: 48.5 KB -> 67.9 KB of tensors."


def test_what_stays_quantized_is_not_told_as_floats() -> None:
    source = open_checkpoint(str(SOURCES / "fp8-llama" / "checkpoint"))
    ignore = ("re:.*self_attn.*",)
    for rest, are_floats in (("keep", False), ("dense", True)):
        options = QuantizeOptions(scheme=("W8A8",), ignore=ignore, rest=rest)  # type: ignore[arg-type]
        _, report = quantize(source, options)
        assert bool(report.as_floats) == are_floats
