"""Commands to copy, with what they do: beside them as in a shell script, or above them."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Sequence

_COMMENT = re.compile(r"(?P<command>\S.*?)(?: {2,}# (?P<text>.+))?")


def fitted(commands: Sequence[tuple[str, str]], width: int) -> list[str]:
    """Lines that show commands and their comments in so many columns.

    Args:
        commands: each with what it does; empty: nothing is said of it.
        width: columns. Where the comments do not fit beside the commands, they come above them, and
            a command that is too long goes on behind a backslash.
    """
    longest = max((len(command) for command, _ in commands), default=0)
    beside = [f"{command:<{longest}}  # {text}" if text else command for command, text in commands]
    if max(map(len, beside), default=0) <= width:
        return beside
    return [line for command, text in commands for line in _above(command, text, width)]


def _above(command: str, text: str, width: int) -> Iterator[str]:
    if text:
        yield from textwrap.wrap(
            text, width, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False
        )
    # Between words alone: quoted ones of these commands hold no spaces.
    *pieces, last = textwrap.wrap(
        command,
        width - 2,
        subsequent_indent="    ",
        break_long_words=False,
        break_on_hyphens=False,
    )
    yield from (f"{piece} \\" for piece in pieces)
    yield last


def refitted(page: str, width: int) -> str:
    """A page in Markdown whose indented commands fit in so many columns."""
    made: list[str] = []
    block: list[str] = []
    is_fenced = False
    for line in [*page.split("\n"), ""]:
        is_fenced ^= line.startswith("```")
        if line.startswith("    ctcli ") and not is_fenced:
            block.append(line[4:])
            continue
        made += [f"    {each}" for each in fitted([*map(_parsed, block)], width)]
        block = []
        made.append(line)
    return "\n".join(made[:-1])


def _parsed(line: str) -> tuple[str, str]:
    found = _COMMENT.fullmatch(line)
    assert found, "it is a command"
    return found["command"], found["text"] or ""
