"""The model card, as the hub's own reader of cards sees it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from ctcli import __version__
from ctcli.checkpoint.value import Checkpoint, Origin, Shard
from ctcli.lazy.tensors import Known, TensorSpec
from ctcli.storage.card import model_card, with_card
from ctcli.storage.local import local_file
from ctcli.storage.opening import open_checkpoint

COMMAND = "ctcli quantize org/base hf://org/made --scheme W4A16"
STEP = {"use": "quantize", "scheme": ["re:.*=W4A16"], "group_size": None}
MADE = "org/made"
TOKEN = "hf_" + "Rt5" * 11 + "W"
SOURCE = """---
license: other
license_name: own
license_link: LICENSE
language: [en, de]
tags: [text-generation]
base_model: org/older
base_model_relation: finetune
pipeline_tag: text-generation
extra_gated_prompt: Agree?
model-index:
- name: base
  results:
  - task: {type: text-generation}
    dataset: {name: d, type: d}
    metrics: [{type: acc, value: 0.9}]
---

# Base

Its text | with --- and {{ braces }}.
"""
Card = Callable[..., str]


@pytest.fixture
def checkpoint(pylm: Path) -> Checkpoint:
    """Of a hub; two matrices of the bundled checkpoint become one of integers."""
    opened = open_checkpoint(str(pylm))
    first, *others = opened.shards
    packed = Known(TensorSpec("I32", (250, 2)), bytes(2000))
    return replace(
        opened,
        shards=(Shard(first.name, {"a": packed}, {}), *others[1:]),
        origin=Origin("org/base", "c0ffee", "0"),
        steps=(STEP,),
    ).with_config({**opened.config, "quantization_config": {"quant_method": "compressed-tensors"}})


@pytest.fixture
def card(checkpoint: Checkpoint) -> Card:
    """Makes the card, with another card of the source and other facts."""

    def make(source: str | bytes | None = SOURCE, command: str = COMMAND, **facts: Any) -> str:
        files = {name: file for name, file in checkpoint.files.items() if name != "README.md"}
        if source is not None:
            files["README.md"] = source.encode() if isinstance(source, str) else source
        return model_card(replace(checkpoint, files=files, **facts), command, MADE).decode()

    return make


def data(card: str) -> dict[str, Any]:
    return dict(ModelCard(card).data.to_dict())  # type: ignore[no-untyped-call]


def test_front_matter_is_the_sources_but_for_what_holds_for_its_weights_alone(card: Card) -> None:
    assert data(card()) == {
        "license": "other",
        "license_name": "own",
        "license_link": "LICENSE",
        "language": ["en", "de"],
        "tags": ["text-generation", "compressed-tensors", "w4a16"],
        "library_name": "transformers",
        "base_model": "org/base",
        "base_model_relation": "quantized",
        "pipeline_tag": "text-generation",
        "extra_gated_prompt": "Agree?",
    }


def test_the_text_says_how_it_was_made_and_then_what_the_source_said(card: Card) -> None:
    text = ModelCard(card()).text
    assert f"ctcli {__version__} rewrote the weights of `org/base` at commit `c0ffee`:" in text
    assert f"\n    {COMMAND}\n" in text
    assert '- quantize: scheme = ["re:.*=W4A16"]\n' in text
    made, source = text.split("\n## Model card of the source\n")
    assert source == "\n# Base\n\nIts text | with --- and {{ braces }}.\n"
    assert "## How this checkpoint was made" in made


def test_it_says_how_it_is_loaded(card: Card) -> None:
    made = card()
    assert "\n    vllm serve org/made\n" in made
    assert 'AutoModelForCausalLM.from_pretrained("org/made")\n' in made


def test_a_result_on_this_disk_has_a_card_that_does_not_tell_where_it_lies(
    checkpoint: Checkpoint,
) -> None:
    made = with_card(checkpoint).files["README.md"]
    assert isinstance(made, bytes)
    assert "\n    vllm serve .\n" in made.decode()
    assert COMMAND not in made.decode()
    assert data(made.decode())["tags"] == ["compressed-tensors", "w4a16"]


def test_where_no_weight_changes_the_card_stays(checkpoint: Checkpoint) -> None:
    assert with_card(replace(checkpoint, steps=({"use": "reindex"},))).files == checkpoint.files


def test_sizes_are_those_of_the_headers(card: Card, checkpoint: Checkpoint) -> None:
    rows = [line.strip("| ").split(" | ") for line in card().splitlines() if line.startswith("|")]
    bf16 = sum(t.spec.nbytes for s in checkpoint.source_shards.values() for t in s.tensors.values())
    kept = sum(shard.nbytes for shard in checkpoint.shards[1:])
    assert rows[2:] == [
        ["I32", "0 B", "2 KB"],
        ["BF16", f"{bf16 / 1e6:.3g} MB", f"{kept / 1e6:.3g} MB"],
        ["together", f"{bf16 / 1e6:.3g} MB", f"{(kept + 2000) / 1e6:.3g} MB"],
        ["files", "6", "5"],
    ]


def test_a_local_source_has_the_base_that_its_own_card_names(card: Card) -> None:
    local = Origin("folder", None, "0")
    assert data(card(origin=local))["base_model"] == "org/older"
    assert "base_model" not in data(card("# No front matter", origin=local))
    assert "`folder`:" in card(origin=local)


def test_only_quantized_weights_are_called_so(card: Card) -> None:
    assert "base_model_relation" not in data(card(steps=({"use": "rotate", "seed": 7},)))


@pytest.mark.parametrize(
    ("source", "kept"),
    [
        (None, None),
        ("", None),
        ("# Only text\n", "# Only text"),
        ("---\nlicense: [\n---\nText\n", "license: ["),
        ("---\n- a list\n---\nText\n", "Text"),
        ("---\n1: one\n---\nText\n", "Text"),
        ("---\na: &a [x]\nb: [*a, *a]\n---\nText\n", "Text"),
        ("---\n" + "[" * 5000 + "\n---\nText\n", "Text"),
        (b"\xff\xfe no UTF-8", "no UTF-8"),
        ("---\nlicense: mit\nmodel-index: nonsense\n---\nText\n", "Text"),
    ],
)
def test_whatever_the_source_has_for_a_card_a_good_one_comes_out(
    card: Card, source: str | bytes | None, kept: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    logger = logging.getLogger("huggingface_hub")
    logger.setLevel(logging.WARNING)
    logger.addHandler(caplog.handler)
    made = card(source)
    logger.removeHandler(caplog.handler)
    assert not caplog.records
    assert data(made)["base_model"] == "org/base"
    assert COMMAND in made
    assert ("## Model card of the source" in made) == (kept is not None)
    assert kept is None or kept in made


def test_the_card_of_a_file_is_read(checkpoint: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\nRead.\n")
    file = local_file("README.md", tmp_path / "README.md")
    made = model_card(replace(checkpoint, files={"README.md": file}), COMMAND).decode()
    assert data(made)["license"] == "mit"
    assert made.endswith("Read.\n")


def test_no_token_and_no_second_line_in_the_command(card: Card) -> None:
    made = card(command=f"ctcli x --note {TOKEN}\n# Fake", steps=({"use": "x", "note": TOKEN},))
    assert TOKEN not in made
    assert "\n# Fake" not in made


def test_a_quantization_config_that_is_no_table_is_left_alone(checkpoint: Checkpoint) -> None:
    config = {**checkpoint.config, "quantization_config": ["fp8"]}
    assert b"how this checkpoint was made" in model_card(checkpoint.with_config(config)).lower()
