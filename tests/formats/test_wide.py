"""Where inputs stay in 16 bits is told, and nowhere else."""

from __future__ import annotations

from pathlib import Path

import pytest

from ctcli.formats.loaders import Loader
from ctcli.formats.wide import wide_inputs
from ctcli.schemes.presets import preset
from tests.conftest import Ctcli


@pytest.mark.parametrize(
    ("loader", "name", "words"),
    [
        ("vllm", "W4A16", ""),
        ("vllm", "W8A8", ""),
        ("vllm", "W4A4", "where there is no kernel for INT4 ones"),
        ("vllm", "W5A8", "where there is no kernel for INT8 ones"),
        ("sglang", "W4A4", ""),
        ("vllm", "FP8_DYNAMIC", "on GPUs below compute capability 8.9"),
        ("sglang", "NVFP4", "on GPUs below compute capability 10.0"),
        ("vllm", "MXFP8", ""),
        ("sglang", "FP8_BLOCK", ""),
        ("transformers", "W4A4", ""),
    ],
)
def test_wide_inputs_of_presets(loader: Loader, name: str, words: str) -> None:
    assert wide_inputs(loader, [preset(name)]) == (f"inputs stay in 16 bits {words}" * bool(words))


def test_inspect_and_the_summary_tell_it(cli: Ctcli, pylm: Path, tmp_path: Path) -> None:
    told = "a GPU; inputs stay in 16 bits where there is no kernel for INT4 ones"
    options = ("--scheme", "W4A4", "--group-size", "64")
    done = cli("quantize", pylm, tmp_path / "out", *options)
    assert f"vLLM: {told}" in done.stdout
    assert told in cli("inspect", tmp_path / "out").stdout
