"""Whatever makes teacher and student see a sample differently is named before anything is computed."""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from tokenizers import normalizers
from transformers import AutoProcessor

from stages.contract import StageError
from stages.contract.settings import Preprocessing
from stages.data.pair import differences
from tests.stages import tiny

SAVE = {"qwen2_vl": tiny.save_qwen2vl, "llava_onevision": tiny.save_llava_onevision}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {
        name: save(tmp_path_factory.mktemp(name), width=16, layers=1, pad_rows=2, seed=0) for name, save in SAVE.items()
    }


@pytest.fixture(scope="module")
def qwen(checkpoints: dict[str, Path]) -> Any:
    return AutoProcessor.from_pretrained(checkpoints["qwen2_vl"])


@pytest.fixture
def folder(checkpoints: dict[str, Path], tmp_path: Path) -> Path:
    """A student's checkpoint whose files can be changed."""
    for file in checkpoints["qwen2_vl"].iterdir():
        if file.suffix in (".json", ".jinja"):
            (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def with_tokenizer(folder: Path, change: Callable[[dict[str, Any]], None]) -> Any:
    path = folder / "tokenizer.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    return AutoProcessor.from_pretrained(folder)


@pytest.mark.parametrize("family", SAVE)
def test_models_of_other_sizes_and_paddings_make_a_pair(family: str, tmp_path: Path) -> None:
    """Rows of the head beyond the tokens belong to the model, not to its tokenizer."""
    sizes = {"teacher": (32, 3, 64), "student": (16, 2, 2)}
    teacher, student = (
        AutoProcessor.from_pretrained(SAVE[family](tmp_path / name, width=w, layers=n, pad_rows=rows, seed=0))
        for name, (w, n, rows) in sizes.items()
    )
    assert differences(teacher, student) == []


def test_swapped_ids_are_named(qwen: Any, folder: Path) -> None:
    def swap(data: dict[str, Any]) -> None:
        vocabulary = data["model"]["vocab"]
        vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]

    found = differences(qwen, with_tokenizer(folder, swap))
    ids = {token: qwen.tokenizer.convert_tokens_to_ids(token) for token in "ab"}
    assert f"vocabulary: 2 tokens have other ids: 'a' is {ids['a']} for the teacher and {ids['b']}" in found[0]


def test_a_missing_special_token_is_named(qwen: Any) -> None:
    teacher = deepcopy(qwen)
    teacher.tokenizer.add_special_tokens({"additional_special_tokens": ["<|box_start|>"]})
    assert differences(teacher, qwen)[0] == "vocabulary: '<|box_start|>' of the teacher are no tokens of the student"
    assert differences(qwen, teacher)[0] == "vocabulary: '<|box_start|>' of the student are no tokens of the teacher"


def test_a_token_that_is_special_for_one_is_named(qwen: Any) -> None:
    teacher, student = deepcopy(qwen), deepcopy(qwen)
    teacher.tokenizer.add_special_tokens({"additional_special_tokens": ["<|box_start|>"]})
    student.tokenizer.add_tokens(["<|box_start|>"])
    found = differences(teacher, student)
    assert found == ["special tokens: <|box_start|> is true for the teacher and false for the student"]


def test_other_merges_are_named(qwen: Any, folder: Path) -> None:
    def shorten(data: dict[str, Any]) -> None:
        data["model"]["merges"].pop(3)

    found = differences(qwen, with_tokenizer(folder, shorten))
    assert found[0].startswith("merges: number 3 is [")


def test_another_normalizer_is_named(qwen: Any) -> None:
    student = deepcopy(qwen)
    student.tokenizer.backend_tokenizer.normalizer = normalizers.NFKC()
    found = differences(qwen, student)
    assert found[0] == 'tokenizer: normalizer is {"type": "NFC"} for the teacher and {"type": "NFKC"} for the student'


def test_another_template_is_shown_line_by_line(qwen: Any) -> None:
    student = deepcopy(qwen)
    student.chat_template = qwen.chat_template.replace("You are a helpful assistant.", "Be good.")
    (found,) = differences(qwen, student)
    assert "-You are a helpful assistant.<|im_end|>\n+Be good.<|im_end|>" in found
    assert found.endswith("(a question and its answer)")


def test_a_template_that_differs_in_spelling_alone_is_no_difference(qwen: Any) -> None:
    student = deepcopy(qwen)
    student.chat_template = "{#- another comment -#}" + qwen.chat_template
    assert differences(qwen, student) == []


def test_a_template_that_refuses_system_messages_is_named(qwen: Any) -> None:
    student = deepcopy(qwen)
    refusal = "{%- if messages[0]['role'] == 'system' -%}{{- raise_exception('no system') -}}{%- endif -%}"
    student.chat_template = refusal + qwen.chat_template
    (found,) = differences(qwen, student)
    assert "the student: the chat template refuses the conversation: no system" in found
    assert differences(student, deepcopy(student)) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("patch_size", 7),
        ("merge_size", 1),
        ("temporal_patch_size", 1),
        ("image_mean", (0.5, 0.5, 0.5)),
        ("image_std", (0.5, 0.5, 0.5)),
        ("do_normalize", False),
        ("do_resize", False),
        ("resample", 2),
        ("rescale_factor", 1 / 127.5),
        ("size", {"shortest_edge": 3136, "longest_edge": 12845056}),
        ("size", {"shortest_edge": 200704, "longest_edge": 1003520}),
    ],
)
def test_another_image_preprocessing_is_named(qwen: Any, name: str, value: Any) -> None:
    student = deepcopy(qwen)
    setattr(student.image_processor, name, value)
    found = differences(qwen, student)
    assert found[0].startswith(f"image preprocessing: {name} is ")


def test_limits_on_pixels_hold_for_both_and_replace_their_own(qwen: Any) -> None:
    student = deepcopy(qwen)
    student.image_processor.size = {"shortest_edge": 784, "longest_edge": 784 * 20}
    assert differences(qwen, student)
    assert differences(qwen, student, Preprocessing(max_pixels=784 * 10, min_pixels=784)) == []
    assert differences(qwen, student, Preprocessing(max_pixels=784 * 10))[0].startswith("image preprocessing: size")


def test_another_expansion_of_image_tokens_is_shown(checkpoints: dict[str, Path]) -> None:
    """LLaVA counts image tokens from settings of its own, which no list of known settings would cover."""
    teacher = AutoProcessor.from_pretrained(checkpoints["llava_onevision"])
    student = deepcopy(teacher)
    student.num_image_tokens = 9
    (found,) = differences(teacher, student)
    assert "image tokens: the teacher sees " in found


def test_limits_on_pixels_are_refused_where_pictures_have_fixed_sizes(checkpoints: dict[str, Path]) -> None:
    llava = AutoProcessor.from_pretrained(checkpoints["llava_onevision"])
    with pytest.raises(StageError, match="do not go with LlavaOnevisionImageProcessor"):
        differences(llava, llava, Preprocessing(max_pixels=784))


def test_processors_of_other_families_are_no_pair(checkpoints: dict[str, Path]) -> None:
    qwen, llava = (AutoProcessor.from_pretrained(path) for path in checkpoints.values())
    assert any("'<image>', '<video>' of the student" in line for line in differences(qwen, llava))
