"""What run.c and runq.c compute from exported files, against transformers."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.helpers.exporting import export
from tests.helpers.llama2c import Floats, Reader, Session, read_run_c, read_runq_c

PROMPT = b"class Window:\n    def __init__(self, "


@pytest.fixture(scope="module")
def exported(pylm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    for version in (0, 2):
        export(pylm, folder / f"v{version}.bin", version=version)
    return folder


@pytest.fixture(scope="module")
def reference(pylm: Path) -> Callable[[bytes], Floats]:
    """The logits of transformers, in float32, after every byte of a text."""
    model = AutoModelForCausalLM.from_pretrained(pylm, dtype=torch.float32)

    def logits(text: bytes) -> Floats:
        with torch.no_grad():
            found: Floats = model(torch.tensor([list(text)])).logits[0].numpy()
        return found

    return logits


def logits_of(reader: Reader, text: bytes) -> Floats:
    session = Session(reader)
    return np.stack([session.forward(byte) for byte in text])


def test_run_c_computes_the_logits_of_transformers(
    exported: Path, reference: Callable[[bytes], Floats]
) -> None:
    reader = read_run_c((exported / "v0.bin").read_bytes())
    assert reader.rest == 0
    expected, found = reference(PROMPT), logits_of(reader, PROMPT)
    # Two float32 computations that sum in different orders.
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


def test_runq_c_computes_logits_near_those_of_transformers(
    exported: Path, reference: Callable[[bytes], Floats]
) -> None:
    reader = read_runq_c((exported / "v2.bin").read_bytes())
    assert reader.rest == 0
    expected, found = reference(PROMPT), logits_of(reader, PROMPT)
    # Weights and activations have eight bits; a swapped row or scale is far beyond this.
    assert np.abs(found - expected).max() <= 0.05 * np.abs(expected).max()


@pytest.mark.parametrize(("name", "read"), [("v0.bin", read_run_c), ("v2.bin", read_runq_c)])
def test_the_greedy_continuation_is_python(
    exported: Path, name: str, read: Callable[[bytes], Reader]
) -> None:
    session = Session(read((exported / name).read_bytes()))
    logits = [session.forward(byte) for byte in PROMPT][-1]
    text = PROMPT
    while not text.endswith(b"\n"):
        text += bytes([int(logits.argmax())])
        logits = session.forward(text[-1])
        assert len(text) < 200
    (window,) = ast.parse(text + b"        pass").body
    assert isinstance(window, ast.ClassDef)
    (init,) = window.body
    assert isinstance(init, ast.FunctionDef)
    assert len(init.args.args) > 1
