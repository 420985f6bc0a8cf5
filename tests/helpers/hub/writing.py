"""Endpoints that make repositories, branches and commits, and take large content in."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from tests.helpers.hub.answering import Answering
from tests.helpers.hub.errors import HubError
from tests.helpers.hub.faults import Fault
from tests.helpers.hub.repository import BLOCK, Commit, Repo, changed, is_large, name_of

_ATTRIBUTES = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"
_LICENSES = {"apache-2.0", "mit", "llama3.1", "other"}


class Writing(Answering):
    """Endpoints that change something."""

    def create_repo(self) -> None:
        """Make a repository, with an initial commit as every hub makes it."""
        self.check_writer()
        asked = json.loads(self.body)
        namespace = asked.get("organization") or "tester"
        repo_id = f"{namespace}/{asked['name']}"
        if namespace not in self.hub.namespaces:
            raise HubError(
                403, "", f"You don't have the rights to create a model under {namespace}"
            )
        with self.hub.lock:
            url = {"url": f"{self.hub.url}/{repo_id}"}
            if repo_id in self.hub.repos:
                self.send({"error": "You already created this model repo", **url}, 409)
                return
            private = asked.get("visibility") == "private" or bool(asked.get("private"))
            repo = self.hub.repos[repo_id] = Repo(private=private)
            tree = {".gitattributes": self.hub.blobs.store(".gitattributes", _ATTRIBUTES)}
            repo.put("main", name_of(tree, repo_id), Commit(tree, None, "initial commit"))
        self.send(url)

    def run_job(self, namespace: str) -> None:
        """Take a job in."""
        self.check_writer()
        job = json.loads(self.body)
        self.hub.jobs.append(job)
        owner = {"id": "0", "name": namespace, "type": "user"}
        self.send({**job, "id": "1", "owner": owner, "status": {"stage": "SCHEDULING"}})

    def create_branch(self, repo_id: str, branch: str) -> None:
        """Let a new branch begin at a commit."""
        repo = self.find_writable(repo_id)
        begin = json.loads(self.body or b"{}").get("startingPoint", "main")
        with self.hub.lock:
            sha = repo.branches.get(begin, begin)
            if branch in repo.branches:
                raise HubError(409, "", f"Reference already exists: {branch}")
            if sha not in repo.commits:
                raise HubError(404, "RevisionNotFound", "Invalid rev id")
            repo.branches[branch] = sha
        self.send({})

    def delete_branch(self, repo_id: str, branch: str) -> None:
        """Forget a branch."""
        repo = self.find_writable(repo_id)
        if branch == "main":
            raise HubError(403, "", "The main branch cannot be deleted")
        if repo.branches.pop(branch, None) is None:
            raise HubError(404, "RevisionNotFound", "Invalid rev id")
        self.send({})

    def validate_yaml(self) -> None:
        """Judge a model card's front matter, as far as its licence goes."""
        lines = json.loads(self.body)["content"].split("\n---\n")[0].splitlines()
        found = [line.removeprefix("license:").strip() for line in lines if "license:" in line]
        errors = [{"message": f'"license" must be known: {name}'} for name in found]
        errors = [] if set(found) <= _LICENSES else errors
        self.send({"errors": errors, "warnings": []}, 400 if errors else 200)

    def preupload(self, repo_id: str, rev: str) -> None:
        """Say which files are to go to LFS."""
        self.check_writer()
        _, _, tree = self.find(repo_id, rev)
        answers = []
        for asked in json.loads(self.body)["files"]:
            path, large = asked["path"], is_large(asked["path"], asked["size"])
            answer = {"path": path, "uploadMode": "lfs" if large else "regular"}
            if file := tree.get(path):
                answer["oid"] = file.oid if file.pointer_size is None else file.sha256
            answers.append({**answer, "shouldIgnore": False})
        self.send({"files": answers})

    def lfs_batch(self, repo_id: str) -> None:
        """Say where large content is to be put, unless the repository has it."""
        repo = self.find_writable(repo_id)
        answers: list[dict[str, Any]] = []
        for asked in json.loads(self.body)["objects"]:
            oid, size = asked["oid"], asked["size"]
            answer = {"oid": oid, "size": size}
            if oid not in repo.objects:
                verify = {"href": f"{self.hub.url}/{repo_id}.git/info/lfs/verify"}
                answer["actions"] = {"upload": self._upload(repo_id, oid, size), "verify": verify}
            answers.append(answer)
        self.send({"transfer": "basic", "objects": answers})

    def _upload(self, repo_id: str, oid: str, size: int) -> dict[str, Any]:
        place = f"{self.hub.elsewhere}/storage/{repo_id}/{oid}"
        signature = "?X-Amz-Signature=storage-secret"
        part_bytes = self.hub.part_bytes
        if part_bytes is None or size <= part_bytes:
            return {"href": f"{place}{signature}"}
        parts = range(1, -(-size // part_bytes) + 1)
        header = {str(part): f"{place}/{part}{signature}" for part in parts}
        return {"href": f"{place}{signature}", "header": {"chunk_size": str(part_bytes), **header}}

    def put(self, repo_id: str, oid: str, part: str) -> None:
        """Take in large content, or a part of it; refuse what is not the content announced."""
        size = int(self.headers["Content-Length"])
        fault = self.hub.take_fault(self.command, self.name, range(size))
        path = self.receive(size, fault or Fault(self.name))
        if path is None:
            return
        if part:
            path.rename(self._part(oid, int(part)))
            self.send({}, headers={"ETag": f'"{oid}-{part}"'})
        else:
            self._keep(repo_id, oid, [path])
            self.send({})

    def complete(self, repo_id: str, oid: str) -> None:
        """Put the parts of large content together."""
        parts = json.loads(self.body)["parts"]
        numbers = range(1, len(parts) + 1)
        if [part["etag"] for part in parts] != [f'"{oid}-{number}"' for number in numbers]:
            raise HubError(400, "", "Not the parts that were sent")
        self._keep(repo_id, oid, [self._part(oid, number) for number in numbers])
        self.send({})

    def _part(self, oid: str, number: int) -> Path:
        return self.hub.blobs.path(f"part-{oid}-{number}")

    def _keep(self, repo_id: str, oid: str, parts: list[Path]) -> None:
        whole, digest = self.hub.blobs.path(f"whole-{oid}-{id(self)}"), hashlib.sha256()
        with whole.open("wb") as writer:
            for part in parts:
                with part.open("rb") as reader:
                    while block := reader.read(BLOCK):
                        digest.update(block)
                        writer.write(block)
                part.unlink()
        if digest.hexdigest() != oid:
            whole.unlink()
            raise HubError(400, "", "BadDigest: not the content that was announced")
        whole.replace(self.hub.blobs.path(oid))
        with self.hub.lock:
            self.hub.repos[repo_id].objects.add(oid)

    def verify(self, repo_id: str) -> None:
        """Confirm that large content has arrived."""
        repo, asked = self.find_writable(repo_id), json.loads(self.body)
        blob = self.hub.blobs.path(asked["oid"])
        if asked["oid"] not in repo.objects or blob.stat().st_size != asked["size"]:
            raise HubError(404, "", "The object has not arrived")
        self.send({})

    def commit(self, repo_id: str, rev: str) -> None:
        """Change a branch."""
        repo = self.find_writable(repo_id)
        header, *operations = [json.loads(line) for line in self.body.splitlines()]
        said = header["value"]
        with self.hub.lock:
            head = repo.branches.get(rev)
            if head is None:
                raise HubError(404, "RevisionNotFound", "Invalid rev id")
            if said.get("parentCommit", head) != head:
                raise HubError(
                    412, "", "A commit has happened since. Please refresh and try again."
                )
            tree = changed(repo.tree(rev), operations, repo, self.hub.blobs)
            made = Commit(tree, head, said["summary"], said["description"])
            sha = name_of(tree, head, made.title, made.message)
            repo.put(rev, sha, made)
        url = f"{self.hub.url}/{repo_id}/commit/{sha}"
        self.send({"success": True, "commitOid": sha, "commitUrl": url})
