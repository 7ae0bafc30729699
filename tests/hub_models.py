"""Model repositories of the hub on localhost: creating them, uploading, committing, tagging.

`HubServer` hands requests here. It speaks as much of the protocol as huggingface_hub uses without
its Xet transport: preupload, LFS batch, upload and verify, commits as ndjson, tags, refs, listings.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

if TYPE_CHECKING:
    from hub_server import Request

Answer = tuple[int, dict[str, str], bytes, str]
LARGE = (".safetensors", ".onnx", ".png", ".pth")


class ModelRefusalError(Exception):
    """A request that is answered with an error."""

    def __init__(self, status: int, code: str = "", message: str = "") -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


@dataclass
class Repo:
    """One model repository: commits in the order in which they were made, branches and tags."""

    private: bool = False
    commits: list[tuple[str, str, dict[str, bytes]]] = field(default_factory=list)
    """(id, title, all files)."""
    tags: dict[str, str] = field(default_factory=dict)

    @property
    def head(self) -> str:
        return self.commits[-1][0]

    def files(self, revision: str) -> tuple[str, dict[str, bytes]]:
        sha = self.head if revision == "main" else self.tags.get(revision, revision)
        for found, _, files in self.commits:
            if found == sha:
                return sha, files
        raise ModelRefusalError(404, "RevisionNotFound", f"Invalid rev id: {revision}")

    def add(self, title: str, files: dict[str, bytes]) -> str:
        listing = [(path, hashlib.sha256(data).hexdigest()) for path, data in sorted(files.items())]
        before = self.head if self.commits else ""
        sha = hashlib.sha1(json.dumps([before, title, listing]).encode()).hexdigest()
        self.commits.append((sha, title, dict(files)))
        return sha


class ModelHub:
    """All model repositories, and the large files that were uploaded."""

    def __init__(self, url: Callable[[], str]) -> None:
        self.repos: dict[str, Repo] = {}
        self.large: dict[str, bytes] = {}
        """sha256 -> content; here before the commit that names it."""
        self._url = url

    def answer(self, request: Request) -> Answer | None:
        """None for a request that is not about models."""
        path = unquote(request.path.split("?")[0])
        if request.method == "PUT" and (match := re.fullmatch(r"/lfs/([0-9a-f]{64})", path)):
            if hashlib.sha256(request.body).hexdigest() != match[1]:
                raise ModelRefusalError(400, message="the content has another digest")
            self.large[match[1]] = request.body
            return 200, {"ETag": match[1]}, b"", ""
        if path == "/api/validate-yaml":
            return self._validate(json.loads(request.body)["content"])
        if path == "/api/repos/create":
            return self._create(json.loads(request.body))
        if path == "/lfs/verify":
            said = json.loads(request.body)
            data = self.large.get(said["oid"])
            if data is None or len(data) != said["size"]:
                raise ModelRefusalError(404, message="it was not uploaded")
            return _json({})
        if match := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            self._repo(match[1])
            return self._batch(json.loads(request.body))
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            if match[1].startswith("datasets/") or match[1] not in self.repos:
                return None
            sha, files = self._repo(match[1]).files(match[2])
            return self._resolve(sha, files, match[3])
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/([a-z-]+)(?:/(.+))?)?", path):
            if match[1] not in self.repos and not match[2]:
                return None  # models that are nothing but a name
            return self._api(request, self._repo(match[1]), match[1], match[2] or "", match[3])
        return None

    def _repo(self, name: str) -> Repo:
        if name not in self.repos:
            raise ModelRefusalError(404, "RepoNotFound", "Repository not found")
        return self.repos[name]

    def _create(self, said: dict[str, Any]) -> Answer:
        name = f"{said['organization']}/{said['name']}"
        url = f"{self._url()}/{name}"
        if name in self.repos:
            return 409, {}, json.dumps({"error": "You already created it", "url": url}).encode(), ""
        private = said.get("visibility") == "private" or bool(said.get("private"))
        self.repos[name] = Repo(private)
        self.repos[name].add("initial commit", {".gitattributes": b"*.safetensors filter=lfs\n"})
        return _json({"url": url, "id": name})

    def _validate(self, content: str) -> Answer:
        import yaml

        head = re.match(r"---\n(.*?)\n---\n", content, re.DOTALL)
        data = yaml.safe_load(head[1]) if head else {}
        wrong = [key for key in ("license", "pipeline_tag") if not isinstance(data.get(key), str)]
        if data.get("license") == "other" and not data.get("license_name"):
            wrong.append("license_name")
        errors = [{"message": f'"{key}" is required'} for key in wrong]
        body = json.dumps({"errors": errors, "warnings": []}).encode()
        return (400 if errors else 200), {}, body, ""

    def _batch(self, said: dict[str, Any]) -> Answer:
        objects = []
        for item in said["objects"]:
            row: dict[str, Any] = {"oid": item["oid"], "size": item["size"]}
            if item["oid"] not in self.large:
                row["actions"] = {
                    "upload": {"href": f"{self._url()}/lfs/{item['oid']}"},
                    "verify": {"href": f"{self._url()}/lfs/verify"},
                }
            objects.append(row)
        return _json({"transfer": "basic", "objects": objects})

    def _api(self, request: Request, repo: Repo, name: str, what: str, rest: str | None) -> Answer:
        if what == "" or what == "revision":
            sha, files = repo.files(rest or "main")
            names = [{"rfilename": path} for path in files]
            return _json({"id": name, "sha": sha, "private": repo.private, "siblings": names})
        if what == "refs":
            tags = [
                {"name": tag, "ref": f"refs/tags/{tag}", "targetCommit": sha}
                for tag, sha in repo.tags.items()
            ]
            main = {"name": "main", "ref": "refs/heads/main", "targetCommit": repo.head}
            return _json({"branches": [main], "converts": [], "tags": tags})
        if what == "commits":
            return _json([
                {"id": sha, "title": title, "message": "", "authors": [{"user": "me"}],
                 "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")}
                for sha, title, _ in reversed(repo.commits)
            ])  # fmt: skip
        if what == "tree":
            _, files = repo.files(rest or "main")
            return _json([_row(path, data) for path, data in sorted(files.items())])
        if what == "paths-info":
            _, files = repo.files(rest or "main")
            return _json([_row(p, d) for p, d in files.items() if p in request.body.decode()])
        if what == "preupload":
            return self._preupload(repo, json.loads(request.body))
        if what == "tag":
            said = json.loads(request.body)
            if said["tag"] in repo.tags:
                raise ModelRefusalError(409, message="Tag reference exists already")
            repo.tags[said["tag"]] = repo.files(rest or "main")[0]
            return _json({})
        if what == "commit":
            return self._commit(repo, name, request.body)
        raise ModelRefusalError(404)

    def _preupload(self, repo: Repo, said: dict[str, Any]) -> Answer:
        _, current = repo.files("main")
        rows = []
        for file in said["files"]:
            large = file["path"].endswith(LARGE)
            data = current.get(file["path"])
            row = {"path": file["path"], "uploadMode": "lfs" if large else "regular"}
            row |= {
                "shouldIgnore": False,
                "oid": None if data is None else _oid(file["path"], data),
            }
            rows.append(row)
        return _json({"files": rows})

    def _commit(self, repo: Repo, name: str, body: bytes) -> Answer:
        lines = [json.loads(line) for line in body.splitlines()]
        header = lines[0]["value"]
        if header.get("parentCommit") not in (None, repo.head):
            raise ModelRefusalError(412, message="A commit has happened since.")
        files = dict(repo.files("main")[1])
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.large:
                    raise ModelRefusalError(400, message=f"{value['path']} was not uploaded")
                files[value["path"]] = self.large[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        sha = repo.add(header["summary"], files)
        return _json({"commitUrl": f"{self._url()}/{name}/commit/{sha}", "commitOid": sha})

    def _resolve(self, sha: str, files: dict[str, bytes], path: str) -> Answer:
        if path not in files:
            raise ModelRefusalError(404, "EntryNotFound", "Entry not found")
        data = files[path]
        headers = {"X-Repo-Commit": sha, "ETag": f'"{_oid(path, data)}"'}
        if path.endswith(LARGE):
            headers |= {"X-Linked-Etag": headers["ETag"], "X-Linked-Size": str(len(data))}
        return 200, headers, data, path


def _json(value: Any) -> Answer:
    return 200, {"Content-Type": "application/json"}, json.dumps(value).encode(), ""


def _oid(path: str, data: bytes) -> str:
    """What the hub names a file's content by: sha256 of a large one, else git's digest."""
    if path.endswith(LARGE):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _row(path: str, data: bytes) -> dict[str, Any]:
    row: dict[str, Any] = {"type": "file", "path": path, "size": len(data)}
    row["oid"] = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    if path.endswith(LARGE):
        row["lfs"] = {"oid": _oid(path, data), "size": len(data), "pointerSize": 130}
    return row
