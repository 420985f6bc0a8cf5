"""Endpoints that change nothing."""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import parse_qs, quote

from tests.helpers.hub.answering import Answering
from tests.helpers.hub.errors import HubError
from tests.helpers.hub.faults import Fault
from tests.helpers.hub.repository import list_tree

_DAY = "2024-01-01T00:00:00.000Z"


def byte_range(header: str | None, size: int) -> range | None:
    """Read a Range header: None if it asks for the whole, empty if beyond the file's end."""
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", header or "")
    if match is None or not any(match.groups()):
        return None
    first, last = match.groups()
    if not first:
        return range(max(size - int(last), 0), size)
    return range(int(first), min(int(last) + 1, size) if last else size)


class Reading(Answering):
    """Endpoints that change nothing."""

    def whoami(self) -> None:
        """Say who the token belongs to."""
        if not self.authorization:
            raise HubError(401, "", "Invalid username or password.")
        orgs = [{"name": name} for name in sorted(self.hub.namespaces - {"tester"})]
        self.send({"type": "user", "name": "tester", "orgs": orgs})

    def model(self, repo_id: str, rev: str) -> None:
        """Tell about a repository at a revision."""
        repo, sha, tree = self.find(repo_id, rev or "main")
        siblings = [file.describe("rfilename", "blobId", "sha256") for file in tree.values()]
        if not self.flag("blobs"):
            siblings = [{"rfilename": sibling["rfilename"]} for sibling in siblings]
        info = {
            "id": repo_id,
            "sha": sha,
            "private": repo.private,
            "gated": "manual" if repo.gated else False,
            "disabled": False,
            "lastModified": _DAY,
            "tags": [],
            "siblings": siblings,
        }
        self.send(info)

    def tree(self, repo_id: str, rev: str, path: str) -> None:
        """List a folder."""
        _, sha, tree = self.find(repo_id, rev)
        entries = list_tree(tree, path, recursive=self.flag("recursive"))
        if path and not entries:
            raise HubError(404, "EntryNotFound", "Entry not found", X_Repo_Commit=sha)
        self.send(entries)

    def paths_info(self, repo_id: str, rev: str) -> None:
        """Tell about some files."""
        _, _, tree = self.find(repo_id, rev)
        wanted = parse_qs(self.body.decode()).get("paths", [])
        self.send([entry for entry in list_tree(tree) if entry["path"] in wanted])

    def refs(self, repo_id: str) -> None:
        """List the branches."""
        branches = [
            {"name": name, "ref": f"refs/heads/{name}", "targetCommit": sha}
            for name, sha in self.find_repo(repo_id).branches.items()
        ]
        self.send({"branches": branches, "converts": [], "tags": []})

    def commits(self, repo_id: str, rev: str) -> None:
        """List a revision's history, newest first."""
        repo, sha, _ = self.find(repo_id, rev)
        told = [
            {
                "id": name,
                "title": commit.title,
                "message": commit.message,
                "date": _DAY,
                "authors": [{"user": "tester"}],
            }
            for name, commit in repo.history(sha)
        ]
        self.send(told)

    def resolve(self, repo_id: str, rev: str, path: str) -> None:
        """Send a file, or say where it is."""
        _, sha, tree = self.find(repo_id, rev, content=True)
        file = tree.get(path)
        if file is None:
            raise HubError(404, "EntryNotFound", "Entry not found", X_Repo_Commit=sha)
        if file.pointer_size is None:
            self._send_file(file.sha256, {"X-Repo-Commit": sha, "ETag": f'"{file.oid}"'})
            return
        target = f"/cdn/{file.sha256}/{quote(f'{repo_id}/{sha}/{path}')}"
        headers = {
            "Location": f"{self.hub.elsewhere}{target}?Signature=cdn-secret",
            "X-Repo-Commit": sha,
            "X-Linked-ETag": f'"{file.sha256}"',
            "X-Linked-Size": file.size,
        }
        if self.hub.is_xet:
            route = f"{self.hub.url}/api/models/{repo_id}/xet-read-token/{sha}"
            headers |= {"X-Xet-Hash": file.sha256, "Link": f'<{route}>; rel="xet-auth"'}
        self.send({"redirect": target}, 302, headers)

    def cdn(self, sha256: str) -> None:
        """Send a large file."""
        if not self.hub.blobs.path(sha256).exists():
            raise HubError(404, "", "Not found")
        self._send_file(sha256, {"ETag": f'"{sha256}"'})

    def _send_file(self, sha256: str, headers: Mapping[str, object]) -> None:
        blob = self.hub.blobs.path(sha256)
        size = blob.stat().st_size
        asked = None if self.ignores_range else self.headers.get("Range")
        wanted = byte_range(asked, size)
        if wanted is not None and not wanted:
            raise HubError(416, "", "Range not satisfiable", Content_Range=f"bytes */{size}")
        span = wanted or range(size)
        head = {**headers, "Content-Length": len(span), "Accept-Ranges": "bytes"}
        if wanted:
            head["Content-Range"] = f"bytes {span.start}-{span.stop - 1}/{size}"
        self.send_head(206 if wanted else 200, head)
        if self.command == "GET":
            fault = self.hub.take_fault(self.command, self.name, span)
            self.send_span(blob, span, fault or Fault(self.name))
