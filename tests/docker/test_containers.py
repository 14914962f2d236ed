"""The images, and the digits demo on a cluster of containers that lose their processes on the way.

Opt-in, `make test-containers`: it builds everything (30 GB). Models that `make demo` has prepared on this machine are
used, so that they are not trained again.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from stages.contract import STAGES
from tests.docker.engine import CONFINED, Cluster, Engine, cluster, engine, wait_for

pytestmark = [pytest.mark.containers, pytest.mark.timeout(3600)]

ROOT = Path(__file__).parents[2]
IMAGES = [*STAGES, "pipeline", "mlflow"]
ON_RAY = ("executor=ray_jobs", "experiment=digits")
FEW_STEPS = (
    "prepare.teacher_training={vision_steps: 2, reading_steps: 2, answering_steps: 2}",
    "prepare.backbone_training={vision_steps: 2, reading_steps: 2}",
)
STAGE_SECONDS = 1200
RUN_SECONDS = 1800
MIDDLE_SECONDS = 5
"""After which a stage that has begun is not done yet."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("containers")


@pytest.fixture(scope="module")
def docker(folder: Path) -> Iterator[Engine]:
    with engine(folder) as found:
        started = time.monotonic()
        found.build(folder)
        print(f"\nimages built in {time.monotonic() - started:.0f} s")
        print(found("images", "--format", "{{.Repository}}:{{.Tag}} {{.Size}}"))
        yield found


@pytest.fixture(scope="module")
def running(docker: Engine, folder: Path) -> Iterator[Cluster]:
    with cluster(docker, folder) as found:
        yield found


@pytest.fixture(scope="module", autouse=True)
def prepared(running: Cluster, folder: Path) -> Callable[[], str]:
    """Models and data are there, or made while images are looked at; what is returned waits for them."""
    made = ROOT / os.environ.get("VLSI_STORE", "vlsi-store") / "prepared/digits"
    if made.is_dir():
        running.put(made, "/data/prepared/digits")
    log = folder / "prepare.log"
    command = running.start_vlsi(log, "prepare", *ON_RAY)
    return lambda: ended_well(command, log, STAGE_SECONDS)


def inside(docker: Engine, image: str, script: str, user: str = "1000") -> str:
    """What a script prints in a container that may do nothing."""
    return docker("run", *CONFINED, "--user", user, "--entrypoint", "bash", f"vlsi/{image}:test", "-c", script)


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_starts_with_a_read_only_root(docker: Engine, image: str) -> None:
    assert "--help" in docker("run", *CONFINED, f"vlsi/{image}:test", "--help")


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_runs_as_user_1000_and_cannot_change_itself(docker: Engine, image: str) -> None:
    assert docker("inspect", "--format", "{{.Config.User}}", f"vlsi/{image}:test").strip() == "1000:1000"
    assert "Read-only file system" in inside(docker, image, "touch /app/x 2>&1; true")


@pytest.mark.parametrize("image", ["pipeline", "mlflow"])
def test_an_image_holds_what_is_pinned(docker: Engine, image: str) -> None:
    pins = set((ROOT / "constraints.txt").read_text().lower().replace("_", "-").split())
    installed = inside(docker, image, "pip list --format freeze --exclude pip --exclude vlsi-distill 2>/dev/null")
    assert set(installed.lower().replace("_", "-").split()) - pins == set()


@pytest.mark.parametrize("image", ["pipeline", "mlflow"])
def test_an_image_holds_no_compiler_cache_or_secret(docker: Engine, image: str) -> None:
    search = "type -p gcc cc make; find ~root/.cache /run/secrets /etc/pip.conf -type f -size +0 2>/dev/null; true"
    assert inside(docker, image, search, user="0") == ""


def test_a_login_shell_finds_ray_and_python(docker: Engine) -> None:
    found = docker("run", *CONFINED, "--entrypoint", "bash", "vlsi/interaction:test", "-lc", "type -p ray python")
    assert found.split() == ["/opt/vlsi/bin/ray", "/opt/vlsi/bin/python"]


def test_models_are_made_by_a_job(running: Cluster, prepared: Callable[[], str], folder: Path) -> None:
    prepared()
    before = running.jobs().keys()
    log = folder / "few.log"
    said = ended_well(running.start_vlsi(log, "prepare", *ON_RAY, "name=few", *FEW_STEPS), log, STAGE_SECONDS)
    assert re.search(r"models and data +/data/prepared/few", said)
    made = {name: status for name, status in running.jobs().items() if name not in before}
    assert list(made.values()) == ["SUCCEEDED"]
    assert next(iter(made)).startswith("vlsi-prepare-")


def test_the_demo_survives_the_loss_of_its_head_and_of_a_worker(
    running: Cluster, prepared: Callable[[], str], folder: Path
) -> None:
    """Both strike the student's own chain; what is compared with it follows, two stages at a time."""
    prepared()
    log = folder / "student.log"
    student = running.start_vlsi(log, "run", *ON_RAY, "--until", "interaction", "~variants")
    wait_for(lambda: running.is_running("capture"), STAGE_SECONDS)
    time.sleep(MIDDLE_SECONDS)
    running.kill("head")
    worker = wait_for(lambda: training_worker(running), STAGE_SECONDS)
    time.sleep(MIDDLE_SECONDS)
    running.kill(worker)
    ended_well(student, log, RUN_SECONDS)
    attempts = [name.rpartition("-")[2] for name in running.jobs() if name.startswith("vlsi-interaction-")]
    assert max(map(int, attempts)) > 1
    log = folder / "run.log"
    said = ended_well(running.start_vlsi(log, "run", *ON_RAY), log, RUN_SECONDS)
    print(said)
    assert re.search(r"VLsI( +\d+\.\d){8}", said)
    assert "vlsi" in running.mlflow_experiments()


def test_a_stage_is_submitted_by_hand(running: Cluster) -> None:
    script = 'ray job submit -- python -m stages.interaction --job "$(vlsi job interaction)"'
    said = running.compose("run", "-T", "--rm", "--entrypoint", "bash", "vlsi", "-c", script)
    assert "interaction: s3://vlsi/interaction/" in said
    assert "succeeded" in said


def ended_well(command: subprocess.Popen[bytes], log: Path, seconds: float) -> str:
    """What a command has said when it has ended, without an error."""
    assert command.wait(seconds) == 0, log.read_text()
    return log.read_text()


def training_worker(running: Cluster) -> str:
    """The container in which a worker of interaction trains, or nothing."""
    if not running.is_running("interaction"):
        return ""
    training = [name for name in ("worker-1", "worker-2") if "RayTrainWorker" in running.processes(name)]
    return training[0] if training else ""
