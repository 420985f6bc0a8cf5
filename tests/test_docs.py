"""Help, README, the table of commands and the code say the same."""

from __future__ import annotations

import re
import tomllib
from collections import defaultdict
from pathlib import Path

import pytest
import typer.main

from ctcli import __version__
from ctcli.cli import app
from ctcli.formats.sources.reading import read_quantized
from ctcli.models.families import FAMILIES
from ctcli.models.fused import FUSED_ROLES
from ctcli.models.table import markdown
from ctcli.storage.opening import open_checkpoint
from tests.conftest import ROOT, Ctcli
from tests.helpers.sources import source_cases
from tests.rewrites.quantizing.test_perplexity import BOUNDS

README = (ROOT / "README.md").read_text()
GUIDE = {path.stem: path.read_text() for path in sorted((ROOT / "ctcli/guide").glob("*.md"))}
DOCS = "\n".join([README, *GUIDE.values()])
GROUP = typer.main.get_group(app)
CONTEXT = typer.Context(GROUP)
COMMANDS = {
    name: command
    for name in GROUP.list_commands(CONTEXT)
    if (command := GROUP.get_command(CONTEXT, name))
}
OPTIONS = [
    (name, option)
    for name, command in COMMANDS.items()
    for option in command.params
    if option.param_type_name == "option"
]
EXACT = {True: "exact", False: "rounded once"}
# Commands that write no checkpoint, and their own options.
READING: dict[str, set[str]] = {
    "inspect": {"--tensors", "--sort", "--stats"},
    "finish": set(),
    "help": set(),
    "verify": {
        *("--against", "--max-error", "--target", "--tp", "--sha256", "--presharded", "--html"),
    },
}


def docs_table(heading: str) -> list[list[str]]:
    """The cells of the table whose heading row starts so."""
    rows = DOCS[DOCS.index(f"| {heading} |") :].partition("\n\n")[0].splitlines()
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[2:]]


def test_guide_tells_what_becomes_of_every_stored_weight() -> None:
    """As the code has it of all checkpoints that other packages wrote."""
    found: dict[str, set[bool | str]] = defaultdict(set)
    rows = {row[0]: row for row in docs_table("stored as")}
    patterns = {
        name: re.compile(re.sub(r"\bN(x?N)?\b", r"[\\dx]+", name) + "(,.*)?")
        for name in sorted(rows, key=len, reverse=True)
    }
    for case in source_cases():
        source = open_checkpoint(str(case.checkpoint))
        reading = read_quantized(source, presharded={"re:.*qkv_proj": 4})
        assert reading
        for leaf in (leaf for coded in reading.coded.values() for leaf in coded.leaves):
            if reading.said.get("quant_method") == "compressed-tensors":
                continue
            name = next(n for n, pattern in patterns.items() if pattern.fullmatch(leaf.method))
            found[name] |= {leaf.is_exact, leaf.scheme.format if leaf.scheme else "refused"}
    told: dict[str, set[bool | str]] = {}
    for name, (_, _, floats, converted) in rows.items():
        told[name] = {*re.findall(r"refused|(?<=`)[a-z0-9-]+(?=`)", converted)}
        told[name] |= {is_exact for is_exact, words in EXACT.items() if words in floats}
    assert told == found


def docs_commands() -> list[str]:
    return [line.strip() for line in DOCS.splitlines() if line.startswith("    ")]


def test_version(ctcli: Ctcli) -> None:
    assert ctcli("--version").stdout == f"ctcli {__version__}\n"


def test_readme_lists_every_command_with_its_help() -> None:
    rows = docs_table("command")
    assert [cells[0].strip("`").split()[1] for cells in rows] == list(COMMANDS)
    for cells, command in zip(rows, COMMANDS.values(), strict=True):
        first_sentence = str(command.help).partition(". ")[0].partition(".\n")[0].rstrip(".")
        first_verb, _, rest = first_sentence.partition(" ")
        assert cells[1].lower() == f"{first_verb}s {rest}".lower()


@pytest.mark.parametrize("name", COMMANDS)
def test_readme_lists_every_shared_option_with_its_default(name: str) -> None:
    documented = {
        row[0].split("`")[1].split()[0]: row[2].strip("`") for row in docs_table("option")
    }
    shown = {
        option.opts[0]: str(getattr(option, "show_default", None))
        for command, option in OPTIONS
        if command == name
    }
    if name in READING:
        documented = {option: documented[option] for option in documented.keys() & shown.keys()}
        assert set(shown) - {*documented} == READING[name]
    assert documented.items() <= shown.items()


@pytest.mark.parametrize(("command", "option"), OPTIONS, ids=str)
def test_every_option_has_help_a_visible_default_and_one_word(command: str, option: object) -> None:
    assert getattr(option, "nargs", None) == 1, f"{command} {option}"
    assert getattr(option, "help", None), f"{command} {option}"
    assert isinstance(getattr(option, "show_default", None), str), f"{command} {option}"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_in_readme_exists(name: str) -> None:
    known = {opt for _, option in OPTIONS for opt in (*option.opts, *option.secondary_opts)}
    known |= {opt for option in GROUP.params for opt in option.opts} | {"--install-completion"}
    ours = [line for line in docs_commands() if line.startswith(f"ctcli {name} ")]
    mentioned = {word for line in ours for word in re.findall(r"--[a-z0-9-]+", line)}
    mentioned |= set(re.findall(r"`(--[a-z0-9-]+)", DOCS))
    of_dask = {"--nworkers", "--memory-limit"}
    assert mentioned <= known | of_dask | {"--help"}


def test_readme_is_short_and_the_guide_is_whole() -> None:
    assert sum(any(map(str.isalnum, word)) for word in README.split()) <= 900
    assert {*re.findall(r"ctcli/guide/([a-z0-9-]+)\.md", README)} == GUIDE.keys()
    for path in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / path).is_file(), path


@pytest.mark.parametrize("columns", [60, 100, 200])
@pytest.mark.parametrize("name", GUIDE)
def test_a_page_is_shown_in_the_terminal(cli: Ctcli, name: str, columns: int) -> None:
    done = cli("help", name, env={"COLUMNS": str(columns)})
    assert (done.returncode, done.stderr) == (0, "")
    code = {line.strip() for line in GUIDE[name].splitlines()}
    prose = [line for line in done.stdout.splitlines() if line.strip() not in code]
    assert max(map(len, prose)) <= min(columns, 100), "but for what is to be copied"
    title = GUIDE[name].partition("\n")[0].lstrip("# ")
    shown = re.sub(r"[^a-z0-9]", "", done.stdout.lower())
    assert re.sub(r"[^a-z0-9]", "", title.lower()) in shown


def test_pages_name_pages_that_exist() -> None:
    named = {*re.findall(r"`ctcli help ([a-z0-9-]+)`", DOCS)}
    assert named <= {*GUIDE, *COMMANDS}


def test_the_table_of_quality_is_the_same_in_readme_and_guide() -> None:
    row = re.compile(r"^\| `(\w+)` \| (\d+) % \| ([\d.]+) % \| ([-+][\d.]+) % \|$", re.MULTILINE)
    found = row.findall(README)
    assert found == row.findall(GUIDE["schemes"])
    assert len(found) >= 9
    for scheme, size, error, rise in found:
        assert abs(float(rise)) <= 100 * BOUNDS[scheme], scheme
        assert 20 < float(size) < 60
        assert 0 < float(error) < 30


def test_the_tables_of_models_are_those_of_the_records() -> None:
    assert markdown() in GUIDE["models"], "what `markdown` returns is to stand there"
    assert f"| {len(FAMILIES)} model types, where exact" in README


def test_readme_names_the_fused_sets_of_the_table() -> None:
    expected = [
        [
            " ".join(f"`{member}`" for member in roles.members),
            ", ".join(f"`{parent}`" for parent in roles.parents) or "any module",
        ]
        for roles in FUSED_ROLES
    ]
    assert docs_table("set") == expected


def test_ci_runs_the_test_command_of_the_readme() -> None:
    (command,) = [line for line in docs_commands() if line.endswith("&& pytest")]
    assert command in (ROOT / ".ci" / "run").read_text().splitlines()


def test_the_nox_sessions_of_the_readme_exist() -> None:
    sessions = set(
        re.findall(r"^def (\w+)\(session", (ROOT / "noxfile.py").read_text(), re.MULTILINE)
    )
    mentioned = {
        word
        for line in docs_commands()
        if line.startswith("nox -s")
        for word in line.partition("#")[0].split()[2:]
    }
    assert mentioned == sessions


def test_declared_dependencies_are_the_seven_that_the_program_may_use() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {re.split("[><=]", requirement)[0] for requirement in project["dependencies"]}
    allowed = {"huggingface_hub", "numba", "numpy", "rich", "safetensors", "torch", "typer"}
    assert names == allowed


@pytest.mark.parametrize(
    ("shell", "typed", "offered"),
    [
        ("bash", "ctcli rein", "reindex"),
        ("zsh", "ctcli quantize a b --scheme nvf", "nvfp4a16"),
        ("fish", "ctcli quantize a b --scheme .*q_proj=NVF", ".*q_proj=NVFP4A16"),
    ],
)
def test_shell_completion(
    ctcli: Ctcli, shell: str, typed: str, offered: str, tmp_path: Path
) -> None:
    env = {
        "_CTCLI_COMPLETE": f"complete_{shell}",
        "COMP_WORDS": typed,
        "COMP_CWORD": "1",
        "_TYPER_COMPLETE_ARGS": typed,
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
        "HOME": str(tmp_path),
    }
    assert offered in ctcli(env=env).stdout
