"""A Docker engine to test with: the one that runs, or one of our own; images; a cluster of containers.

Where no registry of images can be reached, everything is built from packages. BASE_IMAGE names a base that is there.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

ROOT = Path(__file__).parents[2]
PROJECT = "vlsi-test"
T = TypeVar("T")
CONFINED = (
    *("--rm", "--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"),
    *("--tmpfs", "/tmp", "--tmpfs", "/home/vlsi:uid=1000", "--tmpfs", "/data:uid=1000"),
)
"""How a container runs where nothing is allowed to it."""


class Engine:
    """Docker's command line."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.environment = os.environ | {"DOCKER_BUILDKIT": "1"} | environment

    def __call__(self, *arguments: str, check: bool = True) -> str:
        """The output of `docker …`, errors included."""
        return self.command([self.environment.get("DOCKER", "docker"), *arguments], check=check)

    def command(self, command: list[str], *, check: bool = True, **more: str) -> str:
        """The output of a command that uses this engine."""
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=self.environment | more,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert not check or done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-4000:]}"
        return done.stdout

    def works(self) -> bool:
        """Whether a daemon answers."""
        return "Server Version" in self("info", check=False)

    def build(self, folder: Path) -> None:
        """All images of the project, and those that compose.yaml would pull."""
        base = self.environment.get("BASE_IMAGE", f"{PROJECT}/base")
        if not self("images", "--quiet", base):
            self.command(["docker/test/base.sh", base])
        options = ["--network", "host", "--build-arg", f"BASE_IMAGE={base}", *_package_index(folder)]
        self.command(
            ["docker/build.sh", "--build-arg", "VARIANT=cpu", "--build-arg", "CPU_INDEX=", *options], TAG="test"
        )
        for target in ("postgres", "store"):
            tag = f"{PROJECT}/{target}"
            self("build", "--file", "docker/test/Dockerfile", "--target", target, "--tag", tag, *options, "docker/test")


@contextmanager
def engine(folder: Path) -> Iterator[Engine]:
    """The engine that runs on this machine, else one that is started for as long as it is needed."""
    found = Engine({})
    if found.works():
        yield found
        return
    address = f"unix://{folder}/docker.sock"
    command = ["dockerd", "--host", address, "--pidfile", f"{folder}/docker.pid"]
    command += ["--data-root", os.environ.get("DOCKER_DATA", f"{folder}/data"), "--exec-root", f"{folder}/run"]
    with (folder / "dockerd.log").open("wb") as log:
        daemon = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        found = Engine({"DOCKER_HOST": address})
        wait_for(found.works, 60)
        yield found
    finally:
        daemon.terminate()
        daemon.wait(60)


class Cluster:
    """The containers of compose.yaml."""

    def __init__(self, docker: Engine, folder: Path) -> None:
        self._docker = docker
        self._variables = folder / "compose.env"
        self.token = secrets.token_hex(16)
        self.jobs_port, self.mlflow_port = _free_port(), _free_port()
        values = {
            "RAY_AUTH_TOKEN": self.token,
            "POSTGRES_PASSWORD": secrets.token_hex(16),
            "AWS_ACCESS_KEY_ID": "vlsi",
            "AWS_SECRET_ACCESS_KEY": secrets.token_hex(16),
            "VLSI_TAG": "test",
            "POSTGRES_IMAGE": f"{PROJECT}/postgres",
            "STORE_IMAGE": f"{PROJECT}/store",
            "VLSI_JOBS_PORT": str(self.jobs_port),
            "VLSI_MLFLOW_PORT": str(self.mlflow_port),
        }
        self._variables.write_text("".join(f"{name}={value}\n" for name, value in values.items()))

    def compose(self, *arguments: str, check: bool = True) -> str:
        """The output of `docker compose …`."""
        return self._docker.command(self.command(*arguments), check=check)

    def command(self, *arguments: str) -> list[str]:
        """A `docker compose` command on this cluster."""
        program = ["docker-compose"] if shutil.which("docker-compose") else ["docker", "compose"]
        files = ["--file", "docker/compose.yaml", "--env-file", str(self._variables), "--project-name", PROJECT]
        return [*program, *files, *arguments]

    def start_vlsi(self, log: Path, *arguments: str) -> subprocess.Popen[bytes]:
        """`vlsi …` in a container beside the cluster."""
        with log.open("wb") as output:
            command = self.command("run", "-T", "--rm", "vlsi", *arguments)
            environment = self._docker.environment
            return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT)

    def put(self, folder: Path, place: str) -> None:
        """Copies a folder of this machine to where all containers see it, as theirs."""
        packed = subprocess.run(["tar", "--create", "--directory", folder, "."], stdout=subprocess.PIPE, check=True)
        unpack = f"mkdir --parents {place} && tar --extract --directory {place}"
        command = self.command("run", "-T", "--rm", "--entrypoint", "bash", "vlsi", "-c", unpack)
        subprocess.run(command, cwd=ROOT, env=self._docker.environment, input=packed.stdout, check=True)

    def kill(self, service: str) -> None:
        """As a crash does: without a word, and so that Docker's restart policy applies."""
        self.compose("exec", "-T", service, "bash", "-c", "kill -KILL -1", check=False)

    def processes(self, service: str) -> str:
        """What runs in a container."""
        container = self.compose("ps", "--quiet", service).strip()
        return self._docker("top", container, check=False)

    def jobs(self) -> dict[str, str]:
        """Status by submission id; none while the head is away."""
        try:
            found = self._get(self.jobs_port, "/api/jobs/", {"Authorization": f"Bearer {self.token}"})
        except OSError:
            return {}
        return {job["submission_id"]: job["status"] for job in found if job["submission_id"]}

    def is_running(self, stage: str) -> bool:
        """Whether a job of this stage runs."""
        return any(name.startswith(f"vlsi-{stage}-") and status == "RUNNING" for name, status in self.jobs().items())

    def mlflow_experiments(self) -> set[str]:
        """Names of the experiments on the tracking server."""
        found = self._get(self.mlflow_port, "/api/2.0/mlflow/experiments/search?max_results=100", {})
        return {experiment["name"] for experiment in found["experiments"]}

    def _get(self, port: int, path: str, headers: dict[str, str]) -> Any:
        request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers=headers)
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)


@contextmanager
def cluster(docker: Engine, folder: Path) -> Iterator[Cluster]:
    """A cluster, and nothing of it afterwards, nor of one whose test was killed."""
    found = Cluster(docker, folder)
    end = ("down", "--volumes", "--remove-orphans")
    found.compose(*end, check=False)
    try:
        found.compose("up", "--detach")
        yield found
    finally:
        (folder / "compose.log").write_text(found.compose("logs", "--no-color", check=False))
        found.compose(*end, check=False)


def wait_for(condition: Callable[[], T], seconds: float) -> T:
    """What it gives as soon as that is something; fails if it never is."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(1)
    return found


def _package_index(folder: Path) -> list[str]:
    """Build secrets by which pip trusts what this machine trusts."""
    certificate = os.environ.get("PIP_CERT")
    if not certificate:
        return []
    settings = folder / "pip.conf"
    settings.write_text("[global]\ncert = /run/secrets/ca.crt\ntimeout = 180\n")
    return ["--secret", f"id=pip.conf,src={settings}", "--secret", f"id=ca.crt,src={certificate}"]


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
