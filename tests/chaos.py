"""`vlsi run`, undisturbed and then killed again and again.

    python -m tests.chaos PLAN.json

The plan names two lists of overrides and the kills. The driver and every stage are processes of their
own, as always; here they are forks of this one, so that what is heavy is imported once. A kill comes
after a stage has written so many lines of its journal and called so many functions more: it depends on no
clock. A Ray that stages of kills with Ray use is started for them and for nobody else.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import psutil
import ray.data
import ray.train.torch
import torch

import stages.capture
import stages.evaluation
import stages.interaction
import stages.precompute
import stages.reinforcement
import stages.training.loop
import stages.verbalization  # noqa: F401
from pipeline import cli, session
from pipeline.executors.local import LocalExecutor
from stages.contract import Journal, job, read_journal
from stages.contract.artifact import work_folder
from stages.contract.place import place_of, write_whole
from tests.processes import processes_below

POLL_SECONDS = 0.01
MOST_ATTEMPTS_MORE = 4
"""Than kills, before the run should have come to its end."""
PROCESS_OF_RAY = {"actor": "MapWorker(MapBatches(_Making))", "worker": "RayTrainWorker"}
RAY_CPUS = 4


@dataclass(frozen=True)
class Kill:
    """One SIGKILL.

    Attributes:
        stage: in which stage.
        target: `stage`, `driver` (the stage lives on), `both`; or, on Ray, an `actor` or a `worker`.
        line: after so many lines of the journal,
        calls: and so many calls of functions; on Ray at once.
    """

    stage: str
    target: str
    line: int
    calls: int

    def __str__(self) -> str:
        return f"{self.stage} ({self.target}), after {self.line} lines and {self.calls} calls"


SPARE = Kill("evaluation", "stage", 1, 0)
"""In the place of one that came too late: what runs on Ray goes on while it is being found."""


class Chaos:
    """Forks drivers and their stages, and kills them as planned."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._kills: list[Kill] = []
        self._stages: dict[int, tuple[Path, Kill | None]] = {}
        self._ray = 0
        self._done = 0

    def run(self, overrides: list[str], kills: list[Kill]) -> None:
        """Start again after each kill, until all are done and the run has come to its end."""
        self._kills = list(kills)
        for _ in range(len(kills) + MOST_ATTEMPTS_MORE):
            code = self._attempt(overrides)
            self._settle()
            if code == 0:
                break
        if code or self._kills:
            raise SystemExit(f"ended with {code}, {self._kills} not done; its words:\n{self._output.read_text()}")

    def close(self) -> None:
        """Leave no process behind."""
        for process in psutil.Process().children(recursive=True):
            process.kill()

    @property
    def _output(self) -> Path:
        return self._folder / "driver.log"

    @property
    def _mark(self) -> Path:
        """Is there once a kill has struck."""
        return self._folder / "struck"

    def _attempt(self, overrides: list[str]) -> int:
        """Fork a driver and serve it until it has ended; returns its exit code."""
        driver = fork(lambda: drive(overrides, self._folder), self._output)
        while True:
            for request in self._folder.glob("*.request"):
                self._start_stage(request, driver)
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == driver:
                return os.waitstatus_to_exitcode(status)
            if pid in self._stages:
                self._end_stage(pid, os.waitstatus_to_exitcode(status))
            if pid == 0:
                time.sleep(POLL_SECONDS)

    def _start_stage(self, request: Path, driver: int) -> None:
        asked = json.loads(request.read_text())
        request.unlink()
        self._settle()
        kill = self._kills[0] if self._kills and self._kills[0].stage == asked["stage"] else None
        if kill and kill.target in PROCESS_OF_RAY:
            asked["environment"]["RAY_ADDRESS"] = self._start_ray()
        mark, host = self._mark, self._ray
        pid = fork(lambda: work(asked, kill, mark, driver, host), Path(asked["log"]))
        self._stages[pid] = (request, kill)

    def _end_stage(self, pid: int, code: int) -> None:
        request, kill = self._stages.pop(pid)
        write_whole(request.with_suffix(".code"), str(code))
        if code == 0 and kill in self._kills and not self._mark.is_file():
            self._kills.remove(kill)
            self._kills.append(SPARE)

    def _settle(self) -> None:
        """See whether the kill that is next was done."""
        if self._mark.is_file():
            self._mark.unlink()
            self._done += 1
            print(f"kill {self._done}: {self._kills.pop(0)}", flush=True)

    def _start_ray(self) -> str:
        address = self._folder / "ray.txt"
        if not self._ray:
            self._ray = fork(lambda: host_ray(address), self._folder / "ray.log")
            while not address.is_file():
                time.sleep(POLL_SECONDS)
        return address.read_text()


def stay(parent: int) -> None:
    """Wait a moment; end with the process that started this one."""
    if os.getppid() != parent:
        sys.exit()
    time.sleep(POLL_SECONDS)


def fork(target: Callable[[], object], output: Path) -> int:
    """Call a function in a process with a group and an output of its own; returns its number."""
    if pid := os.fork():
        return pid
    os.setsid()
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, sys.stdout.fileno())
    os.dup2(descriptor, sys.stderr.fileno())
    code: object = 1
    try:
        code = target()
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code if isinstance(code, int) else 0)


def drive(overrides: list[str], folder: Path) -> None:
    """`vlsi run` without its report; it asks for its stages in the folder of requests, and they need no Ray."""
    requests, parent = count(), os.getppid()

    def ask(self: LocalExecutor, command: list[str], output: int, environment: dict[str, str]) -> int:
        request = folder / f"{os.getpid()}-{next(requests)}.request"
        asked = {
            "stage": command[2].removeprefix("stages."),
            "arguments": command[3:],
            "log": os.readlink(f"/proc/self/fd/{output}"),
            "environment": dict(environment),
        }
        write_whole(request, json.dumps(asked))
        answer = request.with_suffix(".code")
        while not answer.is_file():
            stay(parent)
        return int(answer.read_text())

    LocalExecutor._wait = ask  # type: ignore[method-assign]
    session.render = lambda *_: ""  # type: ignore[attr-defined]
    os.environ["RAY_ADDRESS"] = "unused"
    sys.argv = ["vlsi", "run", *overrides]
    cli.main()


def work(asked: dict[str, Any], kill: Kill | None, mark: Path, driver: int, ray_host: int) -> int:
    """A stage, with the kill that awaits it."""
    os.environ.update(asked["environment"])
    if kill and kill.target in PROCESS_OF_RAY:
        output = put_on_ray(Path(asked["arguments"][-1]))
        threading.Thread(target=kill_on_ray, args=(kill, work_folder(place_of(output)), mark, ray_host)).start()
    elif kill:
        arm(kill, mark, driver)
    return job.main(asked["stage"], asked["arguments"])


def put_on_ray(file: Path) -> str:
    """Give the job of a file a worker of Ray; returns its output."""
    told = json.loads(file.read_text())
    told["resources"] |= {"workers": 1, "cpus_per_worker": 0.5}
    file.write_text(json.dumps(told))
    return str(told["output"])


def arm(kill: Kill, mark: Path, driver: int) -> None:
    """Let this process, or its driver, be killed."""
    lines, calls, write = count(1), count(), Journal.write

    def strike(frame: object, event: str, argument: object) -> None:
        if event != "call" or next(calls) < kill.calls:
            return
        sys.setprofile(None)
        mark.touch()
        if kill.target in ("driver", "both"):
            os.kill(driver, signal.SIGKILL)
        if kill.target in ("stage", "both"):
            os.kill(os.getpid(), signal.SIGKILL)

    def write_and_count(self: Journal, step: int, **numbers: Any) -> None:
        write(self, step, **numbers)
        if next(lines) == kill.line:
            sys.setprofile(strike)

    Journal.write = write_and_count  # type: ignore[method-assign]


def kill_on_ray(kill: Kill, folder: Any, mark: Path, host: int) -> None:
    """Kill a process of our own Ray and of no other."""
    while not (victims := processes_below(host, PROCESS_OF_RAY[kill.target])):
        time.sleep(POLL_SECONDS)
    while len(read_journal(folder)) < kill.line:
        time.sleep(POLL_SECONDS)
    victims[-1].kill()
    mark.touch()


def host_ray(address: Path) -> None:
    """Start a Ray and stay as long as it is wanted."""
    parent = os.getppid()
    context = ray.init(num_cpus=RAY_CPUS, include_dashboard=False, log_to_driver=False)
    write_whole(address, context.address_info["gcs_address"])
    try:
        while True:
            stay(parent)
    finally:
        ray.shutdown()


def main(plan: Path) -> None:
    """Undisturbed, then disturbed."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    told = json.loads(plan.read_text())
    chaos = Chaos(plan.parent)
    try:
        chaos.run(told["undisturbed"], [])
        chaos.run(told["disturbed"], [Kill(**kill) for kill in told["kills"]])
    finally:
        chaos.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
