"""A job: refused before it starts, carried out once, taken up where it broke off."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError

from stages.contract import STAGES, Job, StageError, open_artifact
from stages.contract.artifact import work_folder
from stages.contract.job import JOB_FILE, execute, main
from stages.contract.settings import CaptureSettings, EvaluationSettings, InteractionSettings, Schedule

HEAVY = {"torch", "transformers", "ray", "mlflow", "accelerate", "peft", "numpy"}


def make_job(output: Path, *, force: bool = False, fingerprint: str = "f", **settings: object) -> Job:
    inputs = {"model": "/model", "samples": "/samples.jsonl"}
    values = {"stage": "evaluation", "settings": settings, "inputs": inputs, "output": str(output)}
    return Job(**values, force=force, fingerprint=fingerprint)


class Work:
    """A stage that writes two files and may break between them; counts how often it runs and what it found."""

    def __init__(self) -> None:
        self.runs = 0
        self.breaks = False
        self.found: list[str] = []

    def __call__(self, job: Job, work: Path) -> dict[str, Any]:
        self.runs += 1
        self.found = sorted(path.name for path in work.iterdir())
        (work / "first").write_text(str(self.runs))
        if self.breaks:
            raise StageError("evaluation: out of luck")
        (work / "second").write_text(str(self.runs))
        return {"overall": 0.5}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "store" / "evaluation" / "0123"


@pytest.fixture
def work() -> Work:
    return Work()


class TestExecute:
    """What stands at the output after each way a stage can end."""

    def test_a_stage_leaves_its_artifact_and_the_job_in_it(self, place: Path, work: Work) -> None:
        manifest = execute(make_job(place, max_new_tokens=7), work)
        assert manifest.summary == {"overall": 0.5}
        assert {file.path for file in manifest.files} == {"first", "second", JOB_FILE}
        assert open_artifact(place).manifest == manifest
        assert Job.model_validate_json((place / JOB_FILE).read_text()) == make_job(place, max_new_tokens=7)

    def test_a_finished_job_is_not_done_again(self, place: Path, work: Work) -> None:
        first = execute(make_job(place), work)
        assert execute(make_job(place), work) == first
        assert work.runs == 1

    def test_a_stage_that_raises_leaves_no_artifact(self, place: Path, work: Work) -> None:
        work.breaks = True
        with pytest.raises(StageError, match="out of luck"):
            execute(make_job(place), work)
        assert open_artifact(place) is None
        assert not place.exists()

    def test_the_next_run_takes_up_the_work_folder(self, place: Path, work: Work) -> None:
        """Red if it starts from nothing: every checkpoint would be lost."""
        work.breaks = True
        with pytest.raises(StageError):
            execute(make_job(place), work)
        work.breaks = False
        execute(make_job(place), work)
        assert "first" in work.found
        assert (place / "second").read_text() == "2"

    def test_work_of_another_recipe_is_thrown_away(self, place: Path, work: Work) -> None:
        work.breaks = True
        with pytest.raises(StageError):
            execute(make_job(place, fingerprint="f"), work)
        work.breaks = False
        execute(make_job(place, fingerprint="g"), work)
        assert "first" not in work.found

    def test_a_forced_attempt_starts_fresh_and_keeps_the_old_until_it_is_done(self, place: Path, work: Work) -> None:
        execute(make_job(place), work)
        work.breaks = True
        with pytest.raises(StageError):
            execute(make_job(place, force=True), work)
        assert "first" not in work.found
        old = open_artifact(place)
        old.verify()
        assert (place / "second").read_text() == "1"
        work.breaks = False
        execute(make_job(place, force=True), work)
        assert (place / "second").read_text() == "3"
        open_artifact(place).verify()
        assert not work_folder(place).exists()

    def test_a_forced_attempt_does_not_continue_broken_unforced_work(self, place: Path, work: Work) -> None:
        work.breaks = True
        with pytest.raises(StageError):
            execute(make_job(place), work)
        work.breaks = False
        execute(make_job(place, force=True), work)
        assert "first" not in work.found


class TestValidation:
    """A job that cannot work says why before anything starts."""

    def test_settings_get_the_class_of_their_stage_and_survive_json(self, place: Path) -> None:
        """Red if only the base class's fields were written: every setting would be its default again."""
        values = {"schedule": {"learning_rate": 5e-4}, "matching": {"strategy": "bottom-1"}}
        job = Job(stage="interaction", settings=values, inputs={"student": "s", "samples": "x"}, output=str(place))
        again = Job.model_validate_json(job.model_dump_json())
        assert again == job
        assert again.typed(InteractionSettings).schedule.learning_rate == 5e-4
        assert again.typed(InteractionSettings).matching.strategy == "bottom-1"

    def test_an_unknown_stage_is_named_with_the_known_ones(self, place: Path) -> None:
        with pytest.raises(ValidationError, match=r"stage: 'interacton' is unknown; allowed: .*capture, verbalization"):
            Job(stage="interacton", settings={}, inputs={}, output=str(place))

    def test_an_unknown_setting_is_named_with_its_place(self, place: Path) -> None:
        with pytest.raises(ValidationError) as error:
            make_job(place, max_new_token=7)
        assert [problem["loc"][-1] for problem in error.value.errors()] == ["max_new_token"]

    def test_unknown_and_missing_inputs_are_named(self, place: Path) -> None:
        with pytest.raises(ValidationError) as error:
            Job(stage="interaction", settings={}, inputs={"samples": "x", "teacher": "t"}, output=str(place))
        assert "inputs of interaction: unknown ['teacher'], missing ['student']" in str(error.value)
        assert "of which ['precompute', 'verbalization'] may be left out" in str(error.value)

    def test_an_unknown_input_alone_is_refused(self, place: Path) -> None:
        inputs = {"model": "m", "samples": "s", "teacher": "t"}
        with pytest.raises(ValidationError, match=r"unknown \['teacher'\], missing \[\]"):
            Job(stage="evaluation", settings={}, inputs=inputs, output=str(place))

    @pytest.mark.parametrize("stage", STAGES)
    def test_optional_inputs_may_be_left_out_and_no_others(self, stage: str, place: Path) -> None:
        needed = [name for name in STAGES[stage].inputs if name not in STAGES[stage].optional]
        Job(stage=stage, settings={}, inputs=dict.fromkeys(needed, "x"), output=str(place))
        for name in needed:
            rest = dict.fromkeys([other for other in needed if other != name], "x")
            with pytest.raises(ValidationError, match=rf"missing \['{name}'\]"):
                Job(stage=stage, settings={}, inputs=rest, output=str(place))

    @pytest.mark.parametrize("field", ["outptu", "worker"])
    def test_an_unknown_field_of_the_job_is_refused(self, field: str, place: Path) -> None:
        with pytest.raises(ValidationError, match=field):
            Job(stage="evaluation", settings={}, inputs={"model": "m", "samples": "s"}, output="o", **{field: 1})

    def test_settings_of_another_stage_are_refused_where_they_are_read(self, place: Path) -> None:
        with pytest.raises(TypeError, match="a evaluation job has EvaluationSettings, not CaptureSettings"):
            make_job(place).typed(CaptureSettings)
        assert make_job(place).typed(EvaluationSettings) == EvaluationSettings()

    def test_an_unknown_stage_with_typed_settings_is_named_too(self, place: Path) -> None:
        with pytest.raises(ValidationError, match="'interacton' is unknown"):
            Job(stage="interacton", settings=InteractionSettings(schedule=Schedule()), inputs={}, output=str(place))

    @pytest.mark.parametrize("stage", STAGES)
    def test_every_stage_is_a_module_of_its_name(self, stage: str) -> None:
        import stages

        assert (Path(stages.__path__[0]) / f"{stage}.py").is_file()


class TestCommandLine:
    """`python -m stages.<name>`: the same line everywhere."""

    @pytest.fixture
    def job_file(self, place: Path, work: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setitem(sys.modules, "stages.evaluation", SimpleNamespace(run=work))
        path = tmp_path / "job.json"
        path.write_text(make_job(place).model_dump_json())
        return path

    def test_success_is_0_and_names_the_artifact(
        self, job_file: Path, place: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main("evaluation", ["--job", str(job_file)]) == 0
        assert capsys.readouterr().out.startswith(f"evaluation: {place} (")
        assert open_artifact(place) is not None

    def test_a_finished_job_is_0_without_running(self, job_file: Path, work: Work) -> None:
        assert [main("evaluation", ["--job", str(job_file)]) for _ in range(2)] == [0, 0]
        assert work.runs == 1

    def test_the_job_may_be_given_as_it_is(self, job_file: Path, work: Work) -> None:
        assert main("evaluation", ["--job", job_file.read_text()]) == 0
        assert work.runs == 1

    def test_force_and_output_go_before_the_file(self, job_file: Path, work: Work, place: Path, tmp_path: Path) -> None:
        main("evaluation", ["--job", str(job_file)])
        assert main("evaluation", ["--job", str(job_file), "--force"]) == 0
        assert work.runs == 2
        assert main("evaluation", ["--job", str(job_file), "--output", str(tmp_path / "other")]) == 0
        assert work.runs == 3
        assert open_artifact(tmp_path / "other") is not None
        assert (place / "second").read_text() == "2"

    def test_a_stage_that_cannot_go_on_is_1_and_says_why(
        self, job_file: Path, work: Work, place: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """One line for a person, no traceback."""
        work.breaks = True
        assert main("evaluation", ["--job", str(job_file)]) == 1
        assert capsys.readouterr().err == "evaluation: out of luck\n"
        assert open_artifact(place) is None

    def test_a_damaged_artifact_is_1(self, job_file: Path, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
        main("evaluation", ["--job", str(job_file)])
        (place / "manifest.json").write_text("{")
        assert main("evaluation", ["--job", str(job_file)]) == 1
        assert "manifest.json cannot be read" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda job: job | {"settings": {"max_new_token": 1}}, "max_new_token"),
            (lambda job: job | {"stage": "evaluaton"}, "'evaluaton' is unknown; allowed: "),
            (lambda job: job | {"inputs": {"model": "m"}}, "missing ['samples']"),
            (lambda job: "no job", "job"),
        ],
        ids=["setting", "stage", "inputs", "not a job"],
    )
    def test_a_job_that_is_not_valid_is_2_and_says_why(
        self, job_file: Path, work: Work, capsys: pytest.CaptureFixture[str], change: Any, message: str
    ) -> None:
        job_file.write_text(json.dumps(change(json.loads(job_file.read_text()))))
        assert main("evaluation", ["--job", str(job_file)]) == 2
        assert message in capsys.readouterr().err
        assert work.runs == 0

    def test_a_job_of_another_stage_is_2(
        self, job_file: Path, work: Work, place: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        inputs = {"student": "s", "samples": "x"}
        job_file.write_text(Job(stage="reinforcement", settings={}, inputs=inputs, output=str(place)).model_dump_json())
        assert main("evaluation", ["--job", str(job_file)]) == 2
        assert "is a job for stage reinforcement, not evaluation" in capsys.readouterr().err

    def test_a_missing_job_file_is_2(self, job_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main("evaluation", ["--job", str(job_file.with_name("none.json"))]) == 2
        assert "none.json" in capsys.readouterr().err

    def test_help_of_a_real_stage_lists_inputs_and_defaults(self) -> None:
        """The whole program in a process of its own, as a container starts it."""
        command = [sys.executable, "-m", "stages.capture", "--help"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        for part in ("--job FILE", "teacher", "samples", "fraction = 0.03", "target_layers:", "stride = 4"):
            assert part in done.stdout, f"{part!r} is missing in\n{done.stdout}"


def test_asking_about_stages_imports_nothing_heavy() -> None:
    """`vlsi status` answers at once. Red if the contract imports torch, transformers, Ray or MLflow."""
    program = f"import sys, stages.contract.settings, stages.contract; print(sorted({HEAVY} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
