"""Changes of an input: of its bytes, and of the JSON or TOML that it holds."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from typing import Any

# Values that a reader may not reckon with.
ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, 2**70, -(2**63), 10**40, 1.5, -0.5, 1e308),
    *(float("inf"), float("nan"), "", "x", "a.b", "\ud800", "\udfff\n", "\x1b[2J", "9" * 5000),
    *("re:(a+)+$", "re:(", "re:.*", "Linear", "../x", "/etc/passwd", "a\0b", "n" * 3000),
    *([], {}, [[]], [None], [1, 2], ["x", 7], [{}], {"x": 1}, {"x": [None]}, {"": ""}, [[1], [2]]),
)
_TOKENS = (
    *(b"{", b"}", b"[", b"]", b'"', b":", b",", b"\\u0000", b"\\ud800", b"null", b"true", b"-"),
    *(b"1e999", b"9" * 400, b"9" * 5000, b"\xff", b"\xef\xbb\xbf", b"\0", b"\n", b"[" * 3000),
    *(b"=", b"[[steps]]\n", b"use = ", b".a" * 600, b"''", b"NaN", b"-Infinity", b"\x1b"),
)


def mutate(content: bytes, generator: random.Random) -> bytes:
    """A changed input, by one of several ways, once or more often."""
    for _ in range(generator.choice((1, 1, 1, 2, 4))):
        if generator.random() < 0.7 and (changed := _mutate_json(content, generator)) is not None:
            content = changed
        else:
            content = _mutate_bytes(content, generator)
    return content[: 1 << 18]


def _mutate_json(content: bytes, generator: random.Random) -> bytes | None:
    """The same JSON with something else at one place; None if it is no JSON."""
    start = content[:8] if content[8:9] == b"{" else b""  # a header has its length before it
    try:
        value = json.loads(content[len(start) :])
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, (dict, list)) or not value:
        return None
    places = [*_places(value)]
    holder, key = generator.choice(places)
    way = generator.random()
    if way < 0.6:
        holder[key] = copy.deepcopy(generator.choice(ODD))
    elif way < 0.75:
        other, place = generator.choice(places)
        holder[key] = copy.deepcopy(other[place])
    elif way < 0.9 or isinstance(holder, list):
        del holder[key]
    else:
        name = generator.choice([odd for odd in ODD if isinstance(odd, str)])
        holder[name] = holder.pop(key)
    try:
        text = json.dumps(value).encode()
    except (ValueError, RecursionError):
        return None
    return (len(text).to_bytes(8, "little") if start else b"") + text


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    for key, part in [*(value.items() if isinstance(value, dict) else enumerate(value))]:
        yield value, key
        if isinstance(part, (dict, list)):
            yield from _places(part)


def _mutate_bytes(content: bytes, generator: random.Random) -> bytes:
    at = generator.randrange(len(content) + 1)
    length = generator.choice((1, 1, 2, 4, 16, 64))
    way = generator.randrange(5)
    if way == 0:
        return content[:at] + generator.choice(_TOKENS) + content[at:]
    if way == 1:
        return content[:at] + content[at + length :]
    if way == 2:
        return content[:at] + generator.randbytes(length) + content[at + length :]
    if way == 3:
        source = generator.randrange(len(content) + 1)
        return content[:at] + content[source : source + length] + content[at:]
    return content[:at]
