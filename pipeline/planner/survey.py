"""A survey: what an experiment's samples look like, measured on some of them in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from pipeline.experiment import Experiment
from pipeline.identity import fingerprint
from pipeline.planner.models import ModelSize
from pipeline.planner.shards import RowKey
from stages.contract.place import Place, write_whole
from stages.contract.settings import CaptureSettings, ModelLoading, PrecomputeSettings, Preprocessing

SURVEYS_FOLDER = "surveys"
"""Of a store: what was found, by what was asked."""
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "RAY_AUTH_MODE": "disabled"}


class SurveyError(Exception):
    """The samples cannot be measured; the message says why."""


class Request(BaseModel):
    """What a survey is told.

    Attributes:
        teacher, student: checkpoints.
        samples: the sample file.
        patch_numbers: pixels of a patch of the teacher's vision tower.
        teacher_parameters: for the decision to rehearse.
        verbalization: the artifact with trained verbalizers, where there is one.
        rehearse: whether the caches of the chosen samples are made, if that is cheap.
    """

    model_config = ConfigDict(frozen=True)

    teacher: str
    student: str
    samples: str
    loading: ModelLoading
    preprocessing: Preprocessing
    patch_numbers: int
    teacher_parameters: int
    capture: CaptureSettings
    precompute: PrecomputeSettings | None
    verbalization: str | None
    rehearse: bool = True


class Survey(BaseModel):
    """What was found.

    Attributes:
        samples: lines of the sample file.
        vocabulary: real token ids.
        process_bytes: of a worker before it loads a model.
        text_tokens, image_tokens, response_tokens: of a sample, on average; responses are no part of the text.
        longest_tokens: of the longest of the chosen samples.
        patches, patches_per_picture: of a sample, on average.
        keys: of the chosen samples' rows.
        rehearsed: bytes of the chosen samples' caches by codec, and `states`; empty without a rehearsal.
        trained: whether that was with trained verbalizers.
    """

    model_config = ConfigDict(frozen=True)

    samples: int
    vocabulary: int
    process_bytes: int
    text_tokens: float
    image_tokens: float
    response_tokens: float
    longest_tokens: int
    patches: float
    patches_per_picture: float
    keys: tuple[RowKey, ...]
    rehearsed: dict[str, int] = {}
    trained: bool = False


def request_of(experiment: Experiment, teacher: ModelSize, verbalization: str | None, *, rehearse: bool) -> Request:
    """What is to be measured of an experiment."""
    return Request(
        teacher=experiment.teacher.place,
        student=experiment.student.place,
        samples=experiment.data.train,
        loading=experiment.teacher.loading,
        preprocessing=experiment.data.preprocessing,
        patch_numbers=teacher.vision.patch_numbers,
        teacher_parameters=teacher.parameters,
        capture=experiment.capture,
        precompute=experiment.precompute,
        verbalization=verbalization,
        rehearse=rehearse,
    )


def survey(request: Request, memory: Place) -> Survey:
    """Measure an experiment's samples in a process of its own, once: `memory` keeps what was found.

    Raises:
        SurveyError: there is no sample file, or the teacher's processor is not on this machine.
    """
    if not Path(request.samples).is_file():
        raise SurveyError(f"there is no {os.path.relpath(request.samples)}")
    kept = memory / f"{_digest(request)}.json"
    if kept.is_file():
        return Survey.model_validate_json(kept.read_text())
    found = _measured_apart(request)
    memory.mkdir(parents=True, exist_ok=True)
    write_whole(kept, found.model_dump_json())
    return found


def _digest(request: Request) -> str:
    """Of the request and of the state of the files it names."""
    folders = [Path(place) for place in (request.teacher, request.student) if Path(place).is_dir()]
    files = [Path(request.samples), *(path for folder in folders for path in sorted(folder.iterdir()))]
    states = [(stat.st_size, stat.st_mtime_ns) for stat in (file.stat() for file in files)]
    return fingerprint({"request": request.model_dump(mode="json"), "files": states})


def _measured_apart(request: Request) -> Survey:
    command = [sys.executable, "-m", "pipeline.planner.measuring"]
    done = subprocess.run(command, input=request.model_dump_json(), capture_output=True, text=True, env=_environment())
    if done.returncode != 0:
        raise SurveyError((done.stderr.strip() or "the survey failed").splitlines()[-1])
    return Survey.model_validate_json(done.stdout.splitlines()[-1])


def _environment() -> dict[str, str]:
    """Offline, and with this package on the path whatever the current folder is."""
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    return os.environ | OFFLINE | {"PYTHONPATH": path}
