"""Expressions of strangers: as Python's engine has it, and never for long."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ctcli.expressions import expression
from ctcli.patterns import matches
from tests.conftest import Ctcli
from tests.helpers.checkpoints import array, write_checkpoint

ATOMS = st.sampled_from(
    ["a", "b", r"\.", ".", r"\d", r"\w", r"\s", "[ab]", "[^a]", "[a-c1]", r"[\d.]", r"\b", "^", "$"]
)
EXPRESSIONS = st.recursive(
    ATOMS,
    lambda inner: st.one_of(
        st.tuples(inner, inner).map("".join),
        st.tuples(inner, inner).map(lambda two: f"(?:{two[0]}|{two[1]})"),
        st.tuples(inner, st.sampled_from(["*", "+", "?", "{2}", "{0,2}", "*?"])).map(
            lambda two: f"(?:{two[0]}){two[1]}"
        ),
        inner.map("({})".format),
    ),
    max_leaves=6,
)
# Each takes Python's engine for ever on some name.
HANGING = [
    "(a+)+$", "(a|a)*$", "(a|aa)+$", "(.*)*x", "(.*.*.*.*)*x", "(?:a?){40}a{40}$", ".*.*.*.*.*.*x",
    r"(\w+\.)*\w+!", r"(\w+|\.)*!", "(?:(?:a+)?)+$", "(x+x+)+y", "a?" * 40 + "a" * 40 + "$",
]  # fmt: skip
REFUSED = [
    *(r"(a+)\1+$", r"(?=(a+)+$)b", "(?i)(a+)+$", "(?!.*.*.*.*x)y", r"(?<!a)(b+)+$", "a{999999}"),
    *("(" * 1500 + ")" * 1500, "a" * 3000, "(", "[", "(?P<n", "a{2,1}", r"\8", "(a{500}){500}"),
]
USUAL = [
    *(r".*lm_head", r".*\.layers\.\d+\.mlp\..*_proj$", r"^(?!.*(router|gate)).*", r".*self_attn.*"),
    *(r"model\.layers\.(0|1|2)\.", r".*(q|k|v)_proj", r"(?i).*HEAD", r".*(?<!shared_)expert"),
]
NAMES = ["lm_head", "model.layers.10.mlp.up_proj", "model.layers.1.self_attn.q_proj", "a\n", ""]


@given(EXPRESSIONS, st.text("ab1. \n", max_size=8))
@example(r"a$", "a\n")
@example(r"a\Z", "a\n")
@example(r"(?:^a|b)*\b", "ab")
def test_states_match_what_pythons_engine_matches(text: str, name: str) -> None:
    found = expression(text)
    expected = re.match(text, name) is not None
    assert found.matches(name) == expected
    if found.program:
        found.degree = 100  # by states
        assert found.matches(name) == expected
        found.degree = 0
        expression.cache_clear()


@pytest.mark.parametrize("text", USUAL)
@pytest.mark.parametrize("name", NAMES)
def test_what_recipes_use_is_matched(text: str, name: str) -> None:
    assert matches(f"re:{text}", name) == (re.match(text, name) is not None)


def test_what_python_warns_of_is_no_warning_of_ours() -> None:
    assert expression("[[a]x").matches("[x")


@pytest.mark.parametrize("text", HANGING)
def test_no_expression_hangs(text: str) -> None:
    start = time.process_time()
    for name in ("a" * 60, "a" * 5000 + "!", "x" * 5000, "a." * 2000):
        expression(text).matches(name)
    assert time.process_time() - start < 20


@pytest.mark.parametrize("text", REFUSED, ids=lambda text: text[:20])
def test_what_could_hang_or_is_none_is_refused(text: str) -> None:
    with pytest.raises(re.error):
        expression(text)


@pytest.mark.parametrize("key", ["ignore", "targets"])
@pytest.mark.parametrize("command", ["inspect", "verify", "quantize"])
def test_a_checkpoints_patterns_cannot_hang_a_command(
    ctcli: Ctcli, tmp_path: Path, key: str, command: str
) -> None:
    module = "model.layers.0.mlp." + "a" * 40 + "_proj"
    group = {"weights": {"num_bits": 8, "type": "float", "strategy": "channel"}}
    quantization: dict[str, object] = {"quant_method": "compressed-tensors"}
    evil = [r"re:model\.layers\.0\.mlp\.(a+)+$", r"re:(a+)\1+$", "re:(.*)*x"]
    quantization["config_groups"] = {"g": {**group, "targets": evil if key == "targets" else None}}
    quantization["ignore"] = evil if key == "ignore" else []
    config = {"model_type": "llama", "quantization_config": quantization}
    source = write_checkpoint(
        tmp_path / "source",
        {"model.safetensors": {f"{module}.weight": array(8, 8)}},
        index=False,
        others={"config.json": json.dumps(config)},
    )
    more = ("--scheme", "W4A16", tmp_path / "out") if command == "quantize" else ()
    done = ctcli(command, source, *more)
    assert done.returncode in (0, 1, 3)
    assert "Traceback" not in done.stderr
