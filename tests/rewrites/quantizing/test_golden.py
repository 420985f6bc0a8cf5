"""Byte for byte what llm-compressor's model_free_ptq writes, for every preset it accepts."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.quantization import QuantizationConfig, preset_name_to_scheme

from ctcli.schemes.presets import preset
from tests.conftest import ROOT
from tests.helpers.quantizing import KNOWN_PRESETS, config_of, run_quantize, tensors_of

GOLDEN = ROOT / "fixtures" / "golden"
DIGESTS: dict[str, Any] = json.loads((GOLDEN / "digests.json").read_text())
# vLLM has no scheme for these as int-quantized, which is what the oracle writes; we write
# pack-quantized unless told otherwise, the same tensors as for 16-bit activations.
PACKED_FOR_VLLM = {
    **{f"W{bits}A8": f"W{bits}A16" for bits in (2, 3, 5, 6, 7)},
    **{f"W{bits}A4": f"W{bits}A16" for bits in (2, 3, 4)},
    "W4AFP8": "W4A16",
}


def digests(folder: Path) -> dict[str, dict[str, Any]]:
    tags = {torch.bfloat16: "BF16", torch.float8_e4m3fn: "F8_E4M3", torch.int8: "I8"}
    tags |= {torch.uint8: "U8", torch.int32: "I32", torch.int64: "I64", torch.float32: "F32"}
    return {
        name: {
            "dtype": tags[tensor.dtype],
            "shape": list(tensor.shape),
            "sha256": hashlib.sha256(tensor.view(torch.uint8).numpy().tobytes()).hexdigest(),
        }
        for name, tensor in tensors_of(folder).items()
    }


@pytest.mark.parametrize("name", DIGESTS)
def test_every_tensor_equals_the_oracles(name: str, tmp_path: Path) -> None:
    expected = DIGESTS[name]
    (group,) = expected["quantization_config"]["config_groups"].values()
    chosen = {"compute_dtype": "weight", "format": group["format"]}
    run_quantize(GOLDEN / "input", tmp_path / "out", name, **chosen)
    assert digests(tmp_path / "out") == expected["tensors"]
    # Patterns become the exact names of what was left alone; embeddings are no linears.
    config = config_of(tmp_path / "out")
    assert config == {**expected["quantization_config"], "ignore": ["lm_head"]}


@pytest.mark.parametrize(("name", "equal"), PACKED_FOR_VLLM.items())
def test_what_vllm_cannot_load_as_int8_is_packed(name: str, equal: str, tmp_path: Path) -> None:
    run_quantize(GOLDEN / "input", tmp_path / "out", name, compute_dtype="weight")
    assert digests(tmp_path / "out") == DIGESTS[equal]["tensors"]
    assert config_of(tmp_path / "out")["format"] == "pack-quantized"


@pytest.mark.parametrize("name", KNOWN_PRESETS)
def test_compressed_tensors_parses_the_same_scheme(name: str, tmp_path: Path) -> None:
    scales = tmp_path / "scales.safetensors"
    scheme = preset(name.lower())
    if scheme.needs_input_scale:
        from safetensors.torch import save_file

        modules = [
            tensor.removesuffix(".weight")
            for tensor in DIGESTS["INT8"]["tensors"]
            if tensor.endswith("_proj.weight")
        ]
        found = {f"{module}.{scheme.needs_input_scale}": torch.ones(1) for module in modules}
        save_file(found, scales)
    run_quantize(
        GOLDEN / "input",
        tmp_path / "out",
        name.lower(),
        input_scales=scales if scheme.needs_input_scale else None,
    )
    parsed = QuantizationConfig.model_validate(config_of(tmp_path / "out"))
    (group,) = parsed.config_groups.values()
    expected = preset_name_to_scheme(name, ["Linear"])
    for ours, theirs in (
        (group.weights, expected.weights),
        (group.input_activations, expected.input_activations),
    ):
        # The observer says how scales were found, and no reader looks at it.
        assert (ours and ours.model_dump(exclude={"observer"})) == (
            theirs and theirs.model_dump(exclude={"observer"})
        )
