"""A small server that speaks the Hugging Face Hub's protocol, with its repositories in memory."""

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit


@dataclass
class Repository:
    """Files by revision; `main` is the newest.

    Attributes:
        gated: may not be read by anybody.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    old: dict[str, dict[str, bytes]] = field(default_factory=dict)
    gated: bool = False
    private: bool = False

    @property
    def commit(self) -> str:
        return hashlib.sha1(repr(sorted(self.files.items())).encode()).hexdigest()

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """Return the commit and the files of a revision."""
        if revision in ("main", self.commit):
            return self.commit, self.files
        return (revision, self.old[revision]) if revision in self.old else None


@dataclass
class Hub:
    """A running server.

    Attributes:
        repositories: by `org/name`; `asked`: requests so far, as `METHOD path`.
    """

    url: str
    repositories: dict[str, Repository]
    asked: list[str]


@contextmanager
def serve() -> Iterator[Hub]:
    """Run a server on this machine."""
    hub = Hub("", {}, [])

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def answer(
            self, status: int, content: bytes = b"", headers: dict[str, str] | None = None
        ) -> None:
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(content))} | (headers or {})).items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def refuse(self, status: int, code: str) -> None:
            self.answer(status, headers={"X-Error-Code": code, "X-Error-Message": code})

        def tell(self, content: Any) -> None:
            kind = {"Content-Type": "application/json"}
            self.answer(200, json.dumps(content).encode(), kind)

        def read_file(self) -> None:
            parts = unquote(urlsplit(self.path).path).strip("/").split("/")
            if parts[0] == "api":
                self.describe("/".join(parts[2:4]))
                return
            repo, revision, name = "/".join(parts[:2]), parts[3], "/".join(parts[4:])
            repository = hub.repositories.get(repo)
            if repository is None:
                self.refuse(404, "RepoNotFound")
                return
            if repository.gated:
                self.refuse(403, "GatedRepo")
                return
            at = repository.at(revision)
            if at is None:
                self.refuse(404, "RevisionNotFound")
                return
            commit, files = at
            if name not in files:
                self.answer(404, headers={"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
                return
            content = files[name]
            digest = hashlib.sha256(content).hexdigest()
            about = {"ETag": f'"{digest}"', "X-Repo-Commit": commit}
            self.answer(200, content, about | {"X-Linked-Size": str(len(content))})

        def describe(self, repo: str) -> None:
            if repo not in hub.repositories:
                self.refuse(404, "RepoNotFound")
                return
            repository = hub.repositories[repo]
            files = [{"rfilename": name} for name in repository.files]
            self.tell({"id": repo, "modelId": repo, "sha": repository.commit, "siblings": files})

        def do_HEAD(self) -> None:
            hub.asked.append(f"HEAD {self.path}")
            self.read_file()

        def do_GET(self) -> None:
            hub.asked.append(f"GET {self.path}")
            self.read_file()

        def do_POST(self) -> None:
            hub.asked.append(f"POST {self.path}")
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            parts = unquote(urlsplit(self.path).path).strip("/").split("/")
            if self.headers.get("Authorization") != "Bearer hf_right":
                self.refuse(401, "Unauthorized")
            elif parts[1:] == ["repos", "create"]:
                wanted = json.loads(body)
                repo = f"{wanted['organization']}/{wanted['name']}"
                private = wanted.get("private") or wanted.get("visibility") == "private"
                hub.repositories[repo] = Repository(private=bool(private))
                self.tell({"url": f"{hub.url}/{repo}", "name": repo, "id": repo})
            elif parts[1] == "validate-yaml":
                self.tell({"errors": [], "warnings": []})
            elif parts[4] == "preupload":
                names = [file["path"] for file in json.loads(body)["files"]]
                modes = {"uploadMode": "regular", "shouldIgnore": False}
                self.tell({"files": [{"path": name} | modes for name in names]})
            elif parts[4] == "commit":
                repo = "/".join(parts[2:4])
                repository = hub.repositories[repo]
                for line in body.splitlines():
                    entry = json.loads(line)
                    if entry["key"] == "file":
                        content = base64.b64decode(entry["value"]["content"])
                        repository.files[entry["value"]["path"]] = content
                commit = repository.commit
                url = f"{hub.url}/{repo}/commit/{commit}"
                self.tell({"commitUrl": url, "commitOid": commit, "success": True})
            else:
                self.refuse(404, "Unknown")

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        hub.url = f"http://127.0.0.1:{server.server_address[1]}"
        Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield hub
        finally:
            server.shutdown()
