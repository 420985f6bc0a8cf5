"""Trying again what a hub did not do, where another try may help.

The client retries some requests by itself (range reads through its backoff, bytes of uploads,
parts of downloads) and others not at all (listings, branches, commits). What is called here
through `retrying` gets the same patience everywhere, with jitter, so that many jobs that a hub
turned away do not come back together.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

import httpx
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from huggingface_hub.utils import parse_ratelimit_headers

from ctcli.storage.hub.xet import is_of_xet, may_pass
from ctcli.units import Advance

TRIES = 6
FEW_TRIES = 3  # at the start of a run: a wrong address is more likely than a long trouble
FIRST_DELAY = 1.0  # seconds; doubles with each failure in a row
_LONGEST_DELAY = 30.0
_LONGEST_REQUEST = 600.0  # a server that wants a longer pause gets this one
_STEP = 0.1  # seconds after which a pause looks whether the work is to end
_STATUSES = {408, 425, 429, 500, 502, 503, 504}

_Result = TypeVar("_Result")


class ShortReadError(Exception):
    """A server ended its answer before all bytes were sent."""


def ignore(nbytes: int) -> None:
    """An `Advance` that nobody looks at."""


def cause_of(error: BaseException) -> BaseException:
    """The failed request behind the errors that the client makes of it."""
    wraps = type(error) is RuntimeError or isinstance(error, LocalEntryNotFoundError)
    return error.__cause__ if wraps and isinstance(error.__cause__, httpx.HTTPError) else error


def is_passing(error: BaseException) -> bool:
    """Whether another try may do better."""
    cause = cause_of(error)
    if isinstance(cause, HfHubHTTPError):
        # Of an upload, storage's own errors count too: the next try gets a new place to put it.
        is_upload = type(error) is RuntimeError
        return is_upload or cause.response.status_code in _STATUSES
    if is_of_xet(cause):
        return may_pass(cause)
    passing = (
        httpx.TimeoutException,
        httpx.NetworkError,
        httpx.RemoteProtocolError,
        ShortReadError,
    )
    return isinstance(cause, passing)


def _delay(error: BaseException, failures: int) -> float:
    """Seconds to wait: what the server asks for, else twice as long as the last time."""
    jitter = random.uniform(0.5, 1)
    cause = cause_of(error)
    if isinstance(cause, HfHubHTTPError):
        asked = str(cause.response.headers.get("Retry-After", ""))
        if asked.isdigit():
            return min(float(asked), _LONGEST_REQUEST) + FIRST_DELAY * jitter
        limit = parse_ratelimit_headers(cause.response.headers)
        if limit and not limit.remaining:
            return min(limit.reset_in_seconds, _LONGEST_REQUEST) + FIRST_DELAY * jitter
    return min(FIRST_DELAY * 2.0 ** (failures - 1), _LONGEST_DELAY) * jitter


class Retries:
    """Failures in a row of one piece of work.

    Args:
        advance: called with 0 during pauses; may raise to end the work.
        tries: how often the work is tried at most without any progress.
        passing: whether another try may do better after an error.
    """

    def __init__(
        self,
        advance: Advance = ignore,
        tries: int = TRIES,
        passing: Callable[[BaseException], bool] = is_passing,
    ) -> None:
        self._advance = advance
        self._tries = tries
        self._passing = passing
        self._failures = 0

    def progress(self) -> None:
        """Something was done: patience begins anew."""
        self._failures = 0

    def pause(self, error: Exception) -> None:
        """Wait before the next try.

        Raises:
            Exception: `error`, if there is to be no other try.
        """
        self._failures += 1
        if self._failures >= self._tries or not self._passing(error):
            raise error
        end = time.monotonic() + _delay(error, self._failures)
        while (left := end - time.monotonic()) > 0:
            self._advance(0)
            time.sleep(min(left, _STEP))


def retrying(attempt: Callable[[], _Result], retries: Retries) -> _Result:
    """The result of `attempt`, called again after errors that may pass.

    Raises:
        Exception: what the last `attempt` raised.
    """
    while True:
        try:
            return attempt()
        except Exception as error:
            retries.pause(error)
