"""Options of `quantize` that would be ignored are refused, each with what to give instead."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import Ctcli

MLP = "re:.*mlp.*"


@pytest.mark.parametrize(
    ("options", "problem", "hint"),
    [
        (
            ("W4A16", "--strategy", "channel", "--group-size", "64"),
            "--group-size: it would have no effect: --strategy channel has none.",
            "Leave it out.",
        ),
        (
            ("W4A16", "--strategy", "tensor", "--block", "64x64"),
            "--block: it would have no effect: --strategy tensor has none.",
            "Leave it out.",
        ),
        (
            ("FP8_BLOCK", "--block", "64x64", "--group-size", "64"),
            "--group-size: it would have no effect: --block says what shares a scale.",
            "Leave it out.",
        ),
        (
            ("W4A16", "--scheme", "FP8_DYNAMIC"),
            "--scheme FP8_DYNAMIC: it would have no effect: --scheme W4A16 takes all linears",
            "--scheme 'PATTERN=NAME'",
        ),
        (
            (f"{MLP}=W4A16", "--scheme", "W8A8", "--scheme", f"{MLP}=W8A16"),
            f"--scheme {MLP}=W8A16: it would have no effect: --scheme {MLP}=W4A16 takes what",
            "--scheme 'PATTERN=NAME'",
        ),
        (
            ("FP8_DYNAMIC", "--targets", MLP),
            f"--targets {MLP}: it would have no effect: none of the modules",
            f"to quantize these alone, give --scheme '{MLP}=FP8_DYNAMIC'.",
        ),
        (("FP8_DYNAMIC", "--targets", "Linear"), "all linears are the default; leave it out", ""),
        (
            ("FP8_DYNAMIC", "--asymmetric"),
            "--scheme FP8_DYNAMIC: floats have no zero point: leave --asymmetric out.",
            "",
        ),
    ],
)
def test_what_would_be_ignored_is_refused(
    cli: Ctcli, pylm: Path, tmp_path: Path, options: tuple[str, ...], problem: str, hint: str
) -> None:
    done = cli("quantize", pylm, tmp_path / "out", "--scheme", *options, "--dry-run")
    assert done.returncode == 2
    assert problem in done.stderr
    assert hint in done.stderr


@pytest.mark.parametrize(
    "options",
    [
        ("W4A16", "--strategy", "group", "--group-size", "64"),
        ("FP8_DYNAMIC", "--scheme", f"{MLP}=W8A8"),
        ("FP8_DYNAMIC", "--targets", "lm_head"),
        ("FP8_DYNAMIC", "--targets", r"re:lm_head|.*\.q_proj", "--targets", "lm_head"),
        ("W8A8", "--symmetric"),
    ],
)
def test_what_has_an_effect_is_not(
    cli: Ctcli, pylm: Path, tmp_path: Path, options: tuple[str, ...]
) -> None:
    done = cli("quantize", pylm, tmp_path / "out", "--scheme", *options, "--dry-run")
    assert (done.returncode, done.stderr) == (0, "")
