"""Benchmarks as nodes of the graph: what runs, what is reused, what the answers are worth."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.benchmarks import Benchmarks, parse
from pipeline.config import ConfigError
from pipeline.garbage import find_garbage
from pipeline.harness import lmms_eval_command, vlmevalkit_configuration
from pipeline.history import History
from pipeline.identity import Digests, MissingInput
from stages.benchmarks import BENCHMARKS
from stages.benchmarks.scoring import score
from stages.contract.place import Place
from tests.pipeline.conftest import FakeExecutor
from tests.stages.benchmarks import published

Ask = Callable[..., tuple[int, str]]
RIGHT = {"teacher": 18, "backbone": 8, "vlsi": 15}
"""Of 20 questions."""


class Answering(FakeExecutor):
    """An evaluation that answers as many questions right as its model can, or is not judged."""

    def _stage(self, job: Any, work: Place) -> dict[str, Any]:
        if job.stage != "evaluation":
            return super()._stage(job, work)
        model = next(
            (name for name in ("teacher", "backbone") if f"prepared/digits/{name}" in job.inputs["model"]), "vlsi"
        )
        judged = not BENCHMARKS[job.settings.benchmark].needs_judge
        rows = [
            {"item": str(place), "task": "", "correct": float(place < RIGHT[model]) if judged else None}
            for place in range(20)
        ]
        (work / "predictions").mkdir()
        schema = pa.schema([("item", pa.string()), ("task", pa.string()), ("correct", pa.float64())])
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), str(work / "predictions" / "shard-000000.parquet"))
        metrics = {"f1": 0.5, "yes_ratio": 0.25} if job.settings.benchmark == "pope" else {}
        return {**score(rows), "metrics": metrics, "quarantined": 1, "decoding": "greedy"}


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch) -> Answering:
    executor = Answering()
    monkeypatch.setattr("pipeline.benchmarks.make_executor", lambda settings: executor)
    return executor


@pytest.fixture
def mmbench(world: Path) -> Path:
    return published.write_table(world / "MMBench_DEV_EN.tsv", [published.mmbench_row(1)])


@pytest.fixture
def pope(world: Path) -> Path:
    published.write_picture(world / "val2014/a.jpg", 1)
    rows = [{"question_id": 1, "image": "a.jpg", "text": "Is there?", "label": "yes"}]
    return published.write_lines(world / "coco_pope_random.json", rows)


@pytest.fixture
def evaluate(world: Path, answering: Answering, call_vlsi: Ask) -> Ask:
    """`vlsi evaluate` with stages that only write; the run of the chain itself is part of it."""

    def evaluate(*arguments: str) -> tuple[int, str]:
        answering.jobs.clear()
        return call_vlsi("evaluate", *arguments, width=140)

    return evaluate


def test_all_models_are_asked_once(evaluate: Ask, answering: Answering, mmbench: Path, pope: Path) -> None:
    code, printed = evaluate("--benchmark", f"mmbench={mmbench}", "--benchmark", str(pope))
    assert code == 0, printed
    evaluations = [job for job in answering.jobs if job.stage == "evaluation"]
    assert sorted((job.settings.benchmark, Path(job.inputs["samples"]).name) for job in evaluations) == [
        *[("mmbench", "MMBench_DEV_EN.tsv")] * 3,
        *[("pope", "coco_pope_random.json")] * 3,
    ]
    assert "interaction" in answering.stages, "the student was made on the way"
    code, printed = evaluate("--benchmark", f"mmbench={mmbench}", "--benchmark", str(pope))
    assert (code, answering.stages) == (0, [])
    lines = [line.split() for line in printed.splitlines()]
    assert ["mmbench", "90.0", "±12.5", "40.0", "±20.0", "75.0", "±17.5", "20"] in lines, printed
    assert ["F1", "50.0", "50.0", "50.0"] in lines
    assert "mmbench small backbone +35.0" in " ".join(printed.split())
    assert "pope: 1 of its rows could not be used" in printed


def test_a_changed_file_or_picture_is_asked_again(evaluate: Ask, answering: Answering, world: Path, pope: Path) -> None:
    arguments = ("--benchmark", f"pope={pope}", "--model", "backbone")
    evaluate(*arguments)
    published.write_picture(world / "val2014/a.jpg", 2)
    evaluate(*arguments)
    assert answering.stages == ["evaluation"]
    evaluate(*arguments, "evaluation.num_beams=3")
    assert answering.stages == ["evaluation"]


def test_models_are_chosen_by_name(evaluate: Ask, answering: Answering, mmbench: Path) -> None:
    assert evaluate("--benchmark", str(mmbench), "--model", "backbone")[0] == 0
    assert answering.stages == ["evaluation"]
    code, printed = evaluate("--benchmark", str(mmbench), "--model", "student")
    assert (code, "'student' is no model of digits; allowed: teacher, backbone" in printed) == (2, True), printed


def test_forced_evaluations_alone_run_again(evaluate: Ask, answering: Answering, mmbench: Path) -> None:
    arguments = ("--benchmark", str(mmbench), "--model", "backbone", "--model", "teacher")
    evaluate(*arguments)
    evaluate(*arguments, "--force")
    assert answering.stages == ["evaluation"] * 2


def test_nothing_runs_dry(evaluate: Ask, answering: Answering, mmbench: Path) -> None:
    code, printed = evaluate("--benchmark", str(mmbench), "--dry-run")
    assert (code, answering.jobs) == (0, [])
    assert "evaluation@teacher:mmbench" in printed


def test_programs_get_json(evaluate: Ask, mmbench: Path) -> None:
    code, printed = evaluate("--benchmark", str(mmbench), "--json")
    document = json.loads(printed[printed.index("{\n") : printed.rindex("}") + 1])
    (benchmark,) = document["benchmarks"]
    assert code == 0
    assert [(model["model"], model["score"], model["questions"]) for model in benchmark["models"]] == [
        ("teacher", 0.9, 20),
        ("backbone", 0.4, 20),
        ("vlsi", 0.75, 20),
    ]
    assert benchmark["differences"]["teacher"]["difference"] == pytest.approx(-0.15)
    assert all(model["interval"][0] <= model["score"] <= model["interval"][1] for model in benchmark["models"])


def test_answers_without_a_judge_are_said_to_be_so(evaluate: Ask, world: Path) -> None:
    entry = {"imagename": "a.png", "question": "?", "answer": "x", "capability": ["ocr"]}
    file = published.write_json(world / "mm-vet.json", {"v1": entry})
    code, printed = evaluate("--benchmark", str(file), "--model", "teacher")
    assert (code, "not judged" in printed, "evaluation.judge=" in printed) == (0, True, True)


def test_what_fails_stops_nothing_else(evaluate: Ask, answering: Answering, mmbench: Path) -> None:
    answering.failing = {"interaction"}
    code, printed = evaluate("--benchmark", str(mmbench))
    assert (code, "90.0" in printed, "interaction failed" in printed) == (1, True, True), printed


def test_garbage_collection_keeps_what_a_benchmark_was_answered(evaluate: Ask, mmbench: Path, world: Path) -> None:
    evaluate("--benchmark", str(mmbench), "--model", "backbone")
    store = world / "store"
    history = History(store)
    assert history.experiments() == ["digits@benchmarks"]
    assert find_garbage(store, history).waste == ()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("mmbnch=x.tsv", "benchmark 'mmbnch' is unknown; allowed: mmbench, mm-vet"),
        ("nowhere.tsv", "nowhere.tsv does not exist"),
        ("mmbench=nowhere.tsv", "nowhere.tsv does not exist"),
    ],
)
def test_what_is_not_there_is_said_in_a_sentence(evaluate: Ask, text: str, sentence: str) -> None:
    code, printed = evaluate("--benchmark", text)
    assert (code, sentence in " ".join(printed.split())) == (2, True), printed


def test_nothing_asked_for_is_a_mistake(evaluate: Ask) -> None:
    assert evaluate()[0] == 2


def test_two_copies_of_one_benchmark_have_two_labels(world: Path, mmbench: Path) -> None:
    other = published.write_table(world / "MMBench [bold]CN.tsv", [published.mmbench_row(1)])
    assert [asked.label for asked in parse([str(mmbench), str(other)])] == [
        "mmbench-mmbench-dev-en",
        "mmbench-mmbench--bold-cn",
    ]
    with pytest.raises(ConfigError, match="is asked for twice"):
        parse([str(mmbench), str(mmbench)])


def test_our_own_data_is_a_benchmark_too(evaluate: Ask, answering: Answering, world: Path) -> None:
    place = world / "store/prepared/digits/test.jsonl"
    assert evaluate("--benchmark", str(place), "--model", "teacher")[0] == 0
    assert answering.jobs[0].settings.benchmark == "samples"


def test_a_benchmark_has_room_for_its_answers(world: Path, pope: Path, mmbench: Path) -> None:
    entry = {"imagename": "a.png", "question": "?", "answer": "x", "capability": ["ocr"]}
    vet = published.write_json(world / "mm-vet.json", {"v1": entry})
    judge = ["evaluation.judge={url: 'http://localhost/v1', model: judge}", "evaluation.max_new_tokens=8"]
    found = Benchmarks.open(judge, [str(pope), str(vet)], ["backbone"]).graph.targets
    assert {name: (node.settings.max_new_tokens, node.settings.judge is None) for name, node in found.items()} == {
        "backbone:pope": (64, True),
        "backbone:mm-vet": (512, False),
    }


def test_a_digest_does_not_depend_on_where_a_benchmark_lies(tmp_path: Path) -> None:
    for place in ("a", "b"):
        published.write_parquet(tmp_path / place / "Art/validation-0.parquet", [{"id": "validation_Art_1"}])
    digests = Digests(tmp_path)
    assert digests.questions("mmmu", str(tmp_path / "a")) == digests.questions("mmmu", str(tmp_path / "b"))
    published.write_parquet(tmp_path / "b" / "Art/validation-0.parquet", [{"id": "validation_Art_2"}])
    assert digests.questions("mmmu", str(tmp_path / "a")) != Digests(tmp_path).questions("mmmu", str(tmp_path / "b"))
    with pytest.raises(MissingInput):
        digests.questions("mmmu", str(tmp_path / "c"))


class TestHarnesses:
    def test_the_command_of_lmms_eval(self) -> None:
        command = lmms_eval_command("/student", "qwen2_vl", ["mmbench", "mmmu"], 3, "/out")
        assert (
            command[1:]
            == (
                "-m lmms_eval --model qwen2_vl --model_args pretrained=/student --tasks mmbench_en_dev,mmmu_val "
                "--batch_size 1 --gen_kwargs num_beams=3 --log_samples --output_path /out"
            ).split()
        )
        everything = lmms_eval_command("/student", "llava_onevision", [], 1, "/out")
        assert everything[everything.index("--tasks") + 1].count(",") == 9

    def test_the_configuration_of_vlmevalkit(self) -> None:
        found = json.loads(vlmevalkit_configuration("/student", "qwen2_vl", ["pope"]))
        assert found == {
            "model": {"vlsi": {"class": "Qwen2VLChat", "model_path": "/student"}},
            "data": {"POPE": {"class": "ImageYORNDataset", "dataset": "POPE"}},
        }

    def test_what_a_harness_does_not_have_is_said(self) -> None:
        with pytest.raises(ConfigError, match="'gemma3' is no model it is known to have; allowed: qwen2_vl"):
            lmms_eval_command("/student", "gemma3", [], 1, "/out")
        with pytest.raises(ConfigError, match="'samples' is no benchmark"):
            vlmevalkit_configuration("/student", "qwen2_vl", ["samples"])

    def test_the_student_has_to_be_there(self, evaluate: Ask) -> None:
        code, printed = evaluate("--harness", "lmms-eval")
        assert (code, "there is no student yet; run `vlsi run experiment=digits` first" in printed) == (2, True)

    def test_it_is_printed_and_run(self, evaluate: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("pipeline.commands.evaluate._exported", lambda session: ("/student", "qwen2_vl"))
        code, printed = evaluate("--harness", "lmms-eval", "--benchmark", "mmmu")
        assert (code, "--tasks mmmu_val" in printed) == (0, True)
        ran: list[list[str]] = []

        class Ended:
            returncode = 3

        def run(command: list[str], **_: Any) -> Ended:
            ran.append(command)
            return Ended()

        monkeypatch.setattr("pipeline.commands.evaluate.find_spec", lambda name: object())
        monkeypatch.setattr("pipeline.commands.evaluate.subprocess.run", run)
        code, printed = evaluate("--harness", "lmms-eval", "--benchmark", "mmmu", "--run")
        assert (code, ran[0][1:3], "exit code 3" in printed) == (1, ["-m", "lmms_eval"], True)

    def test_it_has_to_be_installed(self, evaluate: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("pipeline.commands.evaluate._exported", lambda session: ("/student", "qwen2_vl"))
        monkeypatch.setattr("pipeline.commands.evaluate.find_spec", lambda name: None)
        code, printed = evaluate("--harness", "lmms-eval", "--run")
        assert (code, "install it with `pip install lmms-eval`" in " ".join(printed.split())) == (2, True)

    @pytest.mark.parametrize("arguments", [("--harness", "helm"), ("--harness", "vlmevalkit", "--run"), ("--run",)])
    def test_other_uses_are_mistakes(self, arguments: tuple[str, ...], evaluate: Ask, mmbench: Path) -> None:
        assert evaluate(*arguments, "--benchmark", str(mmbench))[0] == 2
