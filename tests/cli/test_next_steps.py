"""What a summary says is next."""

from __future__ import annotations

from pathlib import Path

import pytest

from ctcli.cli.next_steps import next_steps
from ctcli.storage.opening import open_checkpoint


@pytest.mark.parametrize(
    ("architecture", "is_served"), [("LlamaForCausalLM", True), ("Mine", False)]
)
def test_vllm_is_named_where_it_has_the_architecture(
    pylm: Path, architecture: str, is_served: bool
) -> None:
    config = {"architectures": [architecture], "quantization_config": {"quant_method": "fp8"}}
    made = open_checkpoint(str(pylm)).with_config(config)
    (section,) = next_steps("quantize", "SRC", "DST", made)
    told = [line for (line,) in section.lines]
    served = ["vllm serve DST"] if is_served else []
    assert told == ["ctcli verify DST --against SRC", *served]
