"""Regular expressions that a checkpoint brings along, matched without any way to hang.

Python's engine tries one way after another, and some expressions have it try exponentially many.
Its parser is used here, and the engine where what it may have to try is little; else the states
that all ways lead to are followed at once, one character after the other (K. Thompson, "Regular
expression search algorithm", 1968), and remembered (https://swtch.com/~rsc/regexp/regexp1.html).
What that cannot follow, references and looking around, is refused where it may take long.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

_LONGEST = 2_000  # characters of an expression
_MOST_STATES = 2_000
_MOST_REMEMBERED = 20_000  # steps
_FEW_TRIES = 20_000
_MOST_LOOKING_AROUND = 2  # unbounded repeats, where looking around forbids to follow all ways
_FOREVER = 100  # of unbounded repeats inside one another: more than any number of them in a row

Test = Callable[[str], bool]
Parsed = tuple[Any, Any]  # operator and arguments, as Python's parser has them

_CATEGORIES: dict[str, Test] = {
    "CATEGORY_DIGIT": str.isdecimal,
    "CATEGORY_NOT_DIGIT": lambda char: not char.isdecimal(),
    "CATEGORY_SPACE": str.isspace,
    "CATEGORY_NOT_SPACE": lambda char: not char.isspace(),
    "CATEGORY_WORD": lambda char: char.isalnum() or char == "_",
    "CATEGORY_NOT_WORD": lambda char: not (char.isalnum() or char == "_"),
}


@lru_cache(4096)
def expression(text: str) -> Expression:
    """An expression.

    Raises:
        re.error: it is none, or might take too long to match.
    """
    if len(text) > _LONGEST:
        raise re.error(f"it is longer than {_LONGEST} characters")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Python's, on what may mean something else one day
            compiled = re.compile(text)
            parsed = re._parser.parse(text)  # type: ignore[attr-defined]
        degree, factor = _tries(parsed)
    except (RecursionError, OverflowError) as error:
        raise re.error("it is nested too deeply, or counts too far") from error
    try:
        if compiled.flags != re.UNICODE:
            raise _NotFollowedError
        program = _Program()
        program.start = program.add(parsed, _ACCEPT)
    except _NotFollowedError:
        if degree > _MOST_LOOKING_AROUND or factor > _FEW_TRIES:
            raise re.error(
                "with references, flags or looking around, it may take for ever"
            ) from None
        return Expression(compiled, 0, 0, None)
    return Expression(compiled, degree, factor, program)


class _NotFollowedError(Exception):
    """An operator that states cannot stand for."""


def _tries(sequence: Iterable[Parsed]) -> tuple[int, int]:
    """An upper bound for the ways that Python's engine tries: `factor * length**degree`."""
    degree, factor = 0, 1
    for operator, argument in sequence:
        more = _tries_of(str(operator), argument)
        degree, factor = min(degree + more[0], _FOREVER), min(factor * more[1], 10**9)
    return degree, factor


def _tries_of(operator: str, argument: Any) -> tuple[int, int]:
    if operator.endswith("REPEAT"):
        return _tries_of_repeat(*argument)
    if operator == "BRANCH":
        every = [_tries(each) for each in argument[1]]
        return max(degree for degree, _ in every), sum(factor for _, factor in every)
    bodies = {"SUBPATTERN": -1, "ASSERT": 1, "ASSERT_NOT": 1}
    if operator in bodies:
        return _tries(argument[bodies[operator]])
    if operator == "ATOMIC_GROUP":
        return _tries(argument)
    return (1, 1) if operator.startswith("GROUPREF") else (0, 1)


def _tries_of_repeat(least: int, most: Any, body: Iterable[Parsed]) -> tuple[int, int]:
    degree, factor = _tries(body)
    if most == 1:
        return degree, factor + 1
    if (degree, factor) != (0, 1):
        return _FOREVER, 1
    return (1, 1) if str(most) == "MAXREPEAT" else (0, most - least + 1)


@dataclass
class _State:
    """A point of an expression.

    Attributes:
        test: which character leads on; None: it leads on by itself.
        at: what has to hold of the position for that, if anything.
        then: where it leads.
    """

    test: Test | None = None
    at: str = ""
    then: Sequence[int] = ()


_ACCEPT = 0


@dataclass
class _Program:
    """The states of an expression; the first one is its end."""

    states: list[_State] = field(default_factory=lambda: [_State()])
    start: int = _ACCEPT

    def add(self, sequence: Iterable[Parsed], then: int) -> int:
        """Add states for a sequence that leads to `then`; returns the first of them."""
        for operator, argument in reversed([*sequence]):
            then = self._add(str(operator), argument, then)
        return then

    def _add(self, operator: str, argument: Any, then: int) -> int:
        if operator == "SUBPATTERN":
            _, added, removed, body = argument
            if added or removed:
                raise _NotFollowedError
            return self.add(body, then)
        if operator == "BRANCH":
            return self._new(_State(then=[self.add(each, then) for each in argument[1]]))
        if operator in ("MAX_REPEAT", "MIN_REPEAT"):
            least, most, body = argument
            return self._repeat(least, most, body, then)
        if operator == "AT":
            return self._new(_State(at=str(argument), then=[then]))
        return self._new(_State(_test(operator, argument), then=[then]))

    def _repeat(self, least: int, most: Any, body: Sequence[Parsed], then: int) -> int:
        if str(most) == "MAXREPEAT":
            loop = self._new(_State())
            self.states[loop].then = [self.add(body, loop), then]
            then = loop
        else:
            end = then
            for _ in range(most - least):
                then = self._new(_State(then=[self.add(body, then), end]))
        for _ in range(least):
            then = self.add(body, then)
        return then

    def _new(self, state: _State) -> int:
        if len(self.states) >= _MOST_STATES:
            raise re.error("it counts too far")
        self.states.append(state)
        return len(self.states) - 1


def _test(operator: str, argument: Any) -> Test:
    """Which characters an operator of one character takes."""
    if operator == "LITERAL":
        return lambda char: ord(char) == argument
    if operator == "NOT_LITERAL":
        return lambda char: ord(char) != argument
    if operator == "ANY":
        return lambda char: char != "\n"
    if operator == "CATEGORY":
        return _CATEGORIES[str(argument)]
    if operator == "RANGE":
        return lambda char: argument[0] <= ord(char) <= argument[1]
    if operator != "IN":
        raise _NotFollowedError
    items = [(str(name), value) for name, value in argument]
    tests = [_test(name, value) for name, value in items if name != "NEGATE"]
    negated = items[0][0] == "NEGATE"
    return lambda char: any(test(char) for test in tests) != negated


@dataclass
class Expression:
    """An expression that can be matched.

    Attributes:
        compiled: for Python's engine.
        degree: with `factor`, what that has to try at most.
        factor: see there.
        program: its states; None: Python's engine has to do.
    """

    compiled: re.Pattern[str]
    degree: int
    factor: int
    program: _Program | None
    _steps: dict[tuple[frozenset[int], str, str], frozenset[int] | None] = field(
        default_factory=dict
    )

    def matches(self, text: str) -> bool:
        """Whether it matches at the start of a text, as `re.match` does."""
        if self.program is None or self.factor * (len(text) + 1) ** self.degree <= _FEW_TRIES:
            return self.compiled.match(text) is not None
        # A newline at the very end is one that `$` matches before.
        characters = [*text.removesuffix("\n"), *(["\n$"] if text.endswith("\n") else [])]
        states, before = frozenset([self.program.start]), ""
        for after in characters:
            following = self._step(states, before, after)
            if not following:
                return following is None
            states, before = following, after
        return _ACCEPT in self._closed(states, before, "")

    def _step(self, states: frozenset[int], before: str, after: str) -> frozenset[int] | None:
        """Where a character leads; None: the expression has matched before it."""
        key = states, before, after
        if key not in self._steps:
            if len(self._steps) >= _MOST_REMEMBERED:
                self._steps.clear()
            self._steps[key] = self._find(states, before, after)
        return self._steps[key]

    def _find(self, states: frozenset[int], before: str, after: str) -> frozenset[int] | None:
        assert self.program is not None
        closed = self._closed(states, before, after)
        if _ACCEPT in closed:
            return None
        every = [self.program.states[each] for each in closed]
        return frozenset(s.then[0] for s in every if s.test is not None and s.test(after[0]))

    def _closed(self, states: Iterable[int], before: str, after: str) -> set[int]:
        """The states, and those that they lead to by themselves."""
        assert self.program is not None
        found, todo = set[int](), [*states]
        while todo:
            each = todo.pop()
            if each in found:
                continue
            found.add(each)
            state = self.program.states[each]
            if state.test is None and (not state.at or _holds(state.at, before, after)):
                todo += state.then
        return found


def _holds(at: str, before: str, after: str) -> bool:
    """Whether a position between two characters is one; no character stands before the first."""
    if at in ("AT_BEGINNING", "AT_BEGINNING_STRING"):
        return before == ""
    if at == "AT_END_STRING":
        return after == ""
    if at == "AT_END":
        return after in ("", "\n$")
    is_word = _CATEGORIES["CATEGORY_WORD"]
    differ = bool(before and is_word(before[0])) != bool(after and is_word(after[0]))
    return differ == (at == "AT_BOUNDARY")
