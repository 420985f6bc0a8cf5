"""A small model hub on 127.0.0.1, for tests.

The real ``huggingface_hub`` client talks to it when ``HF_ENDPOINT`` points at it. Tests thus
exercise the client's own requests, redirects and retries, and can break the transfer at will,
without any network. It serves models only. A new endpoint is a row in ``server.ROUTES`` and a
method in ``reading`` or ``writing``.

Large content goes by plain LFS, or through Xet storage where ``Hub.is_xet`` is set before
``Hub.env`` is asked: whether the client takes Xet depends on an environment variable and on an
installed package (``hf_xet``), not on anything that a server says.
"""

from tests.helpers.hub.faults import Fault, Request
from tests.helpers.hub.running import Hub

__all__ = ["Fault", "Hub", "Request"]
