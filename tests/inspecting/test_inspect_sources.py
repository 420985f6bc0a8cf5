"""`inspect` says of every checkpoint that another package quantized what the commands then do."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.conftest import Ctcli
from tests.helpers.sources import SourceCase, source_cases

CASES = [case for case in source_cases() if case.name != "fp8-presharded"]  # it wants an option
# What is said of each tool's checkpoints, and what a weight of theirs takes at least and at most:
# the cases' matrices are small, and their scales count.
METHODS = {
    "awq-": (r"AWQ GEM[MV], 4 bits, .*", 4, 6.5),
    "gptq-": (r"GPTQ, [2-8] bits, .*", 2, 11),
    "autoround-": (r"GPTQ, [2-8] bits, .*", 2, 11),
    "bnb-nf4": (r"bitsandbytes NF4, blocks of 64, nested scales", 4, 15),
    "bnb-fp4": (r"bitsandbytes (NF4|FP4), blocks of \d+.*", 4, 180),
    "bnb-int8": (r"bitsandbytes int8, a scale for each row", 8, 10),
    "ct-": (r".*, [a-z0-9-]+", 2, 17),
    "kimi-k2": (r"INT4 in groups of 32, pack-quantized", 4, 5),
    "deepseek-v4": (r"MXFP4|FP8, blocks of 32x32", 4, 9),
    "fbgemm": (r"FP8, a scale for each (row|column), .*|FP8, a scale for each row", 8, 10),
    "fp8-": (r"(FP8, (blocks of \d+x\d+|one scale)|MXFP8)(, in packed experts)?", 8, 9),
    "mxfp8": ("MXFP8", 8, 9),
    "gpt-oss": ("MXFP4, in packed experts", 4, 5),
    "modelopt-": (r"(NVFP4|FP8|MXFP[48]|INT[48]).*", 4, 11),
    "quark": (r"MXFP4|MXFP6 E[23]M[23]|FP8, .*|INT4 .*", 4, 9),
}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_methods_and_bits_are_told(cli: Ctcli, case: SourceCase) -> None:
    told = json.loads(cli("inspect", case.checkpoint, "--json").stdout)["stored_weights"]
    assert sum(each["weights"] for each in told) >= 1
    method, least, most = next(v for k, v in METHODS.items() if case.name.startswith(k))
    for each in told:
        assert re.fullmatch(method, each["method"]), each
        assert least <= each["bits_per_weight"] <= most, each


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_what_is_said_of_commands_is_what_they_do(
    cli: Ctcli, tmp_path: Path, case: SourceCase
) -> None:
    told = json.loads(cli("inspect", case.checkpoint, "--json").stdout)["can_run"]
    for command in ("dequantize", "convert"):
        said = told[command]
        done = cli(command, case.checkpoint, tmp_path / "dst", "--dry-run", "--json")
        assert said["possible"] is (done.returncode == 0), done.stderr
        if said["possible"]:
            assert (said["note"] == "exact") is json.loads(done.stdout)["exact"]
        else:
            assert all(reason in done.stderr for reason in said["reasons"])
