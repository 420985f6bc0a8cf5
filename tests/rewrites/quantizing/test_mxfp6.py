"""MXFP6, which compressed-tensors has from release 0.20 on."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from tests.conftest import Ctcli
from tests.helpers.quantizing import tensors_of

# Of all `weight_packed` and `weight_scale` of pylm, in the order of the modules' names, as
# compressed-tensors 0.20.1 makes them: `calculate_qparams` on groups of 32, and
# `MXFP6PackedCompressor.compress`.
BY_COMPRESSED_TENSORS = "5376a65ff246ba2bee20d84229efeb682740e3859bb4e9bfaa2fd80a68ad91de"
GIVEN = ("--scheme", "MXFP6A16", "--ct-version", "0.20")


@pytest.mark.parametrize("device", ["cpu", "cpu:0"])
def test_bytes_are_those_of_compressed_tensors(
    device: str, cli: Ctcli, pylm: Path, tmp_path: Path
) -> None:
    done = cli("quantize", pylm, tmp_path / "made", *GIVEN, "--device", device)
    assert done.returncode == 0, done.stderr
    made, digest = tensors_of(tmp_path / "made"), hashlib.sha256()
    modules = sorted(n.removesuffix(".weight_packed") for n in made if n.endswith("weight_packed"))
    assert len(modules) == 28
    for module in modules:
        for suffix in ("weight_packed", "weight_scale"):
            digest.update(made[f"{module}.{suffix}"].numpy().tobytes())
    assert digest.hexdigest() == BY_COMPRESSED_TENSORS
    assert cli("verify", tmp_path / "made", "--against", pylm).returncode == 0


def test_older_spelling_is_refused(cli: Ctcli, pylm: Path, tmp_path: Path) -> None:
    done = cli("quantize", pylm, tmp_path / "made", *GIVEN[:2])
    assert done.returncode == 1
    assert "mxfp6-pack-quantized: compressed-tensors 0.19 has no such format." in done.stderr
    assert "--ct-version 0.20" in done.stderr
