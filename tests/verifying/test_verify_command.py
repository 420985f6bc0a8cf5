"""`ctcli verify` as a command: exit status, table, JSON, page, hashes; and what loaders demand."""

from __future__ import annotations

import hashlib
import json
import math
import re
import shutil
import subprocess
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from ctcli import __version__
from ctcli.checkpoint.value import RECIPE_NAME
from ctcli.errors import CtcliError
from ctcli.storage.opening import open_checkpoint
from ctcli.verifying.errors import LayerError
from ctcli.verifying.findings import Finding, Verification
from ctcli.verifying.page import page
from tests.conftest import ROOT, Ctcli
from tests.helpers.checkpoints import file_hashes
from tests.helpers.operating import run_rotate
from tests.helpers.quantizing import run_quantize, tensors_of
from tests.helpers.tiny_models import Models, make
from tests.helpers.verifying import (
    both,
    drop,
    edit,
    flip,
    lines,
    run_verify,
    shard_of,
)

GOLDEN = ROOT / "fixtures" / "golden" / "input"
Q, K = (f"model.layers.1.self_attn.{role}_proj" for role in "qk")
NORM = "model.norm.weight"


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """The golden checkpoint in W4A16."""
    run_quantize(GOLDEN, tmp_path / "made", "W4A16")
    return tmp_path / "made"


def test_a_sound_checkpoint_exits_with_zero(made: Path, cli: Ctcli) -> None:
    before = file_hashes(made)
    done = cli("verify", made, "--against", GOLDEN, "--target", "vllm", "--tp", "2")
    assert (done.returncode, done.stderr) == (0, "")
    assert "differences    none" in done.stdout
    assert "7 tensors equal byte for byte, 14 weights with errors" in done.stdout
    assert file_hashes(made) == before


def test_differences_are_all_listed_and_exit_with_three(made: Path, cli: Ctcli) -> None:
    names = tensors_of(made)
    norms = [name for name in names if "layernorm" in name]
    scales = [name for name in names if name.endswith("weight_scale")]
    both(*map(drop, norms), *(edit(name, torch.Tensor.zero_) for name in scales))(made)
    done = cli("verify", made)
    assert done.returncode == 3
    listed = done.stdout.partition("\ndifferences\n")[2].splitlines()
    assert len(listed) == len(norms) + len(scales) == 18
    line = f"{Q}.weight_scale: 512 of its values are zero, as no scale is."
    assert f"  value  {line}" in listed

    as_json = cli("verify", made, "--json")
    assert (as_json.returncode, as_json.stderr) == (3, "")
    data = json.loads(as_json.stdout)
    assert len(data["differences"]) == 18
    assert {d["kind"] for d in data["differences"]} == {"value", "shape"}
    quiet = cli("verify", made, "--quiet")
    assert (quiet.returncode, quiet.stdout.splitlines(), quiet.stderr) == (3, listed, "")


def test_json_has_the_errors_of_every_module(made: Path, cli: Ctcli) -> None:
    data = json.loads(cli("verify", made, "--against", GOLDEN, "--json").stdout)
    assert data["differences"] == []
    assert (data["unchanged"], len(data["errors"])) == (7, 14)
    assert data["errors"][Q].keys() == {
        *("rms", "relative", "sqnr", "largest", "excess", "row", "column")
    }
    assert data["quantized"] == {"INT4 in groups of 128": 14}


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["nowhere"], 1, "nowhere: no such directory"),
        (["a/b/c"], 1, "a/b/c: no such directory"),
        ([".", "--max-error", "0.1"], 2, "--max-error is for --against"),
        ([".", "--revision", "main"], 2, "--revision is for --against"),
        ([".", "--tp", "2"], 2, "--tp is for --target vllm"),
        ([".", "--target", "ollama"], 2, "ollama"),
        ([".", "--against", "nowhere"], 1, "nowhere: no such directory"),
    ],
)
def test_wrong_usage(cli: Ctcli, arguments: list[str], status: int, message: str) -> None:
    done = cli("verify", *arguments)
    assert done.returncode == status
    assert message in done.stderr


def test_a_folder_without_a_checkpoint_is_one_big_difference(cli: Ctcli, tmp_path: Path) -> None:
    done = cli("verify", tmp_path)
    assert done.returncode == 3
    assert "*.safetensors: there are no weights files." in done.stdout


@pytest.mark.parametrize("option", ["--sha256", "--html"])
def test_where_nothing_can_be_written_is_told_first(
    cli: Ctcli, made: Path, tmp_path: Path, option: str
) -> None:
    (made / "config.json").unlink()
    done = cli("verify", made, option, tmp_path / "none" / "file")
    assert (done.returncode, done.stdout) == (1, "")
    assert "a file cannot be written there" in done.stderr


def test_sides_that_may_be_the_wrong_way_round_are_told(
    cli: Ctcli, made: Path, pylm: Path, tmp_path: Path
) -> None:
    done = cli("verify", pylm, "--against", made)
    assert done.returncode == 3
    assert "are they meant the other way?" in done.stdout
    copy = shutil.copytree(made, tmp_path / "copy")  # both are quantized, whoever did it
    (copy / RECIPE_NAME).unlink()
    assert "the other way" not in cli("verify", copy, "--against", made).stdout


def test_hashes_are_written_once_and_compared_from_then_on(made: Path, tmp_path: Path) -> None:
    sums = tmp_path / "sums"
    found = run_verify(made, sha256=sums)
    assert lines(found) == []
    assert ("hashes", f"written to {sums}") in found.rows()
    listed = [line.split("  ", 1) for line in sums.read_text().splitlines() if line[0] != "#"]
    assert {name: digest for digest, name in listed} == file_hashes(made)
    subprocess.run(["sha256sum", "--check", "--quiet", sums], cwd=made, check=True)
    norm = tensors_of(made)[NORM].view(torch.uint8).numpy().tobytes()
    line = f"# {hashlib.sha256(norm).hexdigest()}  BF16 [256]  {NORM}\n"
    assert line in sums.read_text()
    before = sums.read_bytes()
    assert ("hashes", f"compared with {sums}") in run_verify(made, sha256=sums).rows()
    assert lines(run_verify(made, sha256=sums)) == []

    # The lowest bit of a scale, which nothing else could tell from a sound one.
    flip(f"{Q}.weight_scale", 0, 0)(made)
    (made / "generation_config.json").write_text("{}")
    (made / RECIPE_NAME).unlink()
    shard = shard_of(made, f"{Q}.weight_scale")
    assert lines(run_verify(made, sha256=sums)) == [
        f"hash {RECIPE_NAME}: the file is in the manifest, and not there.",
        "hash generation_config.json: the file is not in the manifest.",
        f"hash {shard}: the file is not the one of the manifest.",
        f"hash {Q}.weight_scale: the tensor is not the one of the manifest.",
    ]
    assert sums.read_bytes() == before


def test_hashes_of_what_is_not_sound_are_not_written(made: Path, tmp_path: Path) -> None:
    drop(NORM)(made)
    found = run_verify(made, sha256=tmp_path / "sums")
    assert len(found.findings) == 1
    assert found.notes == (f"hashes: {tmp_path / 'sums'} is not written, as there are differences",)
    assert not (tmp_path / "sums").exists()


def test_hashes_may_lie_in_the_checkpoint_and_no_other_file_passes_for_them(made: Path) -> None:
    for _ in range(2):
        assert lines(run_verify(made, sha256=made / "SHA256SUMS")) == []
    with pytest.raises(CtcliError, match=r"config\.json: line 1 has no hash"):
        run_verify(made, sha256=made / "config.json")


class Reader(HTMLParser):
    """The elements of a page, its text, and what is open at its end."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in ("meta", "input", "wbr"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_page_replaces_nothing_but_a_page(
    made: Path, cli: Ctcli, ctcli: Ctcli, tmp_path: Path
) -> None:
    before = file_hashes(made)
    for file in (made / "config.json", tmp_path, tmp_path / "nowhere" / "page.html"):
        done = cli("verify", made, "--html", file)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith(f"error: {file}: ")
    assert file_hashes(made) == before
    for _ in range(2):
        assert cli("verify", made, "--html", tmp_path / "page.html").returncode == 0
    assert ctcli("verify", made, "--quiet", "--html", "/dev/stdout").stdout.endswith("</html>\n")


def test_the_page_stands_alone_and_shows_every_error(
    made: Path, cli: Ctcli, tmp_path: Path
) -> None:
    named = made.with_name("a <b> & c")
    made.rename(named)
    flip(f"{Q}.weight_scale", 0, 8)(named)
    done = cli("verify", named, "--against", GOLDEN, "--html", tmp_path / "page.html")
    assert done.returncode == 3
    reader = Reader()
    content = (tmp_path / "page.html").read_text()
    reader.feed(content)
    assert reader.open == []
    tags = [tag for tag, _ in reader.found]
    assert not {"link", "img", "iframe"} & {*tags}
    assert not re.search(r"https?:|url\(|@import", content)
    assert "prefers-color-scheme: dark" in content
    assert "a <b> & c" in reader.text
    assert "1 difference" in reader.text
    cells = [attributes for tag, attributes in reader.found if tag == "rect" and "x" in attributes]
    assert len(cells) == 14
    captions = [each for each in reader.found if each == ("p", {"class": "caption"})]
    assert len(captions) == 2
    assert f"ctcli{__version__}date20" in reader.text
    assert "commandctcli verify" in reader.text
    assert sum(attributes.get("scope") == "row" for _, attributes in reader.found) == 15
    assert f"{Q}: 0." in reader.text


def test_the_page_of_a_sound_checkpoint_without_a_source(made: Path) -> None:
    content = page("made", run_verify(made))
    assert ">sound</p>" in content
    assert "<svg" not in content
    assert "<script" not in content


def many(layers: int, experts: int) -> dict[str, LayerError]:
    """Errors of a mixture of experts, each module with another."""
    roles = [f"experts.{n}.{role}_proj" for n in range(experts) for role in ("gate", "up", "down")]
    roles += [f"self_attn.{role}_proj" for role in "qkvo"]
    names = [f"model.layers.{n}.mlp.{role}" for n in range(layers) for role in roles]
    return {
        name: LayerError(1e-3 * i, 0.1 + 1e-6 * i, 20.0 - i / 1e4, 0.031, 0.98, 0, 0)
        for i, name in enumerate(names)
    }


def verification(errors: Mapping[str, LayerError], *findings: Finding) -> Verification:
    return Verification(findings, (), 9, {}, 9, "source", 0, errors, None)


def test_the_page_of_a_giant_is_small_and_its_map_can_be_read() -> None:
    errors = many(61, 160)
    assert len(errors) > 29_000
    content = page("giant", verification(errors))
    assert len(content.encode()) < 2_000_000
    reader = Reader()
    reader.feed(content)
    cells = [attributes for tag, attributes in reader.found if tag == "rect" and "x" in attributes]
    assert len(cells) == 61 * 7, "experts of a layer share a cell"
    assert min(float(str(cell["width"])) for cell in cells) >= 6
    assert "(the worst of 160)" in content


def test_the_data_of_the_page_is_whole() -> None:
    errors = many(2, 3) | {"lm_head<script>*": LayerError(0.0, math.nan, None, 0.0, 0.0, 0, 0)}
    content = page("made", verification(errors))
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', content)
    found: dict[str, list[float | None]] = {}
    for pattern, values in json.loads(data):
        parts = pattern.split("*")
        size = len(parts) + 3
        for i in range(0, len(values), size):
            numbers = [str(n) for n in values[i : i + size - 4]]
            name = "".join(p + n for p, n in zip(parts, [*numbers, ""], strict=True))
            found[name] = values[i + size - 4 : i + size]
    assert found.keys() == {name.replace("*", "?") for name in errors}
    for name, error in errors.items():
        relative, rms, largest, excess = found[name.replace("*", "?")]
        assert relative == (
            None if math.isnan(error.relative) else pytest.approx(error.relative, rel=1e-3)
        )
        assert rms == pytest.approx(error.rms, rel=1e-3)
        assert (largest, excess) == (error.largest, error.excess)
    assert "lm_head<" not in content, "names are escaped"


def test_modules_are_sorted_by_error_and_repeated_differences_are_one_line() -> None:
    errors = many(4, 2)
    findings = [Finding("error", f"layers.{n}.mlp", "it is 0.25.") for n in range(9)]
    reader = Reader()
    reader.feed(page("made", verification(errors, *findings)))
    table = reader.text.partition("worst group\n")[2]
    listed = [line for line in table.split("\n") if line.startswith("model.")]
    assert len(listed) == len(errors)
    named = [next(name for name in errors if line.startswith(name)) for line in listed]
    assert named == sorted(named, key=lambda name: -errors[name].relative)
    assert "layers.*.mlp" in reader.text
    assert "it is 0.25. (9 like this)" in reader.text


def demands(folder: Path, **options: Any) -> list[str]:
    """What a loader is said to demand."""
    return [f"{f.where}: {f.message}" for f in run_verify(folder, **options).findings]


def test_vllm_merges_blocks_and_has_no_kernel_for_some_formats(tmp_path: Path) -> None:
    source = make(
        "llama", tmp_path / "source", hidden=256, num_key_value_heads=1, dtype=torch.bfloat16
    )
    run_quantize(source, tmp_path / "out", "FP8_BLOCK")
    assert demands(tmp_path / "out") == demands(tmp_path / "out", target="transformers") == []
    found = demands(tmp_path / "out", target="vllm")
    assert len(found) == 4  # k of two layers, and gate
    k = "model.layers.0.self_attn.k_proj"
    assert found[0].startswith(f"{k}: its 64 rows are no multiple of 128")
    run_quantize(GOLDEN, tmp_path / "w4a4", "W4A4", format="int-quantized")
    (line,) = demands(tmp_path / "w4a4", target="vllm")
    assert line.startswith("W4A4: vLLM has no kernel for INT4 in groups of 128 with inputs INT4")


@pytest.mark.parametrize(
    ("scheme", "machines", "expected"),
    [
        ("W4A16", 2, []),
        (
            "W4A16",
            4,
            [f"model.layers.{n}.self_attn.o_proj: a machine's 64 columns are no multiple of 128, "
             "the group size." for n in (0, 1)],
        ),
        (
            "W4A16",
            3,
            [rf"model.layers.{n}.{linear}: its {size} {what} do not divide into 3 parts."
             for n in (0, 1)
             for linear, size, what in (
                 ("mlp.down_proj", 512, "columns"),
                 ("mlp.gate_proj", 512, "rows"),
                 ("mlp.up_proj", 512, "rows"),
                 ("self_attn.o_proj", 256, "columns"),
                 ("self_attn.q_proj", 256, "rows"),
             )],
        ),
        (
            "FP8_BLOCK",
            2,
            [f"model.layers.{n}.self_attn.{kind}_proj: a machine's 64 rows are no multiple of 128, "
             "the block's rows." for n in (0, 1) for kind in "kv"],
        ),
        ("FP8_DYNAMIC", 4, []),
    ],
)  # fmt: skip
def test_no_group_and_no_block_lies_on_two_machines(
    scheme: str, machines: int, expected: list[str], tmp_path: Path
) -> None:
    run_quantize(GOLDEN, tmp_path / "out", scheme)
    found = demands(tmp_path / "out", target="vllm", tp=machines)
    assert sorted(found) == sorted(expected)


def test_rotations_at_run_time_need_one_machine(tiny: Models, tmp_path: Path) -> None:
    model = tiny("llama", hidden=128)
    run_rotate(model.folder, tmp_path / "rotated", rotations=("R2", "R4"), block_size=32)
    run_quantize(tmp_path / "rotated", tmp_path / "out", "FP8_DYNAMIC")
    found = demands(tmp_path / "out", target="vllm", tp=2)
    assert "R4: it is applied at run time, for which vLLM needs one machine." in found
    (line,) = demands(tmp_path / "out", target="transformers")
    assert line.startswith("R4: this rotation is not applied at run time")


def test_unequal_scales_of_experts_are_found_as_another_tool_writes_them(tmp_path: Path) -> None:
    source = make(
        "qwen3_moe", tmp_path / "source", hidden=128, moe_intermediate_size=64, head_dim=32,
        intermediate_size=128, dtype=torch.bfloat16,
    )  # fmt: skip
    run_quantize(source, tmp_path / "out", "NVFP4A16")
    assert demands(tmp_path / "out") == []
    expert = "model.layers.1.mlp.experts.2"
    edit(f"{expert}.up_proj.weight_global_scale", lambda scale: scale * 4)(tmp_path / "out")
    (line,) = demands(tmp_path / "out")
    start = f"{expert}.{{gate_proj,up_proj}}: its members have different weight_global_scale: gate"
    assert line.startswith(start)


def ragged(folder: Path) -> Path:
    """A linear of 5 rows and 20 columns in four bits, asymmetric, by channel."""
    tensors = {"layers.0.mlp.down_proj.weight": torch.randn(5, 20)}
    (folder / "source").mkdir()
    save_file(tensors, folder / "source" / "model.safetensors", metadata={"format": "pt"})
    (folder / "source" / "config.json").write_text('{"model_type": "novel"}')
    out = folder / "out"
    run_quantize(folder / "source", out, bits=4, strategy="channel", symmetric=False)
    return out


@pytest.mark.parametrize(
    ("suffix", "index", "bit"),
    [("weight_packed", (4, 2), 16), ("weight_zero_point", (0, 0), 20)],
)
def test_set_padding_bits_are_found(
    suffix: str, index: tuple[int, int], bit: int, tmp_path: Path
) -> None:
    made = ragged(tmp_path)
    found = run_verify(made, source=open_checkpoint(str(tmp_path / "source")))
    assert lines(found) == []
    path, name = made / "model.safetensors", f"layers.0.mlp.down_proj.{suffix}"
    for place, expected in ((bit - 1, []), (bit, [f"value {name}: 1 of its words have padding"])):
        tensors = tensors_of(made)
        tensors[name][index] ^= 1 << place
        save_file(tensors, path, metadata={"format": "pt"})
        assert [line[: len(expected[0])] for line in lines(run_verify(made))] == expected


def test_a_packed_word_does_not_lie_on_two_machines(tmp_path: Path) -> None:
    found = demands(ragged(tmp_path), target="vllm", tp=2)
    assert found == [
        "layers.0.mlp.down_proj: a machine's 10 columns are no multiple of 8, the elements of a "
        "packed word."
    ]


EXAMPLES = [
    line.strip().partition("#")[0].split()
    for line in (ROOT / "ctcli/guide/verify.md").read_text().splitlines()
    if line.startswith("    ctcli verify DST")
]


@pytest.mark.parametrize("example", EXAMPLES, ids=" ".join)
def test_the_examples_of_the_guide_run(
    example: list[str], made: Path, cli: Ctcli, ctcli: Ctcli, tmp_path: Path
) -> None:
    places = {"DST": made, "SRC": GOLDEN}
    places |= {name: tmp_path / name for name in ("DST.sha256", "DST.html")}
    run = ctcli if "--cluster" in example else cli  # a process that has threads had better not fork
    done = run(*(places.get(word, word) for word in example[1:]))
    assert (done.returncode, done.stderr) == (0, "")
    assert all(path.exists() for name, path in places.items() if name in example)
