"""GPTQ's and AWQ's words: traps, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from ctcli.errors import CtcliError
from ctcli.formats.sources.reading import read_quantized
from ctcli.storage.opening import open_checkpoint
from tests.conftest import Ctcli
from tests.helpers.decompressing import decompressed
from tests.helpers.quantizing import tensors_of
from tests.helpers.sources import SourceCase

Tensors = dict[str, Tensor]
UP = "model.layers.0.mlp.up_proj"
GPTQ: dict[str, Any] = {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": False}
AWQ: dict[str, Any] = {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"}


def words(*shape: int, value: int | None = None) -> Tensor:
    """Words of 32 bits: the same everywhere, or random ones."""
    if value is None:
        return torch.randint(-(2**31), 2**31, shape, dtype=torch.int32)
    return torch.from_numpy(np.full(shape, value, np.uint32).view(np.int32))


def gptq(rows: int = 32, columns: int = 64, *, bits: int = 4, groups: int = 2) -> Tensors:
    """A linear as GPTQ stores it."""
    return {
        "qweight": words(columns * bits // 32, rows),
        "qzeros": words(groups, rows * bits // 32),
        "scales": torch.rand(groups, rows).half() + 1,
        "g_idx": torch.arange(columns, dtype=torch.int32) // (columns // groups),
    }


def awq(rows: int = 32, columns: int = 64, *, groups: int = 2) -> Tensors:
    """A linear as AWQ's GEMM stores it."""
    return {
        "qweight": words(columns, rows // 8),
        "qzeros": words(groups, rows // 8),
        "scales": torch.rand(groups, rows).half() + 1,
    }


def gemv(rows: int = 8, columns: int = 64, *, words_of_zeros: int = 4) -> Tensors:
    """A linear as AWQ's GEMV stores it: groups of 32."""
    return {
        "qweight": words(rows, columns // 8),
        "qzeros": words(rows, words_of_zeros),
        "scales": torch.rand(rows, 8 * words_of_zeros).half() + 1,
    }


def without(tensors: Tensors, leaf: str) -> Tensors:
    return {name: tensor for name, tensor in tensors.items() if name != leaf}


def checkpoint(folder: Path, tensors: Tensors, said: dict[str, Any]) -> Path:
    """A checkpoint of one linear."""
    folder.mkdir()
    save_file({f"{UP}.{leaf}": t for leaf, t in tensors.items()}, folder / "model.safetensors")
    config = {"model_type": "llama", "torch_dtype": "bfloat16", "quantization_config": said}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def dequantized(cli: Ctcli, source: Path) -> Tensor:
    """The weight, in float32."""
    target = source.parent / f"{source.name}-dense"
    result = cli("dequantize", source, target, "--dtype", "float32")
    assert result.returncode == 0, result.stderr
    return tensors_of(target)[f"{UP}.weight"]


REFUSED: dict[str, tuple[Tensors, dict[str, Any], str]] = {
    "no-scales": (without(gptq(), "scales"), GPTQ, "it has a qweight, and no scales"),
    "no-zeros": (without(gptq(), "qzeros"), GPTQ, "it has a qweight, and no qzeros"),
    "int16": (
        gptq() | {"qweight": torch.zeros(8, 32, dtype=torch.int16)},
        GPTQ,
        "its qweight is I16, and not I32",
    ),
    "integer-scales": (
        gptq() | {"scales": torch.ones(2, 32, dtype=torch.int16)},
        GPTQ,
        "its scales are I16, and no floats",
    ),
    "other-bits": (gptq(), {**GPTQ, "bits": 8}, "it has 4 bits, and config.json says 8"),
    "zeros-of-others": (
        gptq() | {"qzeros": words(3, 4)},
        GPTQ,
        "its qzeros [3, 4] are not those of scales [2, 32]",
    ),
    "rows-of-others": (
        gptq() | {"qweight": words(8, 24)},
        GPTQ,
        "its qweight [8, 24] does not fit scales [2, 32] and g_idx [64]",
    ),
    "order-of-others": (
        gptq() | {"g_idx": torch.zeros(60, dtype=torch.int32)},
        GPTQ,
        "does not fit scales [2, 32] and g_idx [60]",
    ),
    "groups-of-others": (
        gptq(),
        {**GPTQ, "group_size": 128},
        "it has scales for 2 groups, and not for 64 columns in groups of 64",
    ),
    "planes": (
        gptq(),
        {**GPTQ, "checkpoint_format": "gptq_p"},
        "checkpoint_format gptq_p is not read",
    ),
    "marlin": (
        gptq(),
        {**GPTQ, "is_marlin_format": True},
        "checkpoint_format marlin is not read",
    ),
    "left-alone": (
        gptq(),
        {**GPTQ, "dynamic": {"-:.*mlp.*": {}}},
        "it is quantized, and config.json leaves its module alone",
    ),
    "gptq-by-awq": (gptq(), AWQ, "its tensors are GPTQ's, and quant_method is awq"),
    "gptq-by-autoround": (
        gptq(),
        {**GPTQ, "quant_method": "auto-round", "packing_format": "auto_round:auto_awq"},
        "its tensors are GPTQ's, and packing_format is auto_round:auto_awq",
    ),
    "rotated": (
        gptq(),
        {**GPTQ, "quant_method": "auto-round", "rotation_config": {"hidden": 1}},
        "its weights are rotated (rotation_config)",
    ),
    "awq-by-gptq": (awq(), GPTQ, "its tensors are AWQ's, and quant_method is gptq"),
    "awq-by-autoround": (
        awq(),
        {**AWQ, "quant_method": "auto-round", "packing_format": "auto_round:auto_gptq"},
        "its tensors are AWQ's, and packing_format is auto_round:auto_gptq",
    ),
    "gemv-fast": (awq(), {**AWQ, "version": "GEMV_FAST"}, "AWQ's version gemv_fast is not read"),
    "llm-awq": (awq(), {**AWQ, "version": "llm-awq"}, "AWQ's version llm-awq is not read"),
    "awq-marlin": (awq(), {**AWQ, "version": "marlin"}, "AWQ's version marlin is not read"),
    "gemm-not-gemv": (
        awq(),
        {**AWQ, "version": "gemv"},
        "its tensors are AWQ's of version gemm, and not gemv",
    ),
    "awq-bits": (awq(), {**AWQ, "bits": 8}, "AWQ's of 4 bits, and config.json says 8"),
    "awq-symmetric": (awq(), {**AWQ, "zero_point": False}, "AWQ without zero points"),
    "awq-shapes": (
        awq() | {"qzeros": words(3, 4)},
        AWQ,
        "its qweight, scales and qzeros [64, 4], [2, 32], [3, 4] do not fit each other",
    ),
    "gemv-zeros": (
        gemv(words_of_zeros=2),
        {**AWQ, "version": "gemv"},
        "its qzeros [8, 2] are not those of 2 groups of 32",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_contradicts_itself_is_refused(tmp_path: Path, name: str) -> None:
    tensors, said, message = REFUSED[name]
    source = checkpoint(tmp_path / "source", tensors, said)
    with pytest.raises(CtcliError) as caught:
        read_quantized(open_checkpoint(str(source)))
    assert any(problem.startswith(UP) and message in problem for problem in caught.value.problems)


def test_awqs_rows_are_in_an_order_of_their_own(cli: Ctcli, tmp_path: Path) -> None:
    tensors = awq(8, 32, groups=1) | {
        "qweight": words(32, 1, value=0x76543210),
        "qzeros": words(1, 1, value=0xFEDCBA98),
        "scales": torch.ones(1, 8).half(),
    }
    weight = dequantized(cli, checkpoint(tmp_path / "source", tensors, AWQ))
    rows = torch.tensor([0, 4, 1, 5, 2, 6, 3, 7])
    assert torch.equal(weight, (rows - (rows + 8))[:, None].expand(8, 32).float())
    tensors["qzeros"] = words(1, 1, value=0)
    weight = dequantized(cli, checkpoint(tmp_path / "zeros", tensors, AWQ))
    assert torch.equal(weight, rows[:, None].expand(8, 32).float())


@pytest.mark.parametrize(
    ("said", "points"),
    [
        # 15 stands for zero: in a field of its own, or borrowed from the next one.
        ({}, [0, 8, 8, 8, 8, 8, 8, 8]),
        ({"meta": {"quantizer": ["gptqmodel:7.7.0"]}}, [0, 9, 8, 8, 8, 8, 8, 8]),
        ({"meta": {"quantizer": ["optimum:1.2"]}}, [0, 8, 8, 8, 8, 8, 8, 8]),
        ({"checkpoint_format": "gptq_v2"}, [15, 7, 7, 7, 7, 7, 7, 7]),
    ],
)
def test_zero_points_are_raised_as_their_writer_lowered_them(
    cli: Ctcli, tmp_path: Path, said: dict[str, Any], points: list[int]
) -> None:
    tensors = gptq(8, 32, groups=1) | {
        "qweight": words(4, 8, value=0),
        "qzeros": words(1, 1, value=0x7777777F),
        "scales": torch.ones(1, 8).half(),
    }
    source = checkpoint(tmp_path / "source", tensors, {**GPTQ, **said})
    weight = dequantized(cli, source)
    assert weight[:, 0].tolist() == [-float(point) for point in points]
    assert cli("convert", source, tmp_path / "converted").returncode == 0
    np.testing.assert_array_equal(
        decompressed(tmp_path / "converted")[f"{UP}.weight"], weight.numpy()
    )


def test_groups_of_old_files_count_backwards(cli: Ctcli, tmp_path: Path) -> None:
    tensors = gptq()
    order = tensors["g_idx"][torch.randperm(64, generator=torch.Generator().manual_seed(0))]
    wanted = dequantized(cli, checkpoint(tmp_path / "a", tensors | {"g_idx": order}, GPTQ))
    negative = torch.where(torch.arange(64) % 3 == 0, order - 2, order)
    found = dequantized(cli, checkpoint(tmp_path / "b", tensors | {"g_idx": negative}, GPTQ))
    assert torch.equal(found, wanted)
    plain = dequantized(cli, checkpoint(tmp_path / "c", tensors, GPTQ))
    assert not torch.equal(plain, wanted)


def test_columns_in_order_convert_whatever_desc_act_says(cli: Ctcli, tmp_path: Path) -> None:
    tensors = gptq()
    said = {**GPTQ, "desc_act": True}
    for name, given in (("with", tensors), ("without", without(tensors, "g_idx"))):
        source = checkpoint(tmp_path / name, given, said)
        result = cli("convert", source, tmp_path / f"{name}-converted")
        assert result.returncode == 0, result.stderr
        found = decompressed(tmp_path / f"{name}-converted")[f"{UP}.weight"]
        np.testing.assert_array_equal(found, dequantized(cli, source).numpy())


RUN_REFUSED: dict[str, tuple[Tensors, dict[str, Any], str]] = {
    "order": (
        gptq() | {"g_idx": torch.arange(64, dtype=torch.int32) % 2},
        GPTQ,
        f"{UP}: g_idx does not count the columns, and config.json has no desc_act.",
    ),
    "groups": (
        gptq() | {"g_idx": torch.full((64,), 2, dtype=torch.int32)},
        GPTQ,
        f"{UP}: g_idx names groups that it has no scales for.",
    ),
    "symmetric": (
        gptq() | {"qzeros": words(2, 4, value=0x77777767)},
        {**GPTQ, "sym": True},
        f"{UP}: some zero points are not 8, and config.json says that they are (sym).",
    ),
}


@pytest.mark.parametrize("name", RUN_REFUSED)
def test_what_only_values_tell_ends_the_run(cli: Ctcli, tmp_path: Path, name: str) -> None:
    tensors, said, message = RUN_REFUSED[name]
    source = checkpoint(tmp_path / "source", tensors, said)
    result = cli("convert", source, tmp_path / "converted")
    assert result.returncode == 1
    assert message in result.stderr
    assert not (tmp_path / "converted").exists()


def test_a_short_last_group_stays_a_source(cli: Ctcli, tmp_path: Path) -> None:
    tensors = without(gptq(columns=96), "g_idx")
    source = checkpoint(tmp_path / "source", tensors, {**GPTQ, "group_size": 64})
    weight = dequantized(cli, source)
    result = cli("convert", source, tmp_path / "converted")
    assert result.returncode == 1
    assert "its last group has fewer columns than the others" in result.stderr
    tensors["scales"][1] = 0
    source = checkpoint(tmp_path / "zero", tensors, {**GPTQ, "group_size": 64})
    halved = dequantized(cli, source)
    assert torch.equal(halved[:, :64], weight[:, :64])
    assert not halved[:, 64:].any()


def test_the_first_expression_that_fits_counts(tmp_path: Path) -> None:
    dynamic = {"+:.*down.*": {"bits": 2}, ".*up_proj": {"bits": 8}, "-:.*mlp.*": {}}
    said = {**GPTQ, "dynamic": dynamic}
    source = checkpoint(tmp_path / "source", gptq(bits=8), said)
    reading = read_quantized(open_checkpoint(str(source)))
    assert reading
    (coded,) = reading.coded.values()
    assert coded.method == "GPTQ, 8 bits, groups of 32"


def test_other_files_tell_what_config_json_does_not(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "awq", awq(groups=1), {})
    (source / "config.json").write_text('{"model_type": "llama"}')
    side = {"zero_point": True, "q_group_size": 64, "w_bit": 4, "version": "GEMM"}
    (source / "quant_config.json").write_text(json.dumps(side))
    reading = read_quantized(open_checkpoint(str(source)))
    assert reading
    (coded,) = reading.coded.values()
    assert coded.method == "AWQ GEMM, 4 bits, groups of 64"


def test_what_convert_needs_is_made_when_it_is_asked_for() -> None:
    """Plans of other commands, of tens of thousands of modules, do without."""
    for case in ("gptq-llama", "awq-gemm"):
        reading = read_quantized(open_checkpoint(str(SourceCase(case).checkpoint)))
        assert reading
        for coded in reading.coded.values():
            assert "_found" not in vars(coded.stored)
            assert {"weight_packed", "weight_scale"} < coded.stored.keys()
            assert coded.stored["weight_packed"] is coded.stored["weight_packed"]
