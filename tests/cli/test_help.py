"""Help: short on one screen, in full, and the same words as the options have."""

from __future__ import annotations

import re
import shlex

import pytest

from ctcli.cli.examples import EXAMPLES
from ctcli.cli.helping import command_help, pages
from ctcli.cli.program import COMMANDS
from ctcli.options import PANELS, options_of
from ctcli.schemes.advice import FAMILIES, WITHOUT_CALIBRATION, advice_on
from ctcli.schemes.presets import PRESETS, preset
from tests.conftest import ROOT, Ctcli

_LINES = 60
WIDTHS = (60, 100, 200)


def flags_of(command: str) -> set[str]:
    options = [each for of in COMMANDS[command] for each in options_of(of) if not each.is_argument]
    words = [each.flags or f"--{each.name.replace('_', '-')}" for each in options]
    return {flag for word in words for flag in re.findall(r"--[a-z0-9-]+", word)}


def test_the_first_screen_fits_and_lists_commands_and_pages(cli: Ctcli) -> None:
    shown = cli("--help", env={"COLUMNS": "100"}).stdout
    assert len(shown.splitlines()) <= _LINES
    assert all(f"  {name} " in shown for name in (*COMMANDS, *pages()))
    assert cli("-h", env={"COLUMNS": "100"}).stdout == shown
    assert cli("help", env={"COLUMNS": "100"}).stdout == shown
    assert cli("-V").stdout == cli("--version").stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_short_help_fits_on_a_screen_and_names_every_option(cli: Ctcli, command: str) -> None:
    shown = cli(command, "-h", env={"COLUMNS": "100"}).stdout
    assert len(shown.splitlines()) <= _LINES
    assert max(map(len, shown.splitlines())) <= 100
    named = {*re.findall(r"--[a-z0-9-]+", shown)}
    positive = {"--symmetric", "--default-ignore"}  # of which the other word is told
    assert flags_of(command) - named <= positive
    assert cli(command, "--help", env={"COLUMNS": "100"}).stdout == shown


@pytest.mark.parametrize("columns", WIDTHS)
@pytest.mark.parametrize("command", COMMANDS)
def test_full_help_has_every_words_of_every_option(cli: Ctcli, command: str, columns: int) -> None:
    shown = " ".join(cli("help", command, env={"COLUMNS": str(columns)}).stdout.split())
    for of in COMMANDS[command]:
        for each in options_of(of):
            assert " ".join(each.help.split()) in shown, each.name
            assert each.is_argument or f"Default: {each.words}." in shown


@pytest.mark.parametrize("page", ["schemes", "machines"])
def test_no_cell_of_a_page_is_cut_off_and_no_word_breaks(cli: Ctcli, page: str) -> None:
    shown = cli("help", page, env={"COLUMNS": "60"}).stdout
    assert "…" not in shown
    cells = re.findall(r"\|([^|\n]+)", (ROOT / f"ctcli/guide/{page}.md").read_text())
    words = {word for cell in cells for word in re.findall(r"[\w-]+", cell) if word.strip("-")}
    assert words
    assert words <= {*re.findall(r"[\w-]+", shown)}


def test_parts_come_in_their_order() -> None:
    headings = [block.heading for block in command_help("quantize", COMMANDS["quantize"], True)]
    assert [heading for heading in headings if heading in PANELS] == [*PANELS]


def test_every_command_has_examples_of_its_own() -> None:
    assert EXAMPLES.keys() == COMMANDS.keys()
    for name, examples in EXAMPLES.items():
        assert all(shlex.split(command)[:2] == ["ctcli", name] for command, _ in examples)


def test_every_preset_is_in_one_family() -> None:
    told = [name for names, _ in FAMILIES for name in names]
    assert sorted(told) == sorted(PRESETS)
    static = {name for name in PRESETS if preset(name).needs_input_scale}
    assert static == WITHOUT_CALIBRATION.keys()
    for names, words in FAMILIES:
        assert ("--input-scales" in words) == (not static.isdisjoint(names))
    assert not any(preset(name).needs_input_scale for name in WITHOUT_CALIBRATION.values())


@pytest.mark.parametrize("name", ["w4a16", "fp8-block", "FP8 dynamic", "nvfp4-a16"])
def test_another_spelling_of_a_preset_is_recognized(name: str) -> None:
    assert re.fullmatch(r"Give [A-Z0-9_]+\.", advice_on(name))


def test_full_help_lists_the_presets_one_by_one(cli: Ctcli) -> None:
    shown = cli("help", "quantize").stdout
    assert all(re.search(rf"^  {name} +weights ", shown, re.MULTILINE) for name in PRESETS)
