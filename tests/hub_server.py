"""A stand-in for the Hub on this machine: it takes repositories, branches and commits, large files too."""

from __future__ import annotations

import base64
import json
import re
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub.constants


class HubServer(ThreadingHTTPServer):
    """`files` of each repository and branch, by name; `commits`, their messages; `requests`, as (method, path, token).
    `fails`: paths that match it are answered with that status.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repos: dict[str, dict[str, Any]] = {}
        self.files: dict[tuple[str, str], dict[str, bytes]] = defaultdict(dict)
        self.commits: list[str] = []
        self.large: dict[str, bytes] = {}
        self.requests: list[tuple[str, str, str]] = []
        self.fails: tuple[str, int] | None = None

    def clone(self, repo: str, folder: Path, revision: str = "main") -> Path:
        """The files of a repository as a folder."""
        for name, content in self.files[repo, revision].items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        return folder


class _Handler(BaseHTTPRequestHandler):
    server: HubServer

    def _serve(self) -> None:
        path = self.path.split("?")[0]
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.requests.append((self.command, path, self.headers.get("Authorization", "")))
        if self.server.fails and re.search(self.server.fails[0], path):
            return self._answer({"error": "refused"}, self.server.fails[1])
        if not self.headers.get("Authorization") and "/large/" not in path:
            return self._answer({"error": "Invalid username or password."}, 401)
        return self._answer(*self._respond(path, body))

    do_GET = do_POST = do_PUT = _serve

    def _respond(self, path: str, body: bytes) -> tuple[Any, int]:
        hub = self.server
        if path == "/api/repos/create":
            asked = json.loads(body)
            repo = f"{asked.get('organization') or 'me'}/{asked['name']}"
            there = repo in hub.repos
            hub.repos.setdefault(repo, asked)
            return {"url": f"{hub.url}/{repo}", "name": repo}, 409 if there else 200
        if path == "/api/validate-yaml":
            return {"errors": [], "warnings": []}, 200
        if match := re.fullmatch(r"/large/(\w+)", path):
            hub.large[match[1]] = body
            return {}, 200
        if match := re.fullmatch(r"/(.+)\.git/info/lfs/objects/batch", path):
            objects = json.loads(body)["objects"]
            upload = [{**o, "actions": {"upload": {"href": f"{hub.url}/large/{o['oid']}"}}} for o in objects]
            return {"transfer": "basic", "objects": upload}, 200
        match = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(branch|preupload|commit|tree)/(.+)", path)
        if not match or match[1] not in hub.repos:
            return {"error": "Repository not found"}, 404
        repo, what, revision = match.groups()
        files = hub.files[repo, revision]
        if what == "branch":
            return {}, 200
        if what == "tree":
            return [{"type": "file", "path": n, "oid": "0", "size": len(c)} for n, c in files.items()], 200
        if what == "preupload":
            names = [f["path"] for f in json.loads(body)["files"]]
            mode = {name: "lfs" if name.endswith(".safetensors") else "regular" for name in names}
            return {"files": [{"path": n, "uploadMode": m, "shouldIgnore": False} for n, m in mode.items()]}, 200
        for line in map(json.loads, body.decode().splitlines()):
            value = line["value"]
            if line["key"] == "header":
                hub.commits.append(value["summary"])
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = hub.large[value["oid"]]
            elif line["key"] == "deletedFolder":
                for name in [name for name in files if name.startswith(value["path"])]:
                    del files[name]
        return {"commitUrl": f"{hub.url}/{repo}/commit/1", "commitOid": "1"}, 200

    def _answer(self, what: Any, status: int) -> None:
        data = json.dumps(what).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Quiet."""


@contextmanager
def hub_server(monkeypatch: Any) -> Iterator[HubServer]:
    """A server in a thread, which huggingface_hub takes for the Hub, with a token that everyone has."""
    server = HubServer()
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.url)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)  # another protocol for large files
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_environment")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
