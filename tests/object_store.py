"""A real S3 server (moto) in a process of its own, which can be told to fail and to be slow.

    python -m tests.object_store PORT

`POST /faults` sets what happens to the requests that follow: `{"errors": 0.3}` answers so many of them
with 500, `{"slow": 2.0}` lets every GET of an object wait so many seconds first. It answers with the
number of requests that failed and how often each object was put.
"""

from __future__ import annotations

import json
import random
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

BUCKET = "cache"
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "test-access-key",
    "AWS_SECRET_ACCESS_KEY": "test-secret-key",
    "AWS_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


class Faults:
    """Stands before a WSGI application."""

    def __init__(self, application: Any, seed: int = 0) -> None:
        self._application = application
        self._random = random.Random(seed)
        self._settings = {"errors": 0.0, "slow": 0.0}
        self._failed = 0
        self._puts: Counter[str] = Counter()
        self._receiving: set[object] = set()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if environ["PATH_INFO"] == "/faults":
            return self._configure(environ, start_response)
        if self._random.random() < self._settings["errors"]:
            self._failed += 1
            start_response("500 Internal Server Error", [("Content-Type", "application/xml")])
            return [b"<Error><Code>InternalError</Code><Message>We encountered an internal error.</Message></Error>"]
        if environ["REQUEST_METHOD"] == "GET" and "list-type" not in environ["QUERY_STRING"]:
            time.sleep(self._settings["slow"])
        if environ["REQUEST_METHOD"] == "PUT":
            return self._put(environ, start_response)
        return self._application(environ, start_response)

    def _put(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        """Count what was stored: a client that is killed may have sent half of it."""
        statuses = []

        def started(status: str, *rest: Any) -> Any:
            statuses.append(status)
            return start_response(status, *rest)

        request = object()
        self._receiving.add(request)
        try:
            answer = list(self._application(environ, started))
            if statuses[-1].startswith("200"):
                self._puts[environ["PATH_INFO"]] += 1
        finally:
            self._receiving.remove(request)
        return answer

    def _configure(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        while self._receiving:
            time.sleep(0.001)
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        self._settings |= json.loads(body or b"{}")
        answer = json.dumps({"failed": self._failed, "puts": self._puts}).encode()
        start_response("200 OK", [("Content-Length", str(len(answer)))])
        return [answer]


class Server:
    """The running server, from outside."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint

    def faults(self, **settings: float) -> int:
        """Set what happens from now on; returns how many requests failed so far."""
        return self._ask(settings)["failed"]

    def puts(self, prefix: str) -> dict[str, int]:
        """How often each object below `bucket/prefix` was put."""
        puts = self._ask({})["puts"]
        return {path: count for path, count in puts.items() if path.startswith(f"/{BUCKET}/{prefix}")}

    def _ask(self, settings: dict[str, float]) -> dict[str, Any]:
        request = urllib.request.Request(f"{self.endpoint}/faults", json.dumps(settings).encode(), method="POST")
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)


@contextmanager
def serve() -> Iterator[Server]:
    """A server with an empty bucket."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.object_store", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    server = Server(f"http://127.0.0.1:{port}")
    try:
        _wait_for(server)
        bucket = urllib.request.Request(f"{server.endpoint}/{BUCKET}", method="PUT")
        urllib.request.urlopen(bucket, timeout=10)
        yield server
    finally:
        process.kill()
        process.wait()


def _wait_for(server: Server) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            server.faults()
            return
        except (urllib.error.URLError, ConnectionError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def main(port: int) -> None:
    """Serve until killed."""
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import run_simple

    application = DomainDispatcherApplication(create_backend_app)
    run_simple("127.0.0.1", port, Faults(application), threaded=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
