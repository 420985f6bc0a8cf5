"""Help: of the program, of a command in short and in full, and the pages of the guide."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING
from pathlib import Path

from ctcli import __version__
from ctcli.cli.examples import EXAMPLES, FIRST_STEPS
from ctcli.cli.options import Shared
from ctcli.cli.signatures import help_of
from ctcli.console.pages import Block
from ctcli.options import PANELS, Option, options_of
from ctcli.schemes import words
from ctcli.schemes.advice import FAMILIES
from ctcli.schemes.presets import PRESETS, preset

PURPOSE = "rewrite large safetensors checkpoints by streaming them."
PAGES = Path(__file__).parent.parent / "guide"
_LONGEST_CHOICES = 20  # characters of a metavar that lists them
_LONGEST_TEXT = 66  # characters of what short help says of an option, where they can be cut
_SHORTEST_TEXT = 14  # and of what is left of it
_COMPACT = ("Hub", "Machine", "Messages")  # the parts that short help only names


def pages() -> dict[str, str]:
    """The titles of the pages, by name."""
    found = {}
    for path in sorted(PAGES.glob("*.md")):
        title, _, _ = path.read_text(encoding="utf-8").partition("\n")
        found[path.stem] = title.partition(": ")[2] or title.lstrip("# ")
    return found


def program_help(commands: Mapping[str, tuple[type, ...]]) -> list[Block]:
    """What `ctcli --help` says.

    Args:
        commands: the classes of options of each.
    """
    return [
        Block("", [(f"ctcli {__version__}: {PURPOSE}", "")]),
        Block("Usage: ctcli COMMAND [OPTIONS] ...", []),
        Block("Commands", [(name, summary_of(of[0])) for name, of in commands.items()]),
        Block("First steps", FIRST_STEPS, are_commands=True),
        Block("Pages: ctcli help PAGE", [*pages().items()]),
        Block(
            "Options",
            [
                ("-h, --help", "Show this, or behind a command, its help."),
                ("-V, --version", "Print the version and exit."),
                ("--install-completion", "Set up completion in your shell."),
            ],
        ),
    ]


def command_help(name: str, classes: Sequence[type], in_full: bool = False) -> list[Block]:
    """What `ctcli NAME --help` says, or `ctcli help NAME` in full."""
    summary, *rest = help_of(classes[0]).split("\n\n")
    options = [option for each in classes for option in options_of(each)]
    arguments = [option for option in options if option.is_argument]
    places = sorted(arguments, key=lambda each: each.default is not MISSING)
    usage = [each.metavar or "" for each in places if each.default is MISSING]
    usage += [f"[{each.metavar}]" for each in places if each.default is not MISSING]
    blocks = [Block("", [(text, "") for text in (summary, *(rest if in_full else []))])]
    lines = [(each.metavar or each.name, each.help) for each in places]
    blocks.append(Block(f"Usage: ctcli {name} [OPTIONS] {' '.join(usage)}", lines))
    if name in EXAMPLES:
        blocks.append(Block("Examples", EXAMPLES[name], are_commands=True))
    shared = {each.name for each in options_of(Shared)}
    compact = []
    for panel in PANELS:
        found = [each for each in options if each.panel == panel and not each.is_argument]
        if in_full:
            told = found
        else:
            told = [e for e in found if e.name not in shared and panel not in _COMPACT]
        if told:
            blocks.append(Block(panel, [*_options(told, in_full)]))
        if rest_of := [each for each in found if each not in told]:
            compact.append(
                (
                    panel,
                    " ".join(
                        _term(each).split()[-1] if each.kind is bool else _term(each)
                        for each in rest_of
                    ),
                )
            )
    if compact:
        blocks.append(Block(f"Also: `ctcli help {name}` explains them", compact))
    if any(each.name in ("scheme", "requantize") for each in options):
        blocks.append(_presets(in_full))
    return blocks


def summary_of(options: type) -> str:
    """The first sentence of a command's help."""
    return _sentence(help_of(options).partition("\n\n")[0])


def _options(options: Sequence[Option], in_full: bool) -> Iterator[tuple[str, str]]:
    for each in sorted(options, key=lambda each: each.is_common):
        text = each.help
        if in_full and _lists_choices(each):
            text = f"{text} One of {', '.join(each.choices)}."
        yield _term(each), f"{text} Default: {each.words}." if in_full else _shortened(text)


def _shortened(text: str) -> str:
    """The first sentence, or the clause that it begins with where it does not fit on a line."""
    sentence = _sentence(text)
    if len(sentence) <= _LONGEST_TEXT:
        return sentence
    ends = [found.start() for found in re.finditer(r"[,:;] | \(", sentence)]
    return sentence[: next((end for end in ends if end >= _SHORTEST_TEXT), len(sentence))]


def _term(option: Option) -> str:
    """How an option is given: `--group-size N`."""
    flags = (option.flags or f"--{option.name.replace('_', '-')}").replace("/", ", ").split()
    flags.sort(key=len)  # -q, --quiet
    if "/" in option.flags:
        flags = [option.flags.partition("/")[2] if option.default is True else option.flags]
    value = "CHOICE" if _lists_choices(option) else option.metavar
    takes = f" {value}" if value and option.kind is not bool else ""
    return ", ".join(flags) + takes


def _lists_choices(option: Option) -> bool:
    """Whether an option's choices are too many for its metavar."""
    return option.metavar == "|".join(option.choices) and len(option.metavar) > _LONGEST_CHOICES


def _sentence(text: str) -> str:
    return re.split(r"(?<=[.?])\s+(?=[A-Z])", text, maxsplit=1)[0].rstrip(".")


def _presets(in_full: bool) -> Block:
    if in_full:
        return Block("Presets", [(name, _preset(name)) for name in PRESETS])
    return Block("Presets", [(_names(names), text) for names, text in FAMILIES])


def _names(names: Sequence[str]) -> str:
    shown = " ".join(names[:3])
    return shown if len(names) <= 3 else f"{' '.join(names[:2])} ..."


def _preset(name: str) -> str:
    scheme = preset(name)
    inputs = scheme.input_activations
    text = f"weights {words(scheme.weights)}"
    text += f"; activations {words(inputs)}" if inputs else "; activations 16 bit"
    return text + ("; needs --input-scales" if scheme.needs_input_scale else "")
