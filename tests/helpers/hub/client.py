"""The real client in this process, led to the hub of the tests."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub import constants
from huggingface_hub.utils._xet import XetSessionHolder

from tests.helpers.hub.running import Hub
from tests.helpers.processes import HANG_SECONDS

# The client hands files to httpx under a name that httpx gave up.
DEPRECATED = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

# What the client's Rust part waits for.
_HURRY = {"HF_XET_CLIENT_RETRY_MAX_ATTEMPTS": "1", "HF_XET_CLIENT_RETRY_BASE_DELAY": "1ms"}


def lead(monkeypatch: pytest.MonkeyPatch, hub: Hub, home: Path, token: str | None) -> None:
    """Lead the client of this process to the hub, until the test ends.

    It has read its environment already, so its constants are changed. Between tries, it sleeps a
    hundredth of the time that it means to, and ctcli waits for milliseconds.
    """
    for name, value in hub.env(home, token).items():
        monkeypatch.setenv(name, value)
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", not hub.is_xet)
    monkeypatch.setattr("huggingface_hub.utils._xet._GLOBAL_XET_HOLDER", XetSessionHolder())
    for name, value in _HURRY.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", HANG_SECONDS)
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", HANG_SECONDS)
    hurried = SimpleNamespace(sleep=lambda seconds: time.sleep(seconds / 100))
    monkeypatch.setattr("huggingface_hub.utils._http.time", hurried)
    monkeypatch.setattr("huggingface_hub.file_download.time", hurried)
    monkeypatch.setattr("ctcli.storage.hub.retries.FIRST_DELAY", 0.001)
    huggingface_hub.close_session()
