"""A Hugging Face hub on 127.0.0.1: the requests of an upload and of a download, in memory."""

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

SHA = "c" * 40  # the only commit of every repository


@dataclass
class Hub:
    """Address and contents.

    Attributes:
        address: http://127.0.0.1:PORT.
        repositories: files by path, by name of the repository.
        private: names of private repositories.
        tokens: Authorization headers of all requests.
        faults: status and error code of the answer to everything about a repository, by its name.
    """

    address: str
    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: set[str] = field(default_factory=set)
    tokens: set[str | None] = field(default_factory=set)
    faults: dict[str, tuple[int, str]] = field(default_factory=dict)

    def create(self, name: str, fields: dict) -> dict:
        self.repositories.setdefault(name, {})
        self.private |= {name} if fields.get("visibility") == "private" else set()
        return {"url": f"{self.address}/{name}"}

    def preupload(self, body: bytes) -> dict:
        """Ask for all files in the body of the commit: the hub takes large ones apart from it."""
        paths = [file["path"] for file in json.loads(body)["files"]]
        mode = {"uploadMode": "regular", "shouldIgnore": False, "oid": None}
        return {"files": [{"path": path, **mode} for path in paths]}

    def commit(self, name: str, body: bytes) -> dict:
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                content = base64.b64decode(line["value"]["content"])
                self.repositories[name][line["value"]["path"]] = content
        return {"commitUrl": f"{self.address}/{name}/commit/{SHA}", "commitOid": SHA}

    def info(self, name: str) -> dict | None:
        return {"id": name, "sha": SHA} if name in self.repositories else None

    def tree(self, name: str) -> list[dict]:
        files = self.repositories[name].items()
        entries = [{"path": path, "size": len(data), "oid": _hash(data)} for path, data in files]
        return [{"type": "file"} | entry for entry in entries]


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *args: object) -> None:
        pass

    def _reply(self, status: int, data: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _json(self, answer: dict | list | None) -> None:
        if answer is None:
            self._reply(404, b"{}", X_Error_Code="RepoNotFound")
        else:
            self._reply(200, json.dumps(answer).encode(), Content_Type="application/json")

    def _words(self) -> list[str]:
        self.hub.tokens.add(self.headers.get("Authorization"))
        return self.path.partition("?")[0].strip("/").split("/")

    def do_POST(self) -> None:
        words = self._words()
        length = self.headers.get("Content-Length")
        body = self.rfile.read(int(length)) if length else self._chunks()
        if words == ["api", "repos", "create"]:
            fields = json.loads(body)
            name = f"{fields['organization']}/{fields['name']}"
            if not self._fails(name):
                self._json(self.hub.create(name, fields))
        elif words[-2] == "preupload":
            self._json(self.hub.preupload(body))
        elif words[-2] == "commit":
            self._json(self.hub.commit("/".join(words[2:4]), body))
        elif b"license: invalid" in body:
            answer = {"errors": [{"message": "license must be one of …"}], "warnings": []}
            self._reply(400, json.dumps(answer).encode())
        else:
            self._json({"errors": [], "warnings": []})  # of validate-yaml

    def _fails(self, name: str) -> bool:
        """Answer with the fault of a repository, if it has one."""
        status, code = self.hub.faults.get(name, (0, ""))
        if status:
            self._reply(status, b"{}", X_Error_Code=code)
        return status != 0

    def _chunks(self) -> bytes:
        data = b""
        while size := int(self.rfile.readline(), 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        return data

    def do_GET(self) -> None:
        words = self._words()
        if words[:2] == ["api", "models"]:
            name = "/".join(words[2:4])
            if not self._fails(name):
                self._json(self.hub.tree(name) if "tree" in words else self.hub.info(name))
        elif "resolve" in words:  # /USER/NAME/resolve/REVISION/PATH
            data = self.hub.repositories["/".join(words[:2])]["/".join(words[4:])]
            self._reply(200, data, ETag=f'"{_hash(data)}"', X_Repo_Commit=SHA)
        else:
            self._json(None)

    do_HEAD = do_GET


@contextmanager
def hub_server() -> Iterator[Hub]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub = Hub(f"http://127.0.0.1:{server.server_port}")
    server.RequestHandlerClass = type("HandlerOfHub", (Handler,), {"hub": hub})
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
