# Copyright 2026 The LoomVideo for Diffusers authors. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""A Hub on this machine: as much of its HTTP protocol as making, filling, listing and reading repositories takes."""

import base64
import hashlib
import itertools
import json
import random
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit


LARGE_SUFFIXES = (".safetensors", ".png", ".mp4")
SMALLEST_LARGE = 2**20

# Of a card's metadata, what the Hub knows, as far as cards here may need it
LICENSES = ("apache-2.0", "mit", "cc-by-4.0", "cc-by-nc-4.0", "openrail", "other", "unknown")
RELATIONS = ("adapter", "merge", "quantized", "finetune")
PIPELINE_TAGS = ("text-to-video", "text-to-image", "image-to-video", "video-to-video")
SPACE_COLORS = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
REPOSITORY = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass
class Repository:
    """Commits by their hash, each with its files by path, as (git's hash of the content, SHA-256 of a large file)."""

    private: bool
    commits: dict[str, dict[str, tuple[str, str | None]]]
    branches: dict[str, str]
    num_requests: int = 0


@dataclass
class Hub:
    """
    What the server has, and how it is to behave.

    Attributes:
        address, storage: where it is, and where, at another host, large files are.
        tokens: the account of each token.
        repositories: by name.
        blobs: contents, by git's hash or by SHA-256.
        requests: the method and the path of all requests.
        faults: statuses, or "drop" for a connection that breaks off, of the next requests whose path has the words.
        drop_share: how often a connection breaks off by chance.
        num_dropped: how many broke off.
        damaged: paths of which the server has kept something else than was sent.
    """

    address: str = ""
    storage: str = ""
    tokens: dict[str, str] = field(default_factory=lambda: {"hf_mine": "me", "hf_other": "other"})
    repositories: dict[str, Repository] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)
    faults: list[tuple[str, int | str]] = field(default_factory=list)
    drop_share: float = 0.0
    num_dropped: int = 0
    damaged: set[str] = field(default_factory=set)
    rng: random.Random = field(default_factory=lambda: random.Random(0))

    def reset(self) -> None:
        """Forgets all that was sent and asked, and behaves again."""
        vars(self).update(vars(Hub(self.address, self.storage)))

    def read(self, name: str, path: str, revision: str = "main") -> bytes:
        repository = self.repositories[name]
        oid, sha256 = repository.commits[repository.branches.get(revision, revision)][path]
        return self.blobs[sha256 or oid]

    def files(self, name: str, revision: str = "main") -> set[str]:
        repository = self.repositories[name]
        return set(repository.commits[repository.branches.get(revision, revision)])


class Refused(Exception):
    def __init__(self, status: int, code: str = "", message: str = ""):
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


def start_hub(port: int = 0) -> Hub:
    """Runs a Hub as long as this process lives, by default on a port that is free."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", port), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.address = f"http://127.0.0.1:{server.server_port}"
    hub.storage = f"http://localhost:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return hub


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"
    lock = threading.Lock()

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_PUT = do_GET

    def _answer(self) -> None:
        self.path = unquote(self.path)
        with self.lock:
            self.hub.requests.append((self.command, self.path))
            fault = self._next_fault()
        if fault == "drop":
            self._drop()
            return
        try:
            body = self._read_body()
            if fault is not None:
                raise Refused(fault, message="try again later")
            with self.lock:
                status, headers, content = self._route(body)
        except Refused as refusal:
            status, headers = refusal.status, {"X-Error-Code": refusal.code, "X-Error-Message": refusal.message}
            headers |= {"Retry-After": "0"} if status == 429 else {}
            content = json.dumps({"error": refusal.message}).encode()
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _next_fault(self) -> int | str | None:
        for place, (words, fault) in enumerate(self.hub.faults):
            if words in self.path:
                del self.hub.faults[place]
                return fault
        return "drop" if self.hub.rng.random() < self.hub.drop_share else None

    def _drop(self) -> None:
        """Breaks off in the middle of what is sent, or if nothing is, before the answer."""
        self.hub.num_dropped += 1
        self.rfile.read(min(1000, int(self.headers.get("Content-Length") or 0)))
        self.close_connection = True
        self.connection.close()

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            length = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(length)
            if len(body) < length:
                raise Refused(400, message="cut off")
            return body
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    # What is asked for

    def _route(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        url = urlsplit(self.path)
        parts, query = url.path.strip("/").split("/"), parse_qs(url.query)
        if parts[0] == "blobs":
            return self._blob(parts[1], body)
        if parts == ["api", "validate-yaml"]:
            return self._validate_card(**json.loads(body))
        if parts == ["api", "whoami-v2"]:
            return self._json({"name": self._account(), "type": "user", "orgs": []})
        if parts == ["api", "repos", "create"]:
            return self._create(json.loads(body))
        if parts[:2] == ["api", "models"]:
            return self._model("/".join(parts[2:4]), parts[4:], query, body)
        if parts[:2] == ["api", "spaces"]:
            return self._model("/".join(parts[1:4]), parts[4:], query, body)
        length = 3 if parts[0] == "spaces" else 2
        name, rest = "/".join(parts[:length]), parts[length:]
        if rest[:1] == ["resolve"]:
            return self._resolve(self._repository(name), rest[1], "/".join(rest[2:]))
        if name.endswith(".git"):
            return self._lfs_batch(name.removesuffix(".git"), json.loads(body))
        raise Refused(404)

    def _json(self, answer: Any) -> tuple[int, dict[str, str], bytes]:
        return 200, {"Content-Type": "application/json"}, json.dumps(answer).encode()

    def _account(self) -> str:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token not in self.hub.tokens:
            raise Refused(401, message="Invalid username or password.")
        return self.hub.tokens[token]

    def _repository(self, name: str, is_write: bool = False) -> Repository:
        repository = self.hub.repositories.get(name)
        # A wrong token is refused even where none is needed.
        account = self._account() if "Authorization" in self.headers else None
        is_owner = account is not None and name.removeprefix("spaces/").startswith(f"{account}/")
        if repository is None or (repository.private and not is_owner):
            # Who may not see a repository is not told that there is one.
            raise Refused(404 if account else 401, "RepoNotFound", "Repository Not Found")
        if is_write and not is_owner:
            raise Refused(403 if account else 401, message="You have no right to write here.")
        return repository

    def _commit_of(self, repository: Repository, revision: str) -> str:
        commit = repository.branches.get(revision, revision)
        if commit not in repository.commits:
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit

    def _create(self, asked: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
        account = self._account()
        owner = asked.get("organization") or account
        name = f"{owner}/{asked['name']}"
        if owner != account:
            raise Refused(403, message=f"You don't have the rights to create a model under the namespace {owner}")
        if asked.get("type") == "space":
            if asked.get("sdk") not in ("gradio", "docker", "static"):
                raise Refused(400, message="A Space needs an SDK.")
            name = f"spaces/{name}"
        answer = {"url": f"{self.hub.address}/{name}", "name": name}
        if name in self.hub.repositories:
            return 409, {}, json.dumps(answer | {"error": "You already created this model repo"}).encode()
        first = hashlib.sha1(name.encode()).hexdigest()
        private = bool(asked.get("private")) or asked.get("visibility") == "private"
        self.hub.repositories[name] = Repository(private, {first: {}}, {"main": first})
        return self._json(answer)

    def _model(self, name: str, rest: list[str], query: dict, body: bytes) -> tuple[int, dict[str, str], bytes]:
        action = rest[0] if rest else "revision"
        repository = self._repository(name, is_write=action in ("preupload", "commit", "branch"))
        if action == "branch":
            branch = "/".join(rest[1:])
            if branch in repository.branches:
                raise Refused(409, message="Reference already exists")
            repository.branches[branch] = repository.branches["main"]
            return self._json({})
        if action == "preupload":
            files = json.loads(body)["files"]
            return self._json({"files": [self._mode(repository, rest[1], file) for file in files]})
        if action == "commit":
            return self._commit(name, repository, rest[1], "create_pr" in query, body)
        revision = "/".join(rest[1:3]) if rest[1:2] == ["refs"] else (rest[1] if len(rest) > 1 else "main")
        if rest[1:2] == ["refs"]:
            revision = "/".join(rest[1:4])
        commit = self._commit_of(repository, revision)
        files = repository.commits[commit]
        if action == "tree":
            folder = "".join(f"{part}/" for part in rest[4 if rest[1:2] == ["refs"] else 2 :])
            found = {path: hashes for path, hashes in files.items() if path.startswith(folder)}
            if folder and not found:
                raise Refused(404, "EntryNotFound", f"{folder} does not exist on {revision}")
            return self._json([self._entry(path, *hashes) for path, hashes in sorted(found.items())])
        if action == "paths-info":
            paths = parse_qs(body.decode()).get("paths", []) or json.loads(body or b"{}").get("paths", [])
            return self._json([self._entry(path, *files[path]) for path in paths if path in files])
        siblings = [{"rfilename": path} for path in sorted(files)]
        return self._json(
            {
                "id": name,
                "modelId": name,
                "sha": commit,
                "private": repository.private,
                "siblings": siblings,
                "tags": [],
            }
        )

    def _mode(self, repository: Repository, revision: str, file: dict[str, Any]) -> dict[str, Any]:
        is_large = file["path"].endswith(LARGE_SUFFIXES) or file["size"] >= SMALLEST_LARGE
        known = repository.commits[self._commit_of(repository, revision)].get(file["path"])
        oid = known and (known[1] or known[0])
        mode = "lfs" if is_large else "regular"
        return {"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid}

    def _entry(self, path: str, oid: str, sha256: str | None) -> dict[str, Any]:
        size = len(self.hub.blobs[sha256 or oid])
        if path in self.hub.damaged:
            oid, sha256 = oid[::-1], sha256 and sha256[::-1]
        entry = {"type": "file", "path": path, "size": size, "oid": oid}
        return entry if sha256 is None else entry | {"lfs": {"oid": sha256, "size": size, "pointerSize": 130}}

    def _commit(
        self, name: str, repository: Repository, revision: str, create_pr: bool, body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        parent = self._commit_of(repository, revision)
        files = dict(repository.commits[parent])
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                content = base64.b64decode(value["content"])
                oid = hashlib.sha1(b"blob %d\0%b" % (len(content), content)).hexdigest()
                self.hub.blobs[oid] = content
                files[value["path"]] = (oid, None)
            elif entry["key"] == "lfsFile":
                if value["oid"] not in self.hub.blobs:
                    raise Refused(400, message=f"LFS pointer pointed to a file that does not exist: {value['path']}")
                files[value["path"]] = (hashlib.sha1(value["oid"].encode()).hexdigest(), value["oid"])
            elif entry["key"] == "deletedFile":
                del files[value["path"]]
        commit = hashlib.sha1((parent + json.dumps(files, sort_keys=True)).encode()).hexdigest()
        repository.commits[commit] = files
        answer = {"commitUrl": f"{self.hub.address}/{name}/commit/{commit}", "commitOid": commit}
        if create_pr:
            number = next(n for n in itertools.count(1) if f"refs/pr/{n}" not in repository.branches)
            repository.branches[f"refs/pr/{number}"] = commit
            answer["pullRequestUrl"] = f"{self.hub.address}/{name}/discussions/{number}"
        else:
            repository.branches[revision] = commit
        return self._json(answer)

    def _lfs_batch(self, name: str, asked: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
        self._repository(name, is_write=True)
        objects = []
        for wanted in asked["objects"]:
            answer = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.hub.blobs:
                answer["actions"] = {"upload": {"href": f"{self.hub.storage}/blobs/{wanted['oid']}", "header": {}}}
            objects.append(answer)
        return self._json({"transfer": "basic", "objects": objects})

    def _blob(self, sha256: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        if self.command == "PUT":
            if hashlib.sha256(body).hexdigest() != sha256:
                raise Refused(400, message="The content is not that of its hash.")
            self.hub.blobs[sha256] = body
            return 200, {}, b""
        return self._content(self.hub.blobs[sha256], {"ETag": f'"{sha256}"'})

    def _resolve(self, repository: Repository, revision: str, path: str) -> tuple[int, dict[str, str], bytes]:
        commit = self._commit_of(repository, revision)
        if path not in repository.commits[commit]:
            raise Refused(404, "EntryNotFound", "Entry not found")
        oid, sha256 = repository.commits[commit][path]
        headers = {"X-Repo-Commit": commit, "ETag": f'"{oid}"'}
        content = self.hub.blobs[sha256 or oid]
        if sha256 is None:
            return self._content(content, headers)
        linked = {"X-Linked-Size": str(len(content)), "X-Linked-Etag": f'"{sha256}"'}
        return 302, headers | linked | {"Location": f"{self.hub.storage}/blobs/{sha256}"}, b""

    def _content(self, content: bytes, headers: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
        wanted = self.headers.get("Range")
        if wanted is None:
            return 200, headers | {"Accept-Ranges": "bytes"}, content
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        end = int(last) + 1 if last else len(content)
        headers = headers | {"Content-Range": f"bytes {first}-{end - 1}/{len(content)}"}
        return 206, headers, content[int(first) : end]

    def _validate_card(self, content: str, repoType: str = "model") -> tuple[int, dict[str, str], bytes]:
        """What the Hub demands of a card's metadata, and its answer where that is not met."""
        import yaml

        metadata = yaml.safe_load(content.split("---")[1])
        base_models = metadata.get("base_model", [])
        demands = {
            '"license" must be one of the Hub\'s identifiers': metadata.get("license", "other") in LICENSES,
            '"license_name" is required with "license: other"': metadata.get("license") != "other"
            or "license_name" in metadata,
            '"base_model_relation" is unknown': metadata.get("base_model_relation", "finetune") in RELATIONS,
            '"base_model" must be names of repositories': all(
                REPOSITORY.fullmatch(name) for name in ([base_models] if isinstance(base_models, str) else base_models)
            ),
            '"pipeline_tag" is unknown': metadata.get("pipeline_tag", "text-to-video") in PIPELINE_TAGS,
            '"tags" must be words': all(isinstance(tag, str) for tag in metadata.get("tags", [])),
        }
        if repoType == "space":
            demands |= {
                '"sdk" must be one of those that there are': metadata.get("sdk") in ("gradio", "docker", "static"),
                '"short_description" must have at most 60 letters': len(metadata.get("short_description", "")) <= 60,
                '"colorFrom" and "colorTo" must be names of colors': {
                    metadata.get(name, "gray") for name in ("colorFrom", "colorTo")
                }
                <= SPACE_COLORS,
                '"models" must be names of repositories': all(map(REPOSITORY.fullmatch, metadata.get("models", []))),
            }
        errors = [{"message": message} for message, is_met in demands.items() if not is_met]
        answer = json.dumps({"errors": errors, "warnings": []}).encode()
        return 400 if errors else 200, {"Content-Type": "application/json"}, answer
