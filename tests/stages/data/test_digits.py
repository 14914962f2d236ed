"""The digits task: one split by digit image, right answers, the same samples for the same seed."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from stages.data import digits as task
from stages.data.sample import read_samples

NUMBERS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen"
).split()
ROWS = {"top": 0, "bottom": 1}
COLUMNS = {"left": 0, "middle": 1, "right": 2}
PICTURES = 60


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def right_answer(kind: str, question: str, grid: tuple[tuple[int, ...], ...]) -> str:
    """Worked out from the question's words and the digits alone."""
    words = re.findall(r"[a-z]+", question.lower())
    row = next((grid[ROWS[word]] for word in words if word in ROWS), ())
    column = next((COLUMNS[word] for word in words if word in COLUMNS), 0)
    digits = [digit for line in grid for digit in line]
    even = len([digit for digit in digits if digit in (0, 2, 4, 6, 8)])
    more = "neither has more" if even == 3 else "more are even" if even > 3 else "more are odd"
    asked = next((NUMBERS.index(word) for word in words if word in NUMBERS), 0)
    above, below = grid[0][column], grid[1][column]
    return {
        "find a digit": lambda: NUMBERS[row[column]],
        "read a row": lambda: " ".join(NUMBERS[digit] for digit in row),
        "largest digit": lambda: NUMBERS[sorted(digits)[-1]],
        "count a digit": lambda: NUMBERS[digits.count(asked)],
        "add a column": lambda: f"{NUMBERS[above]} plus {NUMBERS[below]} is {NUMBERS[above + below]}",
        "sort a row": lambda: " ".join(NUMBERS[digit] for digit in sorted(row)),
        "even or odd": lambda: f"{NUMBERS[even]} even and {NUMBERS[6 - even]} odd so {more}",
    }[kind]()


class TestSplit:
    """No handwriting of the test set is ever trained on."""

    def test_the_two_splits_share_no_image_and_miss_none(self) -> None:
        train, test = task.load_digits(1400)
        assert (len(train), len(test)) == (1400, 397)
        assert sorted([*train.indices, *test.indices]) == list(range(1797))

    def test_pictures_are_composed_of_their_own_split_only(self) -> None:
        train, test = task.load_digits(1400)
        draws = generator()
        for split in (train, test):
            used = {index for _ in range(PICTURES) for index in task.draw_picture(split, draws).indices}
            assert used <= set(split.indices.tolist())

    def test_both_splits_hold_every_digit(self) -> None:
        assert all(set(split.labels) == set(range(10)) for split in task.load_digits(1400))

    @pytest.mark.parametrize("count", [0, 1797])
    def test_an_empty_split_is_refused_with_the_range(self, count: int) -> None:
        with pytest.raises(ValueError, match=rf"train_digits: {count} .* 1 to 1796 images"):
            task.load_digits(count)


class TestPicture:
    """Six real digits, each within its place."""

    def test_the_grid_names_the_digit_images_that_were_laid_out(self) -> None:
        train, _ = task.load_digits(1400)
        label_of = dict(zip(train.indices.tolist(), train.labels.tolist(), strict=True))
        picture = task.draw_picture(train, generator())
        assert [label_of[index] for index in picture.indices] == [digit for row in picture.grid for digit in row]

    def test_it_has_one_image_token_per_digit_and_ink_in_every_place(self) -> None:
        picture = task.draw_picture(task.load_digits(1400)[0], generator())
        assert (picture.image.size, picture.image.mode) == ((84, 56), "RGB")
        pixels = np.asarray(picture.image)[..., 0]
        places = pixels.reshape(2, 28, 3, 28).swapaxes(1, 2)[:, :, 2:-2, 2:-2]
        assert (places.min(axis=(2, 3)) < 100).all()


class TestAnswers:
    """Every answer follows from the digits laid out."""

    @pytest.mark.parametrize("kind", task.KINDS)
    def test_answers_agree_with_an_independent_recomputation(self, kind: str) -> None:
        train, _ = task.load_digits(1400)
        draws = generator(1)
        for _ in range(PICTURES):
            picture = task.draw_picture(train, draws)
            question = task.ask(kind, picture, draws)
            assert question.answer == right_answer(kind, question.text, picture.grid), question.text

    @pytest.mark.parametrize("kind", task.KINDS)
    def test_every_phrasing_is_used(self, kind: str) -> None:
        picture = task.draw_picture(task.load_digits(1400)[0], generator())
        draws = generator()
        openings = {task.ask(kind, picture, draws).text.split()[0] for _ in range(PICTURES)}
        assert openings == {phrasing.split()[0] for phrasing in task.KINDS[kind].phrasings}

    def test_answers_have_one_to_nine_words(self) -> None:
        lengths = {len(text.split()) for index, text in enumerate(task.corpus()) if index % 2}
        assert min(lengths) == 1
        assert max(lengths) == 9


class TestSampleFile:
    """What the stages read."""

    def write(self, folder: Path, seed: int) -> Path:
        folder.mkdir()
        path = folder / "train.jsonl"
        train, _ = task.load_digits(1400)
        kinds = tuple(task.KINDS)
        task.write_samples(path, train, prefix="train", count=14, kinds=kinds, generator=generator(seed))
        return path

    def test_it_is_read_back_as_samples_of_all_kinds(self, tmp_path: Path) -> None:
        samples, bad = read_samples(self.write(tmp_path / "a", 0))
        assert bad == []
        assert [sample.task for sample in samples] == [*task.KINDS, *task.KINDS]
        assert samples[12].id == "train-000012"
        assert samples[12].load_images(10_000)[0].size == (84, 56)

    def test_a_line_holds_exactly_the_shared_fields(self, tmp_path: Path) -> None:
        line = json.loads(self.write(tmp_path / "a", 0).read_text().splitlines()[12])
        assert set(line) == {"id", "images", "messages", "task"}
        assert line["images"] == ["images/train-000012.png"]
        assert [message["role"] for message in line["messages"]] == ["user", "assistant"]
        assert [part["type"] for part in line["messages"][0]["content"]] == ["image", "text"]

    def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(self, tmp_path: Path) -> None:
        first, again, other = (self.write(tmp_path / name, seed) for name, seed in (("a", 0), ("b", 0), ("c", 1)))
        assert first.read_bytes() == again.read_bytes() != other.read_bytes()
        pictures = [path.read_bytes() for path in sorted((first.parent / "images").iterdir())]
        assert pictures == [path.read_bytes() for path in sorted((again.parent / "images").iterdir())]
