"""easy-VQA: converted without loss, in its own split. A stand-in of four pictures takes the package's place."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from stages import prepare
from stages.contract import StageError
from stages.contract.settings import PrepareSettings
from stages.data import easy_vqa
from stages.data.sample import read_samples

QUESTIONS = {
    0: [("what is the red shape?", "circle"), ("what color is the shape?", "red"), ("is there a circle?", "yes")],
    1: [
        ("is there a red shape?", "no"),
        ("what color is the triangle?", "teal"),
        ("what shape is present?", "triangle"),
    ],
    2: [("is a circle present?", "no")],
    3: [("what shape is present?", "rectangle"), ("is a circle present?", "no")],
}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The package's five functions, over four pictures in either split."""
    paths = {number: str(tmp_path / f"{number}.png") for number in QUESTIONS}
    for number, path in paths.items():
        image = Image.new("RGB", (64, 64), "white")
        image.paste((60 * number, 0, 0), (10, 20, 30, 34))
        image.save(path)
    flat = [(text, answer, number) for number, asked in QUESTIONS.items() for text, answer in asked]
    questions = tuple(list(column) for column in zip(*flat, strict=True))
    module = SimpleNamespace(
        get_train_image_paths=lambda: paths,
        get_test_image_paths=lambda: paths,
        get_train_questions=lambda: questions,
        get_test_questions=lambda: questions,
    )
    monkeypatch.setitem(sys.modules, "easy_vqa", module)
    return module


@pytest.mark.usefixtures("package")
class TestConversion:
    """What `python -m stages.data.easy_vqa FOLDER` writes."""

    def test_a_training_sample_is_a_picture_with_all_its_questions(self, tmp_path: Path) -> None:
        counts = easy_vqa.write_samples(tmp_path / "out")
        samples, bad = read_samples(tmp_path / "out" / "train.json")
        assert (bad, counts["train"], len(samples)) == ([], 4, 4)
        assert [len(sample.responses) for sample in samples] == [3, 3, 1, 2]
        assert samples[0].responses == ["circle", "red", "yes"]
        assert samples[0].messages[0]["content"] == [
            {"type": "image"},
            {"type": "text", "text": "what is the red shape?"},
        ]
        assert all(len(sample.images) == 1 for sample in samples)
        assert samples[3].load_images(10_000)[0].getpixel((10, 20)) == (180, 0, 0)

    def test_a_test_sample_is_one_question(self, tmp_path: Path) -> None:
        counts = easy_vqa.write_samples(tmp_path / "out")
        samples, bad = read_samples(tmp_path / "out" / "test.json")
        assert (bad, counts["test"], len(samples)) == ([], 9, 9)
        assert [(sample.question, sample.responses) for sample in samples] == [
            (text, [answer]) for asked in QUESTIONS.values() for text, answer in asked
        ]
        assert Counter(sample.task for sample in samples) == {"yes or no": 4, "shape": 3, "color": 2}


@pytest.mark.usefixtures("package")
class TestLessons:
    """What the models of the experiment are made from."""

    def test_pictures_are_those_of_which_shape_and_color_are_known(self) -> None:
        lessons = easy_vqa.ShapeLessons()
        draws = np.random.default_rng(0)
        drawn = [lessons.draw(draws) for _ in range(40)]
        assert {shape.path.stem for shape in drawn} == {"0", "1"}
        shapes, colors = lessons.seen([lessons.draw(np.random.default_rng(seed)) for seed in (0, 1)])
        assert (shapes.shape, colors.shape) == ((8,), (8,))

    def test_a_drawn_shape_lies_elsewhere_and_is_whole(self) -> None:
        lessons, draws = easy_vqa.ShapeLessons(), np.random.default_rng(0)
        corners = set()
        for _ in range(20):
            inside = np.argwhere(np.asarray(lessons.draw(draws).image)[..., 1] == 0)
            corners.add(tuple(inside.min(axis=0)))
            assert len(inside) == 20 * 14
            assert (np.ptp(inside, axis=0) + 1).tolist() == [14, 20]
        assert len(corners) > 15

    def test_labels_are_the_answers(self) -> None:
        first, second, *_ = easy_vqa.load("train")
        shapes, colors = easy_vqa.ShapeLessons().seen([first, second])
        assert [easy_vqa.SHAPES[label] for label in shapes[::4]] == ["circle", "triangle"]
        assert [easy_vqa.COLORS[label] for label in colors[::4]] == ["red", "teal"]

    def test_reading_leaves_out_yes_and_no(self) -> None:
        lessons, draws = easy_vqa.ShapeLessons(), np.random.default_rng(0)
        picture = easy_vqa.load("train")[1]
        assert [q.answer for q in lessons.ask(picture, draws, reading=True)] == ["teal", "triangle"]
        assert [q.answer for q in lessons.ask(picture, draws, reading=False)] == ["no", "teal", "triangle"]


@pytest.mark.usefixtures("package")
def test_a_model_is_made_from_these_lessons_as_from_digits(tmp_path: Path) -> None:
    size = {"layers": 1, "width": 32, "mlp_width": 16, "vision_layers": 1, "vision_width": 16}
    training = {"vision_steps": 2, "reading_steps": 1, "answering_steps": 1, "pictures_per_step": 2}
    settings = PrepareSettings.model_validate({"task": "easy-vqa", "backbone": size, "backbone_training": training})
    prepare.train_model("backbone", settings, tmp_path)
    assert (tmp_path / "backbone" / "model.safetensors").is_file()


def test_without_the_package_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "easy_vqa", None)
    with pytest.raises(StageError, match="pip install easy-vqa"):
        easy_vqa.load("train")


def test_the_package_is_as_documented() -> None:
    answers = {
        split: [q.answer for shape in easy_vqa.load(split) for q in shape.questions] for split in easy_vqa.SPLITS
    }
    assert {split: len(given) for split, given in answers.items()} == {"train": 38_575, "test": 9_673}
    assert set(answers["train"]) == {*easy_vqa.SHAPES, *easy_vqa.COLORS, "yes", "no"}
    answer, count = Counter(answers["test"]).most_common(1)[0]
    assert (answer, round(count / 9_673, 3)) == ("yes", 0.373)
