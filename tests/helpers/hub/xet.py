"""Xet storage: where a client of today brings large content, in chunks, and gets it from.

The hub names the storage and gives out tokens for it; the storage is asked with these alone. It
knows the first version of its interface only, as servers of old do, to which clients fall back.
"""

from __future__ import annotations

import hashlib
import time

from tests.helpers.hub.answering import Answering
from tests.helpers.hub.errors import HubError
from tests.helpers.hub.reading import byte_range
from tests.helpers.hub.xorbs import CHUNK, decode_chunks, decode_shard, encode_chunk

_STEP = CHUNK + len(encode_chunk(b""))  # bytes of a whole chunk in a xorb
_READ, _WRITE = "xet-read ", "xet-write "


class Xet(Answering):
    """Endpoints of the storage, and the hub's own that lead there."""

    def xet_token(self, repo_id: str, rev: str, kind: str) -> None:
        """Name the storage, and give out a token for a repository."""
        if kind == "write":
            self.find_writable(repo_id)
        else:
            self.find(repo_id, rev, content=True)
        place = self.hub.storage or f"{self.hub.elsewhere}/cas"
        token, expiry = f"xet-{kind} {repo_id}", int(time.time()) + 3600
        headers = {
            "X-Xet-Cas-Url": place,
            "X-Xet-Access-Token": token,
            "X-Xet-Token-Expiration": expiry,
        }
        self.send({"casUrl": place, "accessToken": token, "exp": expiry}, headers=headers)

    def _repo_of_token(self, *kinds: str) -> str:
        given = (self.authorization or "").removeprefix("Bearer ")
        for kind in kinds:
            if given.startswith(kind):
                return given.removeprefix(kind)
        raise HubError(401, "", "No token of this storage")

    def reconstruction(self, file: str) -> None:
        """Say of which chunks a part of a file is made: of one xorb that holds all of the file."""
        self._repo_of_token(_READ, _WRITE)
        blob = self.hub.blobs.path(file)
        if not blob.exists():
            raise HubError(404, "", "No such file")
        size = blob.stat().st_size
        span = byte_range(self.headers.get("Range"), size) or range(size)
        first, last = span.start // CHUNK, -(-span.stop // CHUNK)
        length = min(size, last * CHUNK) - first * CHUNK
        chunks = {"start": first, "end": last}
        ends = {"start": first * _STEP, "end": first * _STEP + length + 8 * (last - first) - 1}
        url = f"{self.hub.elsewhere}/xorbs/{file}?Signature=xet-secret"
        self.send(
            {
                "offset_into_first_range": span.start - first * CHUNK,
                "terms": [{"hash": file, "unpacked_length": length, "range": chunks}],
                "fetch_info": {file: [{"range": chunks, "url": url, "url_range": ends}]},
            }
        )

    def xorb(self, file: str) -> None:
        """Send a part of a xorb."""
        content = self.hub.blobs.path(file).read_bytes()
        chunks = (content[i : i + CHUNK] for i in range(0, len(content), CHUNK))
        xorb = b"".join(map(encode_chunk, chunks))
        span = byte_range(self.headers.get("Range"), len(xorb)) or range(len(xorb))
        fault = self.hub.take_fault(self.command, self.name, span)
        part = bytearray(xorb[span.start : span.stop])
        if fault and fault.flip_at is not None:
            part[fault.flip_at - span.start] ^= 0xFF
        self.send_head(206, {"Content-Length": len(part)})
        if fault and fault.after_bytes is not None:
            self.write(part[: fault.after_bytes])
            self.hang_up()
        else:
            self.write(part)

    def put_xorb(self, xorb: str) -> None:
        """Keep a xorb's chunks."""
        self._repo_of_token(_WRITE)
        self.hub.count(self.name, received=len(self.body))
        with self.hub.lock:
            is_new = xorb not in self.hub.xorbs
            self.hub.xorbs[xorb] = [*decode_chunks(self.body)]
        self.send({"was_inserted": is_new})

    def put_shard(self) -> None:
        """Put files together of the chunks that a shard lists; a repository has them from then."""
        repo = self.hub.repos[self._repo_of_token(_WRITE)]
        for file in decode_shard(self.body):
            chunks = [self.hub.xorbs[term.xorb][i] for term in file.terms for i in term.chunks]
            content = b"".join(chunks)
            if hashlib.sha256(content).hexdigest() != file.sha256:
                raise HubError(400, "", "Not the content that was announced")
            self.hub.blobs.path(file.sha256).write_bytes(content)
            with self.hub.lock:
                repo.objects.add(file.sha256)
        self.send({"result": 1})
