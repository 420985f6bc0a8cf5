"""Rotations that a server applies: R3, R4, and compressed-tensors' own TransformConfig."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.transform import TransformConfig, apply_transform_config
from compressed_tensors.transform.utils.hadamard import deterministic_hadamard_matrix

from ctcli.errors import CtcliError
from tests.helpers.checkpoints import tensor_hashes
from tests.helpers.operating import run_rotate
from tests.helpers.quantizing import run_quantize
from tests.helpers.tiny_models import EXACT, Models, difference, load, logits, make, read, write


def test_r4_computes_the_same_where_activations_are_rotated(tiny: Models, tmp_path: Path) -> None:
    model = tiny("llama")
    options: dict[str, Any] = {"rotations": ("R1", "R2", "R4"), "block_size": 32}
    out = run_rotate(model.folder, tmp_path / "out", **options)
    config, tensors = read(out)
    saved = {name: tensor for name, tensor in tensors.items() if "R4" in name}
    assert [*saved] == ["model.layers.0.mlp.down_proj.R4_input.weight"]
    (matrix,) = saved.values()
    assert matrix.dtype == torch.float64
    assert torch.equal(matrix, deterministic_hadamard_matrix(32).double())
    declared = TransformConfig(**config["quantization_config"]["transform_config"])
    r4 = declared.config_groups["R4"]
    assert (r4.type, r4.head_dim) == ("hadamard", 32)
    assert [(place.location, place.inverse) for place in r4.apply] == [
        ("input", False),
        ("weight_input", True),
    ]
    plain = write(
        tmp_path / "plain",
        {key: value for key, value in config.items() if key != "quantization_config"},
        {name: tensor for name, tensor in tensors.items() if name not in saved},
    )
    served = load(plain)
    assert difference(logits(served), model.logits) > 1e-2
    turn = torch.kron(torch.eye(3), matrix.float() / 32**0.5)
    for layer in served.model.layers:
        layer.mlp.down_proj.register_forward_pre_hook(lambda _, inputs: inputs[0] @ turn)
    assert difference(logits(served), model.logits) <= EXACT


def test_r3_leaves_weights_alone(tiny: Models, tmp_path: Path) -> None:
    model = tiny("llama")
    out = run_rotate(model.folder, tmp_path / "out", rotations=("R3",))
    assert tensor_hashes(out) == tensor_hashes(model.folder)
    config = json.loads((out / "config.json").read_text())
    places = config["quantization_config"]["transform_config"]["config_groups"]["R3"]["apply"]
    assert [place["location"] for place in places] == ["q_attn", "k_cache"]
    saved = run_rotate(
        model.folder, tmp_path / "saved", rotations=("R3",), save_online_weights=True
    )
    matrix = read(saved)[1]["model.layers.0.self_attn.R3_q_attn.weight"]
    assert torch.equal(matrix, deterministic_hadamard_matrix(16).double())


def test_a_size_that_readers_of_online_rotations_cannot_have(tiny: Models, tmp_path: Path) -> None:
    with pytest.raises(CtcliError, match="R4: random matrix 96 of size 96 is no Hadamard matrix"):
        run_rotate(
            tiny("llama").folder,
            tmp_path / "out",
            rotations=("R4",),
            transform_type="random-matrix",
        )


QUIP: dict[str, Any] = {
    "v": {
        "type": "random-hadamard",
        "apply": [
            {"targets": ["Linear"], "location": "input", "ignore": ["lm_head"]},
            {
                "targets": ["Linear"],
                "location": "weight_input",
                "inverse": True,
                "ignore": ["lm_head"],
            },
        ],
    },
    "u": {
        "type": "hadamard",
        "head_dim": 16,
        "apply": [
            {"targets": ["Linear"], "location": "weight_output", "ignore": ["lm_head"]},
            {
                "targets": ["Linear"],
                "location": "output",
                "inverse": True,
                "ignore": ["lm_head"],
            },
        ],
    },
}


def test_a_transform_config_does_what_compressed_tensors_does_with_it(tmp_path: Path) -> None:
    source = make("llama", tmp_path / "source", attention_bias=False, mlp_bias=False)
    (tmp_path / "quip.json").write_text(json.dumps({"config_groups": QUIP}))
    out = run_rotate(
        source, tmp_path / "out", transform_config=tmp_path / "quip.json", precision="float64"
    )
    config, tensors = read(out)
    declared = config["quantization_config"]["transform_config"]
    assert TransformConfig(**declared) == TransformConfig(
        config_groups={
            name: {"precision": "torch.float64", **scheme} for name, scheme in QUIP.items()
        }
    )
    served = load(source)
    expected = logits(served)
    apply_transform_config(served, TransformConfig(**declared))
    assert difference(logits(served), expected) <= EXACT
    state = served.state_dict()
    for name, tensor in tensors.items():
        if name in state:
            # compressed-tensors rounds to float32 after each of two steps.
            torch.testing.assert_close(
                tensor.double(), state[name].double(), rtol=2**-20, atol=1e-6
            )
    first = "model.layers.0.self_attn.q_proj"
    assert {name for name in tensors if "_input." in name or "_output." in name} == {
        f"{first}.v_input.weight",
        "model.layers.0.mlp.down_proj.v_input.weight",
        f"{first}.u_output.weight",
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"type": "sylvester"}, "type 'sylvester' is none of"),
        ({"randomise": True}, "unknown key 'randomise'"),
        ({"apply": []}, "apply lists no place"),
        ({"apply": [{"targets": ["Linear"], "location": "weight"}]}, "location 'weight' is none"),
        (
            {"apply": [{"targets": ["q_porj"], "location": "weight_input"}]},
            "pattern 'q_porj' matches no module",
        ),
        (
            {"head_dim": 24, "apply": [{"targets": ["Linear"], "location": "weight_input"}]},
            "v rotates 24 coordinates, which do not divide its 64",
        ),
    ],
)
def test_transform_configs_that_are_wrong(
    change: dict[str, Any], message: str, tiny: Models, tmp_path: Path
) -> None:
    groups = {"v": {**QUIP["v"], **change}}
    (tmp_path / "bad.json").write_text(json.dumps({"config_groups": groups}))
    with pytest.raises(CtcliError, match=re.escape(message)):
        run_rotate(tiny("llama").folder, tmp_path / "out", transform_config=tmp_path / "bad.json")


def test_quantizing_keeps_what_a_server_has_to_rotate(tiny: Models, tmp_path: Path) -> None:
    rotated = run_rotate(
        tiny("llama").folder, tmp_path / "rotated", rotations=("R4",), block_size=32
    )
    run_quantize(rotated, tmp_path / "out", "W8A8")
    before, after = (
        json.loads((folder / "config.json").read_text())["quantization_config"]
        for folder in (rotated, tmp_path / "out")
    )
    assert after["transform_config"] == before["transform_config"]
    assert after["config_groups"]
    name = "model.layers.0.mlp.down_proj.R4_input.weight"
    assert torch.equal(read(tmp_path / "out")[1][name], read(rotated)[1][name])
