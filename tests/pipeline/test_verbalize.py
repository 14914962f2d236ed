"""`vlsi verbalize`: who speaks, how it looks in terminals of any width, and how mistakes end."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console

from pipeline.runner import Outcome
from pipeline.session import Session
from pipeline.spoken.page import render_page
from pipeline.spoken.saying import Saying
from pipeline.spoken.screen import show_saying
from pipeline.voices import Voices
from stages.contract import Job
from stages.contract.files import STUDENT_VERBALIZERS_FILE, TEACHER_VERBALIZERS_FILE
from stages.contract.sayings import Said
from tests.pipeline.conftest import Command, FakeExecutor, Question
from tests.stages import tiny

Run = Callable[..., Outcome]
HOSTILE = ["<script>alert(1)</script>", '"><img src=x>', "[bold]x[/]", "\x1b[31m", "</style>", "\n", " "]


def saying_of(tokens: list[str], *, decoded: bool = False, model: str = "vlsi") -> Saying:
    """Two layers and an output that say the tokens, ever surer."""
    said = [Said(block, tuple(tokens), (share,) * len(tokens)) for block, share in ((0, 0.1), (3, 0.5), (4, 0.9))]
    answer = "".join(tokens)
    return Saying(model, "verbalizers", "Which?", answer, () if decoded else tuple(tokens), tuple(said[:2]), said[2])


def shown(saying: Saying, width: int, *, colours: bool = False) -> str:
    file = io.StringIO()
    system = "standard" if colours else None
    show_saying(Console(file=file, width=width, force_terminal=colours, color_system=system), saying)
    return file.getvalue()


@pytest.mark.parametrize("width", [30, 80, 200])
@pytest.mark.parametrize("decoded", [False, True])
def test_it_fits_into_any_terminal(width: int, decoded: bool) -> None:
    words = [f" word{n}" for n in range(12)] + [" " + "very" * 10 + "long", "漢字" * 9]
    text = shown(saying_of(words, decoded=decoded), width)
    body = text.splitlines()[2:]
    assert max(map(cell_len, body)) <= width
    for word in words[:12]:
        assert word.strip() in text


def test_narrow_terminals_get_several_blocks() -> None:
    words = [f" word{n}" for n in range(12)]
    assert shown(saying_of(words), 200).count("block 3") == 1
    assert shown(saying_of(words), 40).count("block 3") == 3


def test_colours_say_how_sure_and_bold_says_what_is_right() -> None:
    saying = saying_of(["one", "two"])
    wrong = Said(0, ("one", "six"), (0.8, 0.8))
    text = shown(Saying(**{**vars(saying), "layers": (wrong,)}), 80, colours=True)
    row = next(line for line in text.splitlines() if "block 0" in line)
    assert re.search(r"\x1b\[1;32mone\s*\x1b\[0m", row)
    assert re.search(r"\x1b\[32msix\s*\x1b\[0m", row)


@pytest.mark.parametrize("decoded", [False, True])
def test_hostile_words_do_nothing(decoded: bool) -> None:
    saying = saying_of(HOSTILE, decoded=decoded, model="<b>[red]m")
    text = shown(saying, 200)
    assert "\x1b" not in text
    assert "[bold]x[/]" in text
    page = render_page([saying], ['data:image/png;base64,AAAA"><script>'])
    assert not re.search(r"<(script|img src=x|b)>", page)
    assert page.count("</style>") == 1
    assert page.count("<img ") == 1


def test_the_page_has_every_word_of_every_layer_and_needs_nothing_else() -> None:
    page = render_page([saying_of(["one", " two"]), saying_of([" five"], decoded=True, model="teacher")], [])
    assert page.count("<h2>") == 2
    assert page.count(">block 3</th>") == 2
    assert page.count('class="sure right" title="90 %">two<') == 1
    assert '<span class="unsure" title="10 %"> five</span>' in page
    assert "http" not in page
    assert "src=" not in page


@pytest.fixture
def trained(run: Run, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """An experiment whose stages left verbalizers."""
    plain = FakeExecutor._stage

    def stage(self: FakeExecutor, job: Job, work: Path) -> dict[str, Any]:
        for name in (TEACHER_VERBALIZERS_FILE, STUDENT_VERBALIZERS_FILE):
            if job.stage in ("verbalization", "interaction"):
                (work / name).write_bytes(b"weights")
        return plain(self, job, work)

    monkeypatch.setattr(FakeExecutor, "_stage", stage)
    run("~variants")
    return {key: Path(str(artifact.path)) for key, artifact in Session.open(["~variants"]).artifacts().items()}


def test_names_lead_to_models_and_their_verbalizers(trained: dict[str, Path], world: Path) -> None:
    voices = Voices(None, ["~variants"])
    prepared = world / "store" / "prepared" / "digits"
    teacher, backbone, vlsi = (voices.find(name) for name in ("teacher", "backbone", "vlsi"))
    assert (teacher.checkpoint.place, backbone.checkpoint.place) == (
        str(prepared / "teacher"),
        str(prepared / "backbone"),
    )
    assert vlsi.checkpoint.place == str(trained["reinforcement"])
    assert teacher.verbalizers == trained["verbalization"] / TEACHER_VERBALIZERS_FILE
    assert backbone.verbalizers == trained["verbalization"] / STUDENT_VERBALIZERS_FILE
    assert vlsi.verbalizers == trained["interaction"] / STUDENT_VERBALIZERS_FILE
    assert Voices("digits", []).find("vlsi") == vlsi
    other = voices.find(str(prepared / "teacher"))
    assert (other.verbalizers, other.through) == (None, "logit lens")
    assert teacher.checkpoint.loading.dtype == "float32"


def test_a_student_that_was_never_verbalized_speaks_through_the_lens(run: Run) -> None:
    run("~variants")
    assert Voices(None, ["~variants"]).find("vlsi").verbalizers is None


@pytest.fixture
def real(tmp_path: Path) -> list[str]:
    """Options that name a real model and a picture."""
    tiny.save_samples(tmp_path / "data", count=1)
    model = tiny.save_qwen2vl(tmp_path / "model", width=32, layers=2, pad_rows=3, seed=0)
    return ["--model", str(model), "--image", str(tmp_path / "data" / "images" / "0.png"), "--question", "Add them."]


def test_a_checkpoint_speaks_through_the_lens_and_that_is_said(vlsi: Command, real: list[str], tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    code, text = vlsi("verbalize", *real, "--answer", "one two", "--html", str(page), width=300)
    assert code == 0
    assert "has no verbalizers: its layers speak through the logit lens" in text
    assert [name in text for name in ("block 0", "block 1", "block 2", "output")] == [True, True, False, True]
    assert "data:image/" in page.read_text()
    code, text = vlsi("verbalize", *real, "--decode", "--layers", "1", "--max-new-tokens", "4", width=300)
    assert (code, "block 0" in text, "block 1" in text) == (0, False, True)


def test_json_is_one_document(vlsi: Command, ask_vlsi: Question, real: list[str]) -> None:
    code, (saying,) = ask_vlsi("verbalize", *real, "--answer", "one two")
    assert (code, saying["answer"], saying["through"]) == (0, "one two", "logit lens")
    assert [said["block"] for said in saying["layers"]] == [0, 1]
    assert len(saying["output"]["words"]) == len(saying["tokens"])
    json.dumps(saying)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--layers", "0,x"], "--layers: '0,x' is no list of blocks"),
        (["--layers", "7", "--answer", "one"], "--layers: block 7 cannot speak; allowed: 0, 1"),
        (["--answer", "one", "--decode"], "choose one"),
        (["--answer", "  "], "is empty; give one with --answer"),
        (["--answer", "one <|im_end|>"], "control token"),
        (["a", "b"], "name one run, not 2"),
        (["--image", "none.png"], "--image: none.png is no file"),
    ],
)
def test_a_mistake_is_one_sentence(vlsi: Command, real: list[str], options: list[str], sentence: str) -> None:
    code, text = vlsi("verbalize", *real, *options, width=300)
    assert (code, sentence in text) == (2, True)


def test_what_was_not_made_is_named(vlsi: Command, world: Path) -> None:
    code, text = vlsi("verbalize", "--question", "Which?", "--model", "teacher", width=300)
    assert (code, "digits has no capture that is up to date: run `vlsi run" in text) == (2, True)
