"""What passes between the hub client and a hub: no token to others, no paths from it.

The client names files of its cache by the ETag and the commit that a hub tells it, and sends its
token along to any port of a hub's host. Both is looked at here, before the client does so.
"""

from __future__ import annotations

import re
from functools import cache
from urllib.parse import urlsplit

import httpx
import huggingface_hub
from huggingface_hub import constants

# The public `set_client_factory` replaces it; what it does for every request is to stay.
from huggingface_hub.utils._http import default_client_factory

from ctcli.errors import CtcliError

DISTRUST = "Do not trust this hub. Check HF_ENDPOINT, and whether a proxy answers in its place."
_NAMES_A_FILE = ("ETag", "X-Linked-ETag", "X-Repo-Commit")
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.=+~:-]{0,199}")
_PORTS = {"http": 80, "https": 443}

WebOrigin = tuple[str, str, int | None]


@cache
def guard_client() -> None:
    """Have every request and every answer of the client looked at from now on."""
    huggingface_hub.set_client_factory(_make_client)


def check_names(headers: httpx.Headers, host: str) -> None:
    """Refuse an answer whose headers would lead the client's cache elsewhere.

    Raises:
        CtcliError: one is not the plain name that it should be.
    """
    for header in _NAMES_A_FILE:
        value = headers.get(header)
        if value is not None and not is_plain(value.removeprefix("W/").strip('"')):
            raise CtcliError(
                f"{host}: the hub's {header} is not a plain name: {value!r}.", DISTRUST
            )


def is_plain(name: str) -> bool:
    """Whether a commit or a hash, as a hub tells it, can be the name of a file or folder."""
    return _PLAIN.fullmatch(name) is not None


def may_have_token(url: str) -> bool:
    """Whether a token may be sent there: to the hub itself, at its own port."""
    scheme, host, port = _origin(url)
    if (scheme, host, port) == _origin(constants.ENDPOINT):
        return True
    return (scheme, port) == ("https", 443) and host in constants.HF_URL_HOSTS


def _make_client() -> httpx.Client:
    client = default_client_factory()
    hooks = client.event_hooks
    client.event_hooks = {
        "request": [*hooks["request"], _withhold_token],
        "response": [*hooks["response"], _check_answer],
    }
    return client


def _check_answer(answer: httpx.Response) -> None:
    check_names(answer.headers, answer.request.url.host)


def _withhold_token(request: httpx.Request) -> None:
    if not may_have_token(str(request.url)):
        request.headers.pop("Authorization", None)


def _origin(url: str) -> WebOrigin:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname or "", parts.port or _PORTS.get(parts.scheme)
