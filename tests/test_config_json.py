"""Values of wrong types in config.json, and in `--config`, end no command in a traceback."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ctcli.errors import CtcliError
from ctcli.formats.declared import read_declaration
from ctcli.formats.groups import parse_config
from ctcli.inspecting.inspection import data_of, inspect
from ctcli.inspecting.summary import rows_of, sections_of
from ctcli.rewrites.quantizing.options import QuantizeOptions
from ctcli.rewrites.quantizing.quantize import quantize
from ctcli.rewrites.reindex import ReindexOptions, reindex
from ctcli.schemes.presets import preset
from ctcli.storage.opening import open_checkpoint
from tests.helpers.checkpoints import Arrays, array, write_checkpoint
from tests.helpers.verifying import lines, run_verify

Config = dict[str, Any]
WRONG: tuple[Any, ...] = (None, True, -1, 2.5, "x", [], ["x", 7], {}, {"x": [None]})
LAYER = "model.layers.0"
SIZES = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 32,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
}
LLAMA: Config = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "dtype": "float16",
    "torch_dtype": "float16",
    "tie_word_embeddings": False,
    "hidden_act": "silu",
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "rope_scaling": None,
    "sliding_window": None,
    "text_config": None,
    "quantization_config": None,
    "compression_config": None,
    **SIZES,
}
NESTED = {
    "architectures": ["LlamaForConditionalGeneration"],
    "model_type": "llava",
    "text_config": {"model_type": "llama", "tie_word_embeddings": False, **SIZES},
}
EXPERTS = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "num_experts": 2,
    "num_local_experts": 2,
    "n_routed_experts": 2,
    "moe_intermediate_size": 32,
    **SIZES,
}
OPT = {
    "model_type": "opt",
    "do_layer_norm_before": True,
    "_remove_final_layer_norm": False,
    "enable_bias": False,
    "layer_norm_elementwise_affine": True,
    "ffn_dim": 128,
    **SIZES,
}
LATENT = {
    "model_type": "deepseek_v3",
    "q_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    **SIZES,
}
GROUP = preset("W4A8").to_config(["Linear"])
QUANTIZED: Config = {
    **LLAMA,
    "quantization_config": {
        "quant_method": "compressed-tensors",
        "config_groups": {"group_0": GROUP},
        "format": "pack-quantized",
        "ignore": ["lm_head"],
        "kv_cache_scheme": {"num_bits": 8, "dynamic": False},
        "quantization_status": "compressed",
        "sparsity_config": None,
        "transform_config": {
            "config_groups": {
                "R4": {"type": "hadamard", "apply": [{"location": "input", "targets": ["re:.*"]}]}
            }
        },
    },
}
ONLINE: Config = {
    **LLAMA,
    "quantization_config": {
        "quant_method": "compressed-tensors",
        "config_groups": {},
        "transform_config": QUANTIZED["quantization_config"]["transform_config"],
    },
}
CONFIGS: Mapping[str, Config] = {
    "llama": LLAMA,
    "nested": NESTED,
    "experts": EXPERTS,
    "opt": OPT,
    "latent": LATENT,
    "quantized": QUANTIZED,
    "online": ONLINE,
}


def paths_of(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of everything inside a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    for key, part in inner:
        yield (*path, key)
        if isinstance(part, (dict, list)):
            yield from paths_of(part, (*path, key))


PLACES = [
    (name, path)
    for name, config in CONFIGS.items()
    for path in paths_of(config)
    if name == "llama" or path[0] not in (*LLAMA,) or len(path) > 1
]


def damaged(config: Config, path: tuple[Any, ...], value: Any) -> Config:
    """The same with another value at a path."""
    changed = copy.deepcopy(config)
    part = changed
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    return changed


def tensors_of(name: str) -> Arrays:
    matrices: dict[str, tuple[int, ...]] = {}
    matrices |= {f"{LAYER}.self_attn.{role}_proj.weight": (64, 64) for role in "qkvo"}
    matrices |= {"model.embed_tokens.weight": (32, 64), "lm_head.weight": (32, 64)}
    if name == "experts":
        matrices |= {f"{LAYER}.mlp.experts.gate_up_proj": (2, 64, 64)}
        matrices |= {f"{LAYER}.mlp.experts.down_proj": (2, 64, 32)}
    else:
        matrices |= {f"{LAYER}.mlp.{role}_proj.weight": (128, 64) for role in ("gate", "up")}
        matrices |= {f"{LAYER}.mlp.down_proj.weight": (64, 128)}
    norms = ("model.norm", f"{LAYER}.input_layernorm", f"{LAYER}.post_attention_layernorm")
    found = {tensor: array(*shape, dtype="float16") for tensor, shape in matrices.items()}
    if name == "quantized":
        module = f"{LAYER}.mlp.down_proj"
        found[f"{module}.weight_packed"] = np.zeros((64, 16), np.int32)
        found[f"{module}.weight_scale"] = np.ones((64, 1), np.float16)
        del found[f"{module}.weight"]
    return found | {f"{norm}.weight": np.ones(64, np.float16) for norm in norms}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The checkpoint of each of `CONFIGS`, made once."""
    root, made = tmp_path_factory.mktemp("configs"), dict[str, Path]()

    def get(name: str) -> Path:
        if name not in made:
            shards = {"model.safetensors": tensors_of(name)}
            made[name] = write_checkpoint(root / name, shards, index=False)
        return made[name]

    return get


OPTIONS = QuantizeOptions(scheme=("FP8_DYNAMIC",))


def look(folder: Path) -> None:
    found = inspect(open_checkpoint(str(folder)))
    assert json.dumps(data_of(found))
    assert rows_of(found)
    assert sections_of(found)


COMMANDS: Mapping[str, Callable[[Path], object]] = {
    "inspect": look,
    "reindex": lambda folder: reindex(open_checkpoint(str(folder)), ReindexOptions()),
    "quantize": lambda folder: quantize(open_checkpoint(str(folder)), OPTIONS)[1].rows(),
    "verify": lambda folder: [lines(run_verify(folder, target=t)) for t in ("vllm", None)],
}


@pytest.mark.parametrize(("name", "path"), PLACES, ids=str)
def test_a_value_of_any_type_gives_a_result_or_an_expected_error(
    name: str, path: tuple[Any, ...], folders: Callable[[str], Path]
) -> None:
    folder = folders(name)
    for value in WRONG:
        changed = damaged(CONFIGS[name], path, value)
        (folder / "config.json").write_text(json.dumps(changed))
        for command in ("inspect", "reindex", "verify"):
            COMMANDS[command](folder)
        with suppress(CtcliError):
            COMMANDS["quantize"](folder)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_text_config_of_null_is_none(command: str, folders: Callable[[str], Path]) -> None:
    (folders("llama") / "config.json").write_text(json.dumps(LLAMA))
    COMMANDS[command](folders("llama"))


PROBLEMS: Mapping[str, tuple[tuple[Any, ...], Any, str]] = {
    "no table": (("quantization_config",), "fp8", "quantization_config is 'fp8', and not a table."),
    "groups": (("config_groups",), [GROUP], "config_groups is [{"),
    "a group": (("config_groups", "group_0"), "W4A16", "group_0: it is 'W4A16', and not a table."),
    "bits": (("config_groups", "group_0", "weights", "num_bits"), "4", "num_bits cannot be '4'."),
    "targets": (("config_groups", "group_0", "targets"), 3, "targets is 3, and not a list of"),
    "a target": (("config_groups", "group_0", "targets"), ["Linear", 7], "7 is no name and no"),
    "an expression": (("ignore",), ["re:("], "'re:(' is no name and no regular expression."),
    "ignore": (("ignore",), {"a": 1}, "ignore is {'a': 1}, and not a list of names."),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_what_cannot_be_read_is_said_with_its_key(
    name: str, folders: Callable[[str], Path]
) -> None:
    path, value, said = PROBLEMS[name]
    full = path if path[0] == "quantization_config" else ("quantization_config", *path)
    changed = damaged(QUANTIZED, full, value)
    (folders("quantized") / "config.json").write_text(json.dumps(changed))
    found = inspect(open_checkpoint(str(folders("quantized"))))
    assert [line for line in found.anomalies if line.startswith("config.json: ") and said in line]
    told = lines(run_verify(folders("quantized")))
    assert [line for line in told if line.startswith("config config.json: ") and said in line]


@pytest.mark.parametrize("given", ["Linear", ["Linear"], None])
def test_targets_may_be_a_list_one_name_or_left_out(given: object) -> None:
    config = {"config_groups": {"group_0": {**GROUP, "targets": given}}}
    declared = read_declaration(
        {"quantization_config": {"quant_method": "compressed-tensors", **config}}
    )
    assert declared is not None
    assert [group.targets for group in declared.groups] == [("Linear",)]
    ((pattern, scheme),), ignored = parse_config("c.json", {**config, "ignore": "lm_head"})
    assert (pattern, scheme, ignored) == (None, declared.groups[0].scheme, ("lm_head",))


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"config_groups": []}, "c.json: config_groups is [], and not a table."),
        ({"config_groups": None}, "c.json: it has no config_groups."),
        ({"quantization_config": None}, "c.json: it has no config_groups."),
        ({"quantization_config": [1]}, "c.json: it has no config_groups."),
        ({"config_groups": {"g": None}}, "c.json: g: it is None, and not a table."),
        ({"config_groups": {"g": {}}}, "c.json: g: it does not quantize weights."),
        (
            {"config_groups": {"g": {**GROUP, "targets": {"a": 1}}}},
            "c.json: g: targets is {'a': 1}, and not a list of names.",
        ),
        (
            {"config_groups": {"g": {**GROUP, "targets": ["Conv2d"]}}},
            "c.json: g: target 'Conv2d': of classes, only Linear is known.",
        ),
        (
            {"config_groups": {"g": GROUP}, "ignore": 5},
            "c.json: ignore is 5, and not a list of names.",
        ),
    ],
)
def test_a_config_file_that_cannot_be_read_is_refused_in_one_line(
    config: Config, said: str
) -> None:
    with pytest.raises(CtcliError) as caught:
        parse_config("c.json", config)
    assert caught.value.problems == (said,)
