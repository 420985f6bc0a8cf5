"""Commands that are typed wrongly: one line that names it, and one that says what to type."""

from __future__ import annotations

import pytest

from tests.conftest import Ctcli

CASES: tuple[tuple[str, str, str], ...] = (
    ("quantize", "ctcli quantize: SRC and DST are missing.", "ctcli quantize --help"),
    ("quantize a", "ctcli quantize: DST is missing.", "Give ctcli quantize SRC DST; `ctcli q"),
    ("verify a b", "there is no place for b.", "To compare two checkpoints, give --against b."),
    ("quantize a b c", "there is no place for c.", "ctcli quantize SRC DST"),
    ("quantize a -o b", "there is no option -o.", "second place: ctcli quantize SRC DST"),
    ("rotate a --output b", "there is no option --output.", "second place: ctcli rotate SRC DST"),
    ("run r a -o b", "there is no option -o.", "`ctcli run --help`"),
    ("inspect a -o b", "there is no option -o.", "`ctcli inspect --help`"),
    ("inspect a --verbose", "there is no option --verbose.", "Give --json to see everything."),
    ("reindex a b -v", "there is no option -v.", "Give --log-format json"),
    ("inspect a -j 2", "there is no option -j.", "`ctcli inspect --help`"),
    ("quantize a b --schem W4A16", "there is no option --schem.", "--scheme"),
    ("quantize a b --scheme", "ctcli quantize: --scheme takes a value.", "--help"),
    ("quantize a b --json=1", "ctcli quantize: --json takes no value.", "--help"),
    ("quantize a b --bits 9", "--bits '9': give a whole number from 2 to 8.", "--help"),
    ("quantize a b --bits x", "--bits 'x': give a whole number from 2 to 8.", "--help"),
    ("quantize a b --observer max", "--observer 'max': give one of minmax, mse", "--help"),
    ("verify a --max-error nan", "--max-error 'nan': give a number from 0", "--help"),
    ("info a", "there is no command 'info'.", "`ctcli inspect`"),
    ("convrt a", "there is no command 'convrt'.", "convert"),
    ("zzz", "there is no command 'zzz'.", "ctcli --help"),
    ("--zzz", "ctcli: there is no option --zzz.", "ctcli --help"),
    ("help zzz", "there is no command or page 'zzz'.", "quantize"),
    ("export-bin a b/", "'b/': a folder; name the file in it, such as b/model.bin.", "--help"),
    ("export-bin a b.gguf", "what is written is llama2.c's format; name it .bin.", "--help"),
    ("quantize a hf:/o/n", "a repository is named hf://ORG/NAME.", "--help"),
    ("inspect a --stats", "--stats goes with --tensors.", "--help"),
    ("run --init a b", "--init takes its value alone: b is too much.", "--help"),
    ("run a b c d --init e", "--init takes its value alone: a b c d is too much.", "--help"),
    ("quantize a b", "no scheme is given.", "FP8_DYNAMIC"),
    ("quantize a b --scheme int4", "there is no preset 'int4'.", "W4A16 is INT4"),
    ("quantize a b --scheme nf4", "there is no preset 'nf4'.", "NVFP4A16"),
    ("quantize a b --scheme awq", "there is no preset 'awq'.", "W4A16_ASYM has zero points"),
    ("quantize a b --scheme gptq", "there is no preset 'gptq'.", "W4A16"),
    ("quantize a b --scheme q4_k_m", "there is no preset 'q4_k_m'.", "W4A16"),
    ("quantize a b --scheme fp8-dynamic", "no preset 'fp8-dynamic'.", "Give FP8_DYNAMIC."),
    ("quantize a b --scheme W4B16", "there is no preset 'W4B16'.", "Near names: W4A16"),
    ("quantize a b --scheme =", "--scheme '=': give NAME, or PATTERN=NAME.", "all presets"),
)


@pytest.mark.parametrize(("typed", "problem", "hint"), CASES, ids=[case[0] for case in CASES])
def test_what_is_typed_wrongly_is_named(cli: Ctcli, typed: str, problem: str, hint: str) -> None:
    done = cli(*typed.split())
    assert (done.returncode, done.stdout) == (2, "")
    *errors, last = done.stderr.splitlines()
    assert all(line.startswith("error: ") for line in errors)
    assert problem in errors[0]
    assert last.startswith("next: ")
    assert hint in last


def test_several_wrong_schemes_are_told_at_once(cli: Ctcli) -> None:
    done = cli("quantize", "a", "b", "--scheme", "int4", "--scheme", "x=nf4")
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert errors == [
        "error: --scheme int4: there is no preset 'int4'.",
        "error: --scheme x=nf4: there is no preset 'nf4'.",
    ]


@pytest.mark.parametrize(("scheme", "other"), [("fp8", "FP8_DYNAMIC"), ("NVFP4", "NVFP4A16")])
def test_a_static_scheme_without_scales_says_which_needs_none(
    cli: Ctcli, pylm: object, scheme: str, other: str
) -> None:
    done = cli("quantize", str(pylm), "/nowhere/x", "--scheme", scheme, "--dry-run")
    assert done.returncode == 1
    error, hint = done.stderr.splitlines()
    assert error.startswith(f"error: {scheme.upper()}: its activations have static scales")
    assert f"{other} needs no calibration" in hint
    assert "--input-scales FILE" in hint


def test_problems_that_differ_in_numbers_alone_are_one_line(cli: Ctcli, pylm: object) -> None:
    done = cli("quantize", str(pylm), "/nowhere/x", "--scheme", "W4A16", "--dry-run")
    error, _ = done.stderr.splitlines()
    assert error == (
        "error: model.layers.*.mlp.down_proj: group size 128 does not divide 704 columns "
        "(smaller-group: 64). (4 like this)"
    )


def test_without_a_command_the_help_is_shown(cli: Ctcli) -> None:
    done = cli()
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == cli("--help").stdout
