"""What was asked of the hub, and what it is told to do wrong."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from threading import Event


@dataclass(frozen=True)
class Request:
    """What one request asked for; ``path`` is decoded and without its query."""

    method: str
    path: str
    range: str | None
    authorized: bool  # an Authorization header was there, good or bad


@dataclass
class Fault:
    """Something that goes wrong with the first ``times`` requests that it applies to.

    With ``status``, the request is answered by this error, without a look at what it asks for.
    With ``lose_answer``, it is done, but its answer never arrives; with ``ignores_range``, it is
    answered by the whole file; with ``page`` or ``headers``, by something else. The other effects
    touch the bytes of a file on its way, down or up, and may be combined; a request whose range is
    too short for the fault to show in is served well and does not count.
    """

    path_suffix: str
    times: int = 1
    path_prefix: str = "/"  # "/cdn/" for large files' bytes down, "/storage/" for theirs up
    method: str | None = None
    status: int | None = None
    retry_after: int | None = None  # seconds, sent along with status
    reset_after: int | None = None  # likewise, in the header of a spent rate limit
    body: str = "This fault was asked for"  # what the answer with status says
    page: bytes | None = None  # the whole answer, with status or 200: of something that is no hub
    headers: Mapping[str, str] | None = None  # in place of the good answer's
    lose_answer: bool = False
    ignores_range: bool = False
    after_bytes: int | None = None  # drop the connection after so much of the body
    flip_at: int | None = None  # pass on this byte, counted from the file's start, inverted
    rate: int | None = None  # bytes per second
    hold: Event | None = None  # wait for this after `held_at` bytes of the body
    held_at: int = 0

    @property
    def touches_bytes(self) -> bool:
        """Whether it is about a file's bytes, rather than the whole request."""
        is_of_all = self.page is not None or self.headers is not None
        return self.status is None and not (self.lose_answer or self.ignores_range or is_of_all)

    def applies(self, method: str, path: str, span: range | None) -> bool:
        """Whether to hit this request; ``span`` is the part of a file about to pass, if any."""
        if self.times < 1 or self.method not in (None, method):
            return False
        if not (path.startswith(self.path_prefix) and path.endswith(self.path_suffix)):
            return False
        if span is None or not self.touches_bytes:
            return span is None and not self.touches_bytes
        breaks = self.after_bytes is None or self.after_bytes < len(span)
        holds = self.hold is None or self.held_at < len(span)
        return breaks and holds and (self.flip_at is None or self.flip_at in span)
