"""What can be known of the images and of compose.yaml without building anything."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

from stages.contract import STAGES

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
DOCKERFILE = ROOT / "docker/Dockerfile"
DOCKERFILES = (DOCKERFILE, ROOT / "docker/test/Dockerfile")
SCRIPTS = sorted((ROOT / "docker").rglob("*.sh"))
COMPOSE = ROOT / "docker/compose.yaml"
OURS = ("vlsi/pipeline", "vlsi/mlflow")


def targets() -> dict[str, str]:
    """The instructions of each target of the Dockerfile."""
    parts = re.split(r"^FROM (?:\S+) AS (\S+)$", DOCKERFILE.read_text(), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def services() -> dict[str, Any]:
    return yaml.safe_load(COMPOSE.read_text())["services"]


def example() -> str:
    return (ROOT / "docker/.env.example").read_text()


def requirements(*names: str) -> list[Requirement]:
    command = [sys.executable, "docker/requirements.py", *names]
    lines = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()
    return [Requirement(line) for line in lines]


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return {name.lower().replace("_", "-"): version for name, _, version in (line.partition("==") for line in lines)}


def test_there_is_an_image_for_every_stage_the_command_and_the_server() -> None:
    assert set(targets()) - {"system", "base"} == {*STAGES, "pipeline", "mlflow"}


@pytest.mark.parametrize("stage", STAGES)
def test_an_image_of_a_stage_starts_that_stage(stage: str) -> None:
    entrypoint = json.loads(targets()[stage].partition("ENTRYPOINT ")[2])
    assert entrypoint == ["python", "-m", f"stages.{stage}"]


@pytest.mark.parametrize("target", ["base", "mlflow"])
def test_every_image_has_an_unprivileged_user_and_a_health_check(target: str) -> None:
    assert "USER 1000:1000" in targets()[target]
    assert "HEALTHCHECK" in targets()[target]


def test_the_package_index_is_known_to_a_build_as_secrets_only() -> None:
    text = DOCKERFILE.read_text()
    installs = [run for run in re.findall(r"^RUN (?:.*\\\n)*.*$", text, re.MULTILINE) if "--constraint" in run]
    assert installs
    assert all("type=secret,id=pip.conf" in run for run in installs)
    assert not re.search(r"^(ARG|ENV).*(PASSWORD|TOKEN|SECRET|INDEX_URL)", text, re.MULTILINE)


def test_what_images_copy_is_let_through_and_nothing_else_is() -> None:
    let_through = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    lines = re.findall(r"^COPY (.*) \S+$", DOCKERFILE.read_text(), re.MULTILINE)
    copied = {source for line in lines for source in line.split()}
    assert copied == let_through
    assert all((ROOT / source).exists() for source in copied)


@pytest.mark.parametrize("names", [("dependencies", "k8s"), ("server",)])
def test_everything_that_images_install_by_name_is_pinned(names: tuple[str, ...]) -> None:
    wanted = requirements(*names)
    assert wanted
    unpinned = [str(r) for r in wanted if not r.specifier.contains(pins().get(r.name.lower(), "0"))]
    assert unpinned == []


def test_dockerfiles_satisfy_hadolint() -> None:
    done = subprocess.run([BIN / "hadolint", *DOCKERFILES], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_scripts_satisfy_shellcheck() -> None:
    done = subprocess.run([BIN / "shellcheck", *SCRIPTS], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_a_cluster_has_a_head_two_workers_a_server_its_database_and_a_store() -> None:
    cluster = {name: service["image"] for name, service in services().items() if "profiles" not in service}
    assert set(cluster) == {"head", "worker-1", "worker-2", "mlflow", "postgres", "store", "buckets"}
    assert {image.partition("}")[2].partition(":")[0] for image in cluster.values()} == {*OURS, ""}
    assert "${POSTGRES_IMAGE:-" in cluster["postgres"]
    assert "${STORE_IMAGE:-" in cluster["store"]


def test_compose_and_kubernetes_use_the_version_of_the_package() -> None:
    version = re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version
    assert f"${{VLSI_TAG:-{version[1]}}}" in COMPOSE.read_text()
    assert f"newTag: {version[1]}}}" in (ROOT / "k8s/base/kustomization.yaml").read_text()


@pytest.mark.parametrize("name", services())
def test_a_container_can_write_to_its_mounts_only_and_has_no_rights(name: str) -> None:
    service = services()[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not service.get("privileged")
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))


def test_what_compose_asks_of_the_environment_is_in_the_example() -> None:
    asked = set(re.findall(r"\$\{(\w+)[:}]", COMPOSE.read_text()))
    assert asked <= set(re.findall(r"^(?:# )?(\w+)=", example(), re.MULTILINE))


def test_the_example_holds_no_secret() -> None:
    secrets = {line.partition("=")[0]: line.partition("=")[2] for line in example().splitlines() if line[:1] != "#"}
    assert {secrets[name] for name in ("RAY_AUTH_TOKEN", "POSTGRES_PASSWORD", "AWS_SECRET_ACCESS_KEY")} == {""}
