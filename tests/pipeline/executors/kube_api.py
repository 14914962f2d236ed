"""The few paths of the Kubernetes API that the executor uses, over HTTP, with what the test puts there."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml

RAYJOBS = "/apis/ray.io/v1/namespaces/vlsi/rayjobs"
CORE = "/api/v1/namespaces/vlsi"


class KubeApi:
    """Objects of one namespace, and how the server is to behave."""

    def __init__(self) -> None:
        self.rayjobs: dict[str, dict[str, Any]] = {}
        self.pods: list[dict[str, Any]] = []
        self.events: list[dict[str, Any]] = []
        self.logs: dict[str, str] = {}
        self.refusal: tuple[int, Any] | None = None
        self.headers: dict[str, str] = {}
        self.url = ""

    def answer(self, method: str, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        """Status and content."""
        if self.refusal is not None:
            return self.refusal
        name = path.removeprefix(RAYJOBS).strip("/")
        match method, path:
            case "GET", "/apis/ray.io/v1/namespaces/vlsi/rayjobs":
                return 200, {"items": list(self.rayjobs.values())}
            case "POST", "/apis/ray.io/v1/namespaces/vlsi/rayjobs":
                if (name := body["metadata"]["name"]) in self.rayjobs:
                    return failure(409, "AlreadyExists", f'rayjobs.ray.io "{name}" already exists')
                self.rayjobs[name] = body
                return 201, body
            case "GET", "/api/v1/namespaces/vlsi/pods":
                return 200, {"items": self.pods}
            case "GET", "/api/v1/namespaces/vlsi/events":
                return 200, {"items": self.events}
            case "GET", _ if path in self.logs:
                return 200, {"logs": self.logs[path]}
            case "GET", _ if name in self.rayjobs:
                return 200, self.rayjobs[name]
            case "DELETE", _ if name in self.rayjobs:
                return 200, self.rayjobs.pop(name)
        return failure(404, "NotFound", f"{path} not found")


def failure(code: int, reason: str, message: str) -> tuple[int, Any]:
    """A refusal as the API puts it."""
    return code, {"kind": "Status", "apiVersion": "v1", "code": code, "reason": reason, "message": message}


@contextmanager
def serve(kubeconfig: Path) -> Iterator[KubeApi]:
    """A server, and a kubeconfig that names it."""
    api = KubeApi()

    class Handler(BaseHTTPRequestHandler):
        def _handle(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            api.headers = dict(self.headers.items())
            code, content = api.answer(self.command, self.path.partition("?")[0], json.loads(body or b"{}"))
            answer = content.encode() if isinstance(content, str) else json.dumps(content).encode()
            self.send_response(code)
            self.send_header("Content-Type", "text/plain" if isinstance(content, str) else "application/json")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        do_GET = do_POST = do_DELETE = _handle

        def log_message(self, *_: Any) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    api.url = f"http://127.0.0.1:{server.server_port}"
    kubeconfig.write_text(yaml.safe_dump(_kubeconfig(api.url)))
    try:
        yield api
    finally:
        server.shutdown()
        server.server_close()


def _kubeconfig(url: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "test",
        "clusters": [{"name": "test", "cluster": {"server": url}}],
        "users": [{"name": "test", "user": {"token": "test"}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
    }
