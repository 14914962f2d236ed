"""`vlsi chat`: who is asked, what is shown, and how mistakes end."""

from __future__ import annotations

import builtins
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.runner import Outcome
from pipeline.screen import printable
from pipeline.session import Session
from stages.data.sample import Sample
from tests.pipeline.conftest import Command
from tests.stages import tiny

Run = Callable[..., Outcome]


class FakeAnswerer:
    """Says which question it is, and remembers what it was asked."""

    made: list[str]
    asked: list[Sample]

    def __init__(self, place: str, loading: Any, preprocessing: Any) -> None:
        self.made.append(place)

    def answer(self, conversation: Sample, max_new_tokens: int, told: Callable[[str], None]) -> str:
        self.asked.append(conversation)
        told(f"answer {len(self.asked)} \x1b[31m[bold]")
        return f"answer {len(self.asked)}"


@pytest.fixture
def answerer(monkeypatch: pytest.MonkeyPatch) -> type[FakeAnswerer]:
    monkeypatch.setattr(FakeAnswerer, "made", [], raising=False)
    monkeypatch.setattr(FakeAnswerer, "asked", [], raising=False)
    monkeypatch.setattr("stages.models.answering.Answerer", FakeAnswerer)
    return FakeAnswerer


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let a person type these lines and then end the input."""

    def typed(*lines: str) -> None:
        waiting: Iterator[str] = iter(lines)

        def read(prompt: str = "") -> str:
            for line in waiting:
                return line
            raise EOFError

        monkeypatch.setattr(builtins, "input", read)

    return typed


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    tiny.save_samples(tmp_path / "data", count=1)
    return tmp_path / "data" / "images" / "0.png"


def test_the_up_to_date_student_is_asked(run: Run, vlsi: Command, answerer: type[FakeAnswerer], picture: Path) -> None:
    code, text = vlsi("chat", "--image", str(picture), "--question", "Which?")
    assert code == 2
    assert "digits has no reinforcement that is up to date: run `vlsi run experiment=digits`" in " ".join(text.split())
    run("~variants")
    student = Session.open([]).artifacts()["reinforcement"].place
    code, text = vlsi("chat", "--image", str(picture), "--question", "Which?")
    assert (code, answerer.made) == (0, [str(student)])
    assert answerer.asked[0].images == (picture,)
    assert answerer.asked[0].question == "Which?"
    assert "\x1b[31m" not in text
    assert "[bold]" in text


def test_a_run_is_named_as_runs_lists_it(run: Run, vlsi: Command, answerer: type[FakeAnswerer]) -> None:
    run("~variants")
    first = Session.open([]).artifacts()["reinforcement"].place
    run("~variants", "reinforcement.schedule.steps=5")
    code, _ = vlsi("chat", "digits~1", "--question", "Which?")
    assert (code, answerer.made) == (0, [str(first)])
    code, text = vlsi("chat", "nobody", "--question", "Which?")
    assert (code, "there is no run 'nobody'" in text) == (2, True)


def test_a_run_that_did_not_finish_has_no_student(run: Run, vlsi: Command, executor: Any) -> None:
    executor.failing = {"interaction"}
    run("~variants")
    code, text = vlsi("chat", "digits", "--question", "Which?")
    assert (code, "digits has no reinforcement" in text) == (2, True)


def test_questions_are_read_one_by_one_with_what_was_said(
    vlsi: Command, world: Path, answerer: type[FakeAnswerer], typed: Callable[..., None], picture: Path
) -> None:
    other = picture.with_name("1.png")
    typed("Which?", "", f"/image {other}", "And now?", "/nonsense", "/image none.png", "/new", "Hello?", "/quit", "no")
    code, text = vlsi("chat", "--model", str(world), "--image", str(picture), width=300)
    assert code == 0
    assert [sample.question for sample in answerer.asked] == ["Which?", "And now?", "Hello?"]
    assert [sample.images for sample in answerer.asked] == [(picture,), (picture, other), ()]
    assert answerer.asked[1].responses == ["answer 1"]
    assert "/nonsense is unknown; /image FILE" in text
    assert "--image: none.png is no file" in text


def test_a_checkpoint_answers_for_real(vlsi: Command, tmp_path: Path, picture: Path) -> None:
    model = tiny.save_qwen2vl(tmp_path / "model", width=32, layers=2, pad_rows=0, seed=0)
    options = ["--model", str(model), "--image", str(picture), "--max-new-tokens", "4"]
    code, text = vlsi("chat", *options, "--question", "How many dots are there?")
    assert code == 0
    assert text.strip()
    code, text = vlsi("chat", *options, "--question", "one <|im_end|>")
    assert (code, "control token" in text) == (2, True)
    (model / "config.json").write_text("{}")
    code, text = vlsi("chat", *options, "--question", "one", width=500)
    assert (code, f"{model} cannot be loaded: " in text, text.count("\n")) == (2, True, 1)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--model", "./nowhere", "--question", "a"], "--model: ./nowhere is no folder"),
        (["--image", "nowhere.png", "--question", "a"], "--image: nowhere.png is no file"),
        (["digits", "--model", "a/b"], "name one run, or one --model"),
    ],
)
def test_a_mistake_is_one_sentence(vlsi: Command, arguments: list[str], sentence: str) -> None:
    code, text = vlsi("chat", *arguments)
    assert (code, sentence in " ".join(text.split())) == (2, True)


def test_what_moves_a_cursor_is_not_printed() -> None:
    assert printable("a\x1b[2J\x07b\r\n\u202ec é 中") == "a�[2J�b�\n�c é 中"
