"""A small server that answers on 127.0.0.1 what the Hugging Face hub's API answers, for its real clients.

What it answers was taken from the requests that `huggingface_hub`, `datasets` and `transformers` make.
"""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit


@dataclass
class Repository:
    """The files of one commit of a repository."""

    commit: str
    files: dict[str, bytes]
    gated: bool = False


@dataclass
class Hub:
    """Repositories by kind (models, datasets) and name, the address they are served at, and what was asked for."""

    repositories: dict[tuple[str, str], Repository]
    address: str = ""
    requests: list[str] = field(default_factory=list)


@contextmanager
def serving(repositories: dict[tuple[str, str], Repository]) -> Iterator[Hub]:
    """Serve these repositories while the block runs."""
    hub = Hub(repositories)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_) -> None:
        pass

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        address = urlsplit(self.path)
        path = unquote(address.path)
        self.hub.requests.append(f"{self.command} {path}")
        api = re.fullmatch(
            r"/api/(models|datasets)/([^/]+/[^/]+?)(?:/(revision|tree|paths-info)/([^/]+)(?:/(.*))?)?", path
        )
        file = re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        if not api and not file:
            return self.send(404, error="EntryNotFound")
        kind = api[1] if api else "datasets" if file[1] else "models"
        repository = self.hub.repositories.get((kind, (api or file)[2]))
        if repository is None:
            return self.send(401, error="RepoNotFound")  # as the hub does, which tells no one what is private
        if repository.gated:
            return self.send(403, error="GatedRepo")
        revision = (api[4] if api else file[3]) or repository.commit
        if revision not in (repository.commit, "main"):
            return self.send(404, error="RevisionNotFound")
        if file:
            return self.send_file(repository, file[4])
        if api[3] == "tree":
            return self.send_json(self.tree(repository, api[5] or "", "recursive=true" in address.query.lower()))
        if api[3] == "paths-info":
            asked = parse_qs(body.decode()).get("paths") or json.loads(body or b"{}").get("paths", [])
            return self.send_json(self.entries(repository, [asked] if isinstance(asked, str) else asked))
        siblings = [{"rfilename": name} for name in repository.files]
        facts = {
            "id": api[2],
            "sha": repository.commit,
            "private": False,
            "gated": False,
            "disabled": False,
            "tags": [],
        }
        times = {"lastModified": "2024-01-01T00:00:00.000Z", "createdAt": "2022-01-01T00:00:00.000Z"}
        return self.send_json({**facts, **times, "downloads": 0, "likes": 0, "siblings": siblings})

    do_GET = do_HEAD = do_POST = answer

    def tree(self, repository: Repository, folder: str, recursive: bool) -> list[dict]:
        inside = [name for name in repository.files if name.startswith(f"{folder}/" if folder else "")]
        if recursive:
            return self.entries(repository, inside)
        depth = folder.count("/") + 1 if folder else 0
        return self.entries(repository, sorted({"/".join(name.split("/")[: depth + 1]) for name in inside}))

    @staticmethod
    def entries(repository: Repository, paths: list[str]) -> list[dict]:
        found = []
        for path in paths:
            if path in repository.files:
                data = repository.files[path]
                found.append({"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()})
            elif any(name.startswith(f"{path}/") for name in repository.files):
                found.append({"type": "directory", "path": path, "size": 0, "oid": "0" * 40})
        return found

    def send_file(self, repository: Repository, name: str) -> None:
        if name not in repository.files:
            return self.send(404, error="EntryNotFound", commit=repository.commit)
        return self.send(200, repository.files[name], commit=repository.commit)

    def send_json(self, value: object) -> None:
        self.send(200, json.dumps(value).encode(), kind="application/json")

    def send(
        self, code: int, body: bytes = b"", error: str = "", commit: str = "", kind: str = "application/octet-stream"
    ) -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        if error:
            self.send_header("X-Error-Code", error)
        if commit:
            self.send_header("X-Repo-Commit", commit)
        if code == 200:
            self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
