"""Examples of README, guide and help are run as they stand there, and what they claim is seen."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import struct
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
import typer.main
import yaml
from huggingface_hub import JobHardware
from safetensors import safe_open

from ctcli.cli import app
from ctcli.cli.examples import EXAMPLES as HELP
from ctcli.cli.options import Destination
from ctcli.events import EventKind
from ctcli.storage.opening import open_checkpoint
from tests.conftest import ROOT, Ctcli
from tests.helpers.checkpoints import file_hashes, tensor_hashes, write_checkpoint
from tests.helpers.hub import Hub
from tests.helpers.processes import HANG_SECONDS
from tests.helpers.surgery import orthogonal
from tests.test_docs import DOCS, docs_table

TOKEN = "hf_" + "Rw8" * 11 + "Z"
SOURCE, MADE = "org/name", "org/made"
WIDTH, LAYERS, HEADS, VOCABULARY, LENGTH = 256, 11, 4, 256, 512
CONFIG = {
    "model_type": "llama",
    "hidden_size": WIDTH,
    "intermediate_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": HEADS,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": LENGTH,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
}
ATTENTION = [f"self_attn.{role}_proj" for role in "qkvo"]
MLP = [f"mlp.{role}_proj" for role in ("gate", "up", "down")]
EMBEDDING = "model.embed_tokens.weight"


# Without their code blocks in fences: the docs' short examples are indented.
INDENTED = re.sub(r"^```.*?^```$", "", DOCS, flags=re.MULTILINE | re.DOTALL)


def fenced(language: str) -> str:
    """The one code block in that language."""
    (block,) = re.findall(rf"^```{language}\n(.*?)^```$", DOCS, re.MULTILINE | re.DOTALL)
    return str(block)


@dataclass(frozen=True)
class Example:
    """A line of README that runs ctcli: the command as it is given to a shell, and its comment."""

    command: str
    comment: str

    def __str__(self) -> str:
        return self.command

    @property
    def calls(self) -> list[list[str]]:
        return [shlex.split(part)[1:] for part in self.command.split("&&")]


def examples() -> list[Example]:
    """All indented lines that run ctcli; an install before it is left out, as .ci/run does it."""
    found = []
    for line in re.findall(r"^    (.*\bctcli [a-z].*)$", INDENTED, re.MULTILINE):
        command, _, comment = re.sub("^pip install [^&]*&& ", "", line).partition(" #")
        found.append(Example(command.strip(), comment.strip()))
    return found


OF_HELP = [Example(command, "") for lines in HELP.values() for command, _ in lines]
IN_DOCS = examples()
EXAMPLES = [
    *IN_DOCS,
    *dict.fromkeys(each for each in OF_HELP if each.command not in map(str, IN_DOCS)),
]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama with the bundled tokenizer whose widths all schemes divide; fused sets straddle."""
    rng = np.random.default_rng(11)
    shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (VOCABULARY, WIDTH)}
    for layer in (f"model.layers.{n}" for n in range(LAYERS)):
        shapes |= {f"{layer}.{role}.weight": (WIDTH, WIDTH) for role in (*ATTENTION, *MLP)}
    names = list(shapes)
    for norm in ("input", "post_attention"):
        shapes |= {f"model.layers.{n}.{norm}_layernorm.weight": (WIDTH,) for n in range(LAYERS)}
    shapes["model.norm.weight"] = (WIDTH,)
    tensors = {
        name: (rng.normal(size=shape) if len(shape) > 1 else rng.uniform(0.5, 2, shape))
        for name, shape in shapes.items()
    }
    halves = {name: values.astype("float16") for name, values in tensors.items()}
    first = {name: halves.pop(name) for name in names[: len(names) // 2 - 1]}
    files = {f"model-0000{i}-of-00002.safetensors": half for i, half in ((1, first), (2, halves))}
    folder = tmp_path_factory.mktemp("readme") / "SRC"
    write_checkpoint(folder, files, others={"config.json": json.dumps(CONFIG)})
    shutil.copy(ROOT / "fixtures/pylm/tokenizer.json", folder)
    return folder


@pytest.fixture(scope="module")
def made(source: Path) -> Path:
    """What the docs' recipe makes of it."""
    folder = source.parent
    (folder / "recipe.toml").write_text(fenced("toml"))
    command = [sys.executable, "-m", "ctcli", "run", "recipe.toml", "SRC", "made", "--quiet"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(command, cwd=folder, env=environment, check=True)
    return folder / "made"


@pytest.fixture(scope="module")
def quantized(source: Path) -> Path:
    """The source in FP8 blocks."""
    command = [sys.executable, "-m", "ctcli", "quantize", "SRC", "quantized", "--quiet"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    given = [*command, "--scheme", "FP8_BLOCK"]
    subprocess.run(given, cwd=source.parent, env=environment, check=True)
    return source.parent / "quantized"


@pytest.fixture
def hub(source: Path) -> Iterator[Hub]:
    with Hub() as running:
        running.token = TOKEN
        running.add(SOURCE, source, branch="main", gated=True)
        running.add(SOURCE, source, branch="v1.0", gated=True)
        yield running


Shell = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def shell(hub: Hub, tmp_path: Path) -> Shell:
    """Runs a script with bash: with this ctcli, the hub double, and installs that install nothing.

    What stands for `pip` and `git` checks what it is asked for: the repository, in its folder.
    """
    programs = {
        "ctcli": f'exec {sys.executable} -m ctcli "$@"',
        "pip": '[ "$1 $2" = "install -c" ] && [ -f "$3" ] && [ -d "$4/ctcli" ] && [ $# = 4 ]',
        "git": f'[ "$1" = clone ] && ln -s {ROOT} "$(basename "${{!#}}")"',
    }
    folder = tmp_path / "programs"
    folder.mkdir()
    for name, script in programs.items():
        (folder / name).write_text(f"#!/bin/bash\n{script}\n")
        (folder / name).chmod(0o755)
    path = f"{folder}:{Path(sys.executable).parent}:{os.environ['PATH']}"

    def run(
        *words: str, cwd: Path, token: str = TOKEN, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        environment = {
            **os.environ,
            **hub.env(tmp_path / "home", token),
            "PATH": path,
            "PYTHONPATH": str(ROOT),
            "HF_HUB_DISABLE_UPDATE_CHECK": "1",
            **(env or {}),
        }
        del environment["HF_HUB_CACHE"]  # it is below HF_HOME, which an example may choose
        return subprocess.run(
            words,
            cwd=cwd,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=HANG_SECONDS,
        )

    return run


@pytest.fixture
def place(source: Path, quantized: Path, tmp_path: Path) -> Path:
    """A folder with everything that the docs' examples name."""
    folder = tmp_path / "place"
    shutil.copytree(source, folder / "SRC")
    shutil.copytree(quantized, folder / "QUANTIZED")
    shutil.copytree(ROOT / "fixtures/pylm", folder / "fixtures/pylm")
    (folder / "recipe.toml").write_text(fenced("toml"))
    matrices = {f"model.layers.{n}.self_attn.R2": orthogonal(WIDTH // HEADS, n) for n in range(11)}
    matrices["R1"] = orthogonal(WIDTH, 12)
    torch.save({name: matrix.float() for name, matrix in matrices.items()}, folder / "R.bin")
    return folder


def parameters_of(call: list[str]) -> dict[str, Any]:
    """What ctcli makes of its arguments."""
    group = typer.main.get_group(app)
    command = group.get_command(typer.Context(group), call[0])
    assert command, call
    return command.make_context(call[0], call[1:]).params


def destinations_of(call: list[str]) -> list[Path]:
    if "--init" in call or call[0] == "finish":  # it ends before there are places; DST is there
        return []
    target = parameters_of(call).get("destination")
    return [target.path] if isinstance(target, Destination) and not target.repo else []


def test_all_examples_are_found() -> None:
    lines = [line for line in INDENTED.splitlines() if line.startswith("    ctcli ")]
    assert len(IN_DOCS) == len(lines) + 1, "and the one of the set-up"


@pytest.mark.parametrize("example", EXAMPLES, ids=str)
def test_an_example_does_what_it_says(
    example: Example, place: Path, made: Path, shell: Shell, ctcli: Ctcli
) -> None:
    outputs = [path for call in example.calls for path in destinations_of(call)]
    if "DST" in example.command and Path("DST") not in outputs:
        shutil.copytree(made, place / "DST")
    for shown in re.findall(r" > (\S+)", example.command):
        (place / shown).unlink()
    before = file_hashes(place)
    # A few megabytes of weights make several shards only of less than the docs'.
    done = shell("bash", "-euc", example.command.replace("5GB", "500KB"), cwd=place)
    assert not done.returncode, done.stderr
    if "--dry-run" in example.command:
        assert file_hashes(place) == before
    else:
        assert all(file_hashes(place)[name] == digest for name, digest in before.items())
        for path in outputs:
            assert_opens(place / path, ctcli)
    if example.comment:
        CLAIMS[example.comment](place, done.stdout)


def assert_opens(path: Path, ctcli: Ctcli) -> None:
    if path.suffix == ".bin":
        assert path.stat().st_size > 256
        return
    found = ctcli("inspect", path, "--json")
    assert not found.returncode, found.stderr
    assert not json.loads(found.stdout)["anomalies"]


Claim = Callable[[Path, str], None]


def says(*words: str) -> Claim:
    def claim(_: Path, shown: str) -> None:
        assert all(word in shown for word in words)

    return claim


def says_nothing(_: Path, shown: str) -> None:
    assert not shown


def is_in_natural_order(place: Path, _: str) -> None:
    index = json.loads((place / "DST/model.safetensors.index.json").read_text())["weight_map"]
    ends: dict[int, list[str]] = {}
    for name, shard in index.items():
        if found := re.search(r"layers\.(\d+)\.", name):
            ends.setdefault(int(found[1]), []).append(shard)
    shards = [shard for layer in sorted(ends) for shard in sorted(ends[layer])]
    assert shards == sorted(shards)
    assert len({*shards}) > 4


def is_from_the_hub(place: Path, _: str) -> None:
    recipe = tomllib.loads((place / "DST/ctcli_recipe.toml").read_text())
    assert SOURCE in str(recipe["source"])
    assert tensor_hashes(place / "DST") == tensor_hashes(place / "SRC")


def is_rotated_as_learned(place: Path, _: str) -> None:
    def embedding(folder: str) -> Any:
        for path in (place / folder).glob("*.safetensors"):
            with safe_open(path, framework="np") as file:
                if EMBEDDING in file.keys():  # noqa: SIM118 (it is no dictionary)
                    return file.get_tensor(EMBEDDING).astype("float32")
        raise AssertionError("no embedding")

    turned = embedding("SRC") @ torch.load(place / "R.bin")["R1"].numpy()
    np.testing.assert_allclose(embedding("DST"), turned, rtol=2**-10, atol=1e-3)  # float16


def is_float32(place: Path, _: str) -> None:
    for path in (place / "DST").glob("*.safetensors"):
        with safe_open(path, framework="np") as file:
            assert {str(file.get_slice(name).get_dtype()) for name in file.keys()} == {"F32"}  # noqa: SIM118


def has_a_quantized_head(place: Path, _: str) -> None:
    assert "lm_head.weight_packed" in tensor_hashes(place / "DST")
    config = json.loads((place / "DST/config.json").read_text())
    assert config["tie_word_embeddings"] is False


def is_for_runq(place: Path, _: str) -> None:
    assert struct.unpack("<Ii", (place / "model.bin").read_bytes()[:8]) == (0x616B3432, 2)


def is_for_run(place: Path, _: str) -> None:
    header = struct.unpack("<7i", (place / "model.bin").read_bytes()[:28])
    assert header == (WIDTH, WIDTH, LAYERS, HEADS, HEADS, VOCABULARY, LENGTH)
    content = (place / "tokenizer.bin").read_bytes()
    begin = 4  # behind the longest token's length; of each token: score, length, bytes
    for _token in range(VOCABULARY):
        begin += 8 + struct.unpack_from("<fi", content, begin)[1]
    assert begin == len(content)


def is_the_same_again(place: Path, _: str) -> None:
    assert file_hashes(place / "AGAIN") == file_hashes(place / "DST")


def is_json(_: Path, shown: str) -> None:
    assert isinstance(json.loads(shown), dict)


def lists_tensors(pattern: str) -> Claim:
    def claim(place: Path, shown: str) -> None:
        listed = [line.split() for line in shown.splitlines() if ".safetensors" in line]
        every = json.loads((place / "SRC/model.safetensors.index.json").read_text())["weight_map"]
        assert {cells[0]: cells[-1] for cells in listed} == {
            name: shard for name, shard in every.items() if re.search(pattern, name)
        }
        assert all(cells[1] == "F16" and cells[2].startswith(f"[{WIDTH}") for cells in listed[1:])

    return claim


def checks_hashes(place: Path, _: str) -> None:
    command = ["sha256sum", "--check", "--strict", "../DST.sha256"]
    done = subprocess.run(command, cwd=place / "DST", check=False, capture_output=True, text=True)
    assert not done.returncode, done.stderr
    assert len(done.stdout.splitlines()) == len(file_hashes(place / "DST"))


def is_a_page(place: Path, _: str) -> None:
    page = (place / "DST.html").read_text()
    assert page.startswith("<!doctype html>")
    assert "model.layers.10.mlp.down_proj" in page


def is_float16(place: Path, _: str) -> None:
    specs = open_checkpoint(str(place / "DST")).specs.values()
    assert {spec.dtype for spec in specs} == {"F16"}


def is_spelled_as_fp8(place: Path, _: str) -> None:
    said = json.loads((place / "DST/config.json").read_text())["quantization_config"]
    assert (said["quant_method"], said["weight_block_size"]) == ("fp8", [128, 128])


def is_half_zeros(together: int) -> Claim:
    """Whether half of so many neighbours in a row are zero, in every linear."""

    def claim(place: Path, _: str) -> None:
        for path in (place / "DST").glob("*.safetensors"):
            with safe_open(path, framework="np") as file:
                for name in (n for n in file.keys() if n.endswith("_proj.weight")):  # noqa: SIM118
                    zeros = (file.get_tensor(name).reshape(-1, together) == 0).sum(1)
                    assert (zeros == together // 2).all(), name

    return claim


def is_a_recipe(_: Path, shown: str) -> None:
    (step,) = tomllib.loads(shown)["steps"]
    assert step == {"use": "quantize", "scheme": "W4A16"}
    assert "# rotations" in shown


# What the docs' comments say, and how one sees it.
CLAIMS: dict[str, Claim] = {
    "which sets would move, and where": says("sets moved  ", "_proj} -> model-0000"),
    "lay everything out anew, layer 2 before layer 10": is_in_natural_order,
    "from a hub": is_from_the_hub,
    "learned rotations, as SpinQuant publishes them": is_rotated_as_learned,
    "for a chain without rounding in between": is_float32,
    "what would be quantized, from headers alone": says("77 modules: FP8_DYNAMIC"),
    "the head too, untied if it is tied": has_a_quantized_head,
    "how its weights are stored, and what can be made of them": says(
        "FP8 in 128x128 blocks", "dequantize", "convert"
    ),
    "floats, of the dtype that config.json or the norms have": is_float16,
    "the same numbers, for vLLM and transformers": says("FP8 in 128x128 blocks", "exact"),
    "FP8 blocks as DeepSeek and Qwen spell them": is_spelled_as_fp8,
    "from the floats that it stands for": says("77 modules: NVFP4A16"),
    "Q8_0, for runq": is_for_runq,
    "float32, for run, and tokenizer.bin": is_for_run,
    "header fields, sizes and offsets": says(f"dim {WIDTH}", "offset, size", "token_embedding"),
    "the same bytes again": is_the_same_again,
    "structure and values": says("INT4 in groups of 128", "differences  none"),
    "and the error of every weight": says("with errors", "largest error", "differences    none"),
    "and what vLLM demands, on two GPUs": says("differences  none"),
    "and that nothing has changed since": checks_hashes,
    "a page to look at": is_a_page,
    "by two processes, or on several machines": says("with errors", "differences    none"),
    "one JSON object, for programs": is_json,
    "every tensor: dtype, shape, size, shard": lists_tensors(""),
    "what it holds, what each scheme would make of it; headers only": says(
        "family", "W4A16", "bits", "vLLM"
    ),
    "4 bits, for vLLM and transformers": says("77 modules: W4A16", "vllm serve DST"),
    "every weight's error, measured": says("weights with errors", "differences    none"),
    "what this one admits, and why not": says("fuse-norms", "rotate", "R1", "R2", "equalize"),
    "differences alone": says_nothing,
    "and what values they hold": says("rms", "mlp.down_proj.weight"),
    "what two checkpoints differ in": says("only in the second", "weight_packed", "11 x"),
    "of a hub, by way of its cache": says("differences  none"),
    "a commented recipe for SRC, to begin with": is_a_recipe,
    "the 2 largest of every 4 neighbours stay": is_half_zeros(4),
    "or half of each row": is_half_zeros(WIDTH),
    "those that match": lists_tensors(r".*layers\.0\."),
}


def test_every_comment_is_looked_at() -> None:
    assert {example.comment for example in EXAMPLES} - {""} == CLAIMS.keys()


def test_the_mapping_says_what_is_known_of_llama(place: Path, ctcli: Ctcli) -> None:
    (block,) = re.findall(r"^    embedding = .*?(?=\n\n)", DOCS, re.MULTILINE | re.DOTALL)
    main, _, norm = re.sub("^    ", "", block, flags=re.MULTILINE).partition("[[norms]]")
    likewise = [f'attn_{role} = "re:.*{role}_proj$"\n' for role in "kvo"]
    others = [
        '[[norms]]\nnorm = "re:.*post_attention_layernorm$"\n'
        'linears = ["re:.*gate_proj$", "re:.*up_proj$"]\n',
        '[[norms]]\nnorm = "model.norm"\nlinears = ["lm_head"]\n',
    ]
    (place / "mapping.toml").write_text(
        "".join([main, *likewise, "[[norms]]", norm, "\n", *others])
    )
    assert not ctcli("rotate", place / "SRC", place / "known").returncode
    config = place / "SRC/config.json"
    config.write_text(json.dumps({**CONFIG, "model_type": "mine"}))
    options = ("--mapping", place / "mapping.toml")
    done = ctcli("rotate", place / "SRC", place / "mapped", *options)
    assert not done.returncode, done.stderr
    assert tensor_hashes(place / "mapped") == tensor_hashes(place / "known")


# The fields of each event, as the guide lists them.
EVENTS = {row[0].strip("`"): row[2] for row in docs_table("`event`")}


def state(hub: Hub, folder: Path) -> tuple[object, ...]:
    return file_hashes(folder), {name: dict(repo.branches) for name, repo in hub.repos.items()}


def published(hub: Hub) -> dict[str, bytes]:
    found = hub.contents(MADE)
    found.pop(".gitattributes")
    assert found.pop("README.md").startswith(b"---\n")
    return found


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.iterdir() if path.name != "README.md")
    return {path.name: path.read_bytes() for path in files}


def test_the_workflow_runs(hub: Hub, shell: Shell, tmp_path: Path) -> None:
    workspace = tmp_path / "workspace"
    workspace.mkdir()
    contexts = {"github.workspace": str(workspace), "secrets.HF_TOKEN": TOKEN}
    text = re.sub(r"\$\{\{ (.*?) \}\}", lambda found: contexts[found[1]], fenced("yaml"))
    workflow = yaml.safe_load(text)
    assert workflow[True] == "workflow_dispatch", "YAML 1.1 takes the key `on` for true"
    (job,) = workflow["jobs"].values()
    used = {step["uses"].partition("@")[0]: step["with"] for step in job["steps"] if "uses" in step}
    checkout, python, cache = (
        used.pop(f"actions/{n}") for n in ("checkout", "setup-python", "cache")
    )
    assert not used
    (workspace / checkout["path"]).symlink_to(ROOT)
    assert (workspace / python["cache-dependency-path"]).is_file()
    for step in job["steps"]:
        if script := step.get("run"):
            before = state(hub, workspace)
            done = shell("bash", "-ec", script, cwd=workspace, token="", env=job["env"])
            assert not done.returncode, f"{script}: {done.stderr}"
            assert "--dry-run" not in script or state(hub, workspace) == before
    assert hub.repos[MADE].private
    assert published(hub) == contents(workspace / "DST")
    assert list((workspace / cache["path"]).glob("models--org--name/blobs/*"))


def test_the_hub_job_runs(
    hub: Hub, shell: Shell, ctcli: Ctcli, source: Path, tmp_path: Path
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    submitted = shell("bash", "-euc", fenced("sh"), cwd=here)
    assert not submitted.returncode, submitted.stderr
    (job,) = hub.jobs
    assert job["flavor"] in {hardware.value for hardware in JobHardware}
    assert job["timeoutSeconds"] == 12 * 3600
    assert job["dockerImage"].startswith("python:3.")
    env = {**job["environment"], **job["secrets"]}
    done = shell(*job["command"], cwd=there, token="", env=env)
    assert not done.returncode, done.stderr
    events = [json.loads(line) for line in done.stderr.splitlines()]
    assert [event["event"] for event in events][:: len(events) - 1] == ["started", "done"]
    for event in events:
        fields = {"event", "time", "elapsed", *re.findall("`([a-z]+)`", EVENTS[event["event"]])}
        assert event.keys() == fields
    assert set(hub.repos[MADE].branches) == {"main"}
    assert [path.name for path in there.iterdir()] == ["ctcli"], "the clone, and nothing else"
    local = tmp_path / "local"
    assert not ctcli("quantize", source, local, "--scheme", "W4A16").returncode
    weights = {name: data for name, data in contents(local).items() if ".safetensors" in name}
    assert weights.items() <= published(hub).items()


def test_the_table_of_events_is_complete() -> None:
    assert EVENTS.keys() == set(get_args(EventKind))
