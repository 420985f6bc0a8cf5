"""The server: from a request to the endpoint that answers it."""

from __future__ import annotations

import re
import sys
from http.server import ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.helpers.hub.errors import HubError
from tests.helpers.hub.faults import Fault, Request
from tests.helpers.hub.reading import Reading
from tests.helpers.hub.repository import BLOCK
from tests.helpers.hub.writing import Writing
from tests.helpers.hub.xet import Xet

if TYPE_CHECKING:
    from tests.helpers.hub.running import Hub

_REPO = r"(?P<repo_id>[^/]+(?:/[^/]+)??)"
_REV = r"(?P<rev>[^/]+)"
_BRANCH = r"(?P<branch>[^/]+)"
_OID = "(?P<oid>[0-9a-f]{64})"
ROUTES = [
    (methods.split(), re.compile(pattern), answer)
    for methods, pattern, answer in (
        ("GET", "/api/whoami-v2", "whoami"),
        ("POST", "/api/repos/create", "create_repo"),
        ("POST", "/api/jobs/(?P<namespace>[^/]+)", "run_job"),
        ("POST", "/api/validate-yaml", "validate_yaml"),
        ("GET", f"/api/models/{_REPO}(?:/revision/{_REV})?", "model"),
        ("GET", f"/api/models/{_REPO}/tree/{_REV}(?:/(?P<path>.+))?", "tree"),
        ("POST", f"/api/models/{_REPO}/paths-info/{_REV}", "paths_info"),
        ("GET", f"/api/models/{_REPO}/refs", "refs"),
        ("GET", f"/api/models/{_REPO}/commits/{_REV}", "commits"),
        ("POST", f"/api/models/{_REPO}/branch/{_BRANCH}", "create_branch"),
        ("DELETE", f"/api/models/{_REPO}/branch/{_BRANCH}", "delete_branch"),
        ("POST", f"/api/models/{_REPO}/preupload/{_REV}", "preupload"),
        ("POST", f"/api/models/{_REPO}/commit/{_REV}", "commit"),
        ("POST", f"/{_REPO}.git/info/lfs/objects/batch", "lfs_batch"),
        ("POST", f"/{_REPO}.git/info/lfs/verify", "verify"),
        ("PUT", f"/storage/{_REPO}/{_OID}(?:/(?P<part>[0-9]+))?", "put"),
        ("POST", f"/storage/{_REPO}/{_OID}", "complete"),
        ("GET HEAD", "/cdn/(?P<sha256>[0-9a-f]{64})/.+", "cdn"),
        ("GET", f"/api/models/{_REPO}/xet-(?P<kind>read|write)-token/{_REV}", "xet_token"),
        ("GET", "/cas/v1/reconstructions/(?P<file>[0-9a-f]{64})", "reconstruction"),
        ("GET", "/xorbs/(?P<file>[0-9a-f]{64})", "xorb"),
        ("POST", "/cas/v1/xorbs/default/(?P<xorb>[0-9a-f]{64})", "put_xorb"),
        ("POST", "/cas/v1/shards", "put_shard"),
        ("GET HEAD", f"/{_REPO}/resolve/{_REV}/(?P<path>.+)", "resolve"),
    )
]


def _pauses(fault: Fault) -> dict[str, object]:
    """The headers by which a hub asks for a pause."""
    asked: dict[str, object] = {}
    if fault.retry_after is not None:
        asked["Retry_After"] = fault.retry_after
    if fault.reset_after is not None:
        asked["RateLimit"] = f'"api";r=0;t={fault.reset_after}'
    return asked


class Server(ThreadingHTTPServer):
    """Listens on a port of its own choice."""

    request_queue_size = 64

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        super().__init__(("127.0.0.1", 0), Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Report bugs, but not clients that hang up: tests kill them on purpose."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class Handler(Reading, Writing, Xet):
    """Answers requests."""

    server: Server

    def do_GET(self) -> None:  # noqa: N802 (the base's name)
        """Answer."""
        self._answer()

    def do_POST(self) -> None:  # noqa: N802 (the base's name)
        """Read the body in any case: what is left would be taken for the next request."""
        self._answer(self.rfile.read(int(self.headers.get("Content-Length", 0))))

    do_HEAD = do_PUT = do_GET  # noqa: N815 (the base's names)
    do_DELETE = do_POST  # noqa: N815 (the base's name)

    def _answer(self, body: bytes = b"") -> None:
        self.hub = self.server.hub
        self.body = body
        url = urlsplit(self.path)
        self.name, self.query = unquote(url.path), parse_qs(url.query)
        byte_range, authorized = self.headers.get("Range"), "Authorization" in self.headers
        with self.hub.answering():
            self.hub.record(Request(self.command, self.name, byte_range, authorized))
            try:
                self._route(url.path)
            except HubError as error:
                self.send({"error": str(error)}, error.status, error.headers)

    def _route(self, raw_path: str) -> None:
        fault = self.hub.take_fault(self.command, self.name)
        self.loses_answer = fault is not None and fault.lose_answer
        self.ignores_range = fault is not None and fault.ignores_range
        self.other_headers = (fault and fault.headers) or {}
        if fault and fault.page is not None:
            if self.command == "PUT":
                self._drain()
            typed = {"Content-Type": "text/html", "Content-Length": len(fault.page)}
            self.send_head(fault.status or 200, typed)
            self.wfile.write(fault.page if self.command != "HEAD" else b"")
            return
        if fault and fault.status:
            if self.command == "PUT":
                self._drain()
            raise HubError(fault.status, "", fault.body, **_pauses(fault))
        # Matched before decoding, as a slash in a branch's name comes as %2F.
        for methods, pattern, answer in ROUTES:
            if self.command in methods and (match := pattern.fullmatch(raw_path)):
                names = {key: unquote(value or "") for key, value in match.groupdict().items()}
                getattr(self, answer)(**names)
                return
        raise HubError(404, "", "No such page")

    def _drain(self) -> None:
        left = int(self.headers.get("Content-Length", 0))
        while left and (block := self.rfile.read(min(BLOCK, left))):
            left -= len(block)
