"""How the hub says no."""

from __future__ import annotations


class HubError(Exception):
    """An answer that the client turns into an exception of its own, by the error code."""

    def __init__(self, status: int, code: str, message: str, **headers: object) -> None:
        super().__init__(message)
        self.status = status
        self.headers = {"X-Error-Code": code, "X-Error-Message": message} if code else {}
        self.headers |= {name.replace("_", "-"): str(value) for name, value in headers.items()}
