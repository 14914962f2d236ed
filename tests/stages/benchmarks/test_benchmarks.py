"""Each benchmark on a tiny copy in its published format: what is asked, what is right."""

from __future__ import annotations

from pathlib import Path

import pytest

from stages.benchmarks import BENCHMARKS, Question, read_questions, recognise
from stages.benchmarks.chartqa import is_relaxed_match
from stages.benchmarks.mmmu import open_answers
from stages.contract import StageError
from stages.contract.quarantine import BadLine
from tests.stages.benchmarks import published

LETTER = "Answer with the option's letter from the given choices directly."
MMMU_ROW = {
    "id": "validation_Art_Theory_3",
    "question": "Which of <image 2> and <image 1> is older?",
    "options": "['<image 1>', 'the left, \"one\"']",
    "answer": "A",
    "question_type": "multiple-choice",
    "image_1": published.cell(1),
    "image_2": published.cell(2),
}
OPEN_ROW = {**MMMU_ROW, "question": "How much? <image 1>", "options": "[]", "question_type": "open"}
MATHVISTA_ROW = {
    "pid": "1",
    "question": "How long?",
    "choices": None,
    "unit": "cm",
    "precision": 1.0,
    "answer": "1.2",
    "question_type": "free_form",
    "answer_type": "float",
    "metadata": {"task": "geometry"},
    "image": "images/1.jpg",
    "decoded_image": published.cell(9),
}
SCIENCEQA_ROW = {"question": "Which?", "choices": ["x", "y"], "answer": 1, "hint": "See.", "subject": "natural science"}


def read(name: str, place: Path) -> list[Question]:
    questions, bad = read_questions(name, place)
    assert bad == []
    return questions


def correct(name: str, question: Question, said: str) -> float | None:
    return BENCHMARKS[name].judge(question, said).correct


def reasons(name: str, place: Path) -> list[str]:
    return [line.reason for line in read_questions(name, place)[1]]


def shades(question: Question) -> list[int]:
    """Which pictures a question has."""
    decoded = question.load_images(10_000)
    return [image.getpixel((0, 0))[0] for image in decoded]


class TestMMBench:
    def test_a_question_is_asked_in_all_rotations(self, tmp_path: Path) -> None:
        file = published.write_table(tmp_path / "MMBench_DEV_EN.tsv", [published.mmbench_row(7, "B", hint="Look.")])
        questions = read("mmbench", file)
        assert [(q.id, q.item, q.labels, q.options) for q in questions] == [
            ("7.0", "7", ("B",), ("a dog", "a cat", "a horse")),
            ("7.1", "7", ("A",), ("a cat", "a horse", "a dog")),
            ("7.2", "7", ("C",), ("a horse", "a dog", "a cat")),
        ]
        assert questions[1].question == f"Look.\nWhat is it?\nA. a cat\nB. a horse\nC. a dog\n{LETTER}"
        assert {question.task for question in questions} == {"identity"}
        assert [shades(question) for question in questions] == [[7]] * 3
        assert [correct("mmbench", question, "B. it is a cat") for question in questions] == [1, 0, 0]

    def test_rotations_in_the_file_are_those_asked_anyway(self, tmp_path: Path) -> None:
        rows = [published.mmbench_row(7), published.mmbench_row(1_000_007, "A", A="a cat", B="a horse", C="a dog")]
        assert len(read("mmbench", published.write_table(tmp_path / "t.tsv", rows))) == 3

    def test_a_picture_may_stand_in_another_row(self, tmp_path: Path) -> None:
        rows = [published.mmbench_row(1, image="2"), published.mmbench_row(2)]
        questions = read("mmbench", published.write_table(tmp_path / "t.tsv", rows))
        assert [shades(question) for question in questions] == [[2]] * 6

    def test_answers_of_the_test_split_are_unknown(self, tmp_path: Path) -> None:
        file = published.write_table(tmp_path / "t.tsv", [published.mmbench_row(1, answer="")])
        questions = read("mmbench", file)
        assert [(q.labels, correct("mmbench", q, "A")) for q in questions] == [((), None)] * 3

    def test_rows_that_cannot_be_used_are_named(self, tmp_path: Path) -> None:
        rows = [
            published.mmbench_row(1, answer="E"),
            published.mmbench_row(2, A=""),
            published.mmbench_row(3, question=""),
            published.mmbench_row(4),
            published.mmbench_row(4),
        ]
        found = reasons("mmbench", published.write_table(tmp_path / "t.tsv", rows))
        assert found == [
            "the answer 'E' is none of the options' letters",
            "0 options are no choice",
            "`question` is missing",
            "the id 4.0 stands there twice",
        ]

    def test_a_picture_that_is_no_base64_is_found_when_it_is_read(self, tmp_path: Path) -> None:
        from stages.data import BadSample

        rows = [published.mmbench_row(1, image="<script>" * 20)]
        question = read("mmbench", published.write_table(tmp_path / "t.tsv", rows))[0]
        with pytest.raises(BadSample, match="image of row 1 cannot be read"):
            question.read_images()


class TestMMMU:
    def test_pictures_stand_where_the_text_names_them(self, tmp_path: Path) -> None:
        (question,) = read("mmmu", published.write_parquet(tmp_path / "validation-0.parquet", [MMMU_ROW]))
        assert shades(question) == [2, 1, 1]
        assert [part.get("text", part["type"]) for part in question.messages[0]["content"]] == [
            "Which of ",
            "image",
            " and ",
            "image",
            " is older?\nA. ",
            "image",
            f'\nB. the left, "one"\n{LETTER}',
        ]
        assert (question.task, question.labels) == ("Art_Theory", ("A",))

    def test_the_validation_split_is_taken_of_all_subjects(self, tmp_path: Path) -> None:
        for subject in ("Art", "Math"):
            row = {**MMMU_ROW, "id": f"validation_{subject}_1"}
            published.write_parquet(tmp_path / subject / "validation-00000-of-00001.parquet", [row])
            published.write_parquet(tmp_path / subject / "test-00000-of-00001.parquet", [row])
        assert [question.task for question in read("mmmu", tmp_path)] == ["Art", "Math"]

    @pytest.mark.parametrize(
        ("answer", "said", "right"),
        [
            ("8", "8", 1),
            ("8", "The answer is 8.", 1),
            ("8.00", "so 3 + 5 = 8", 1),
            ("1,000", "It is 1000 dollars", 1),
            ("8", "The answer is 80.", 0),
            ("8", "8 is not it, it is 9", 0),
            ("['new deal', 'the new deal']", "This is the New Deal policy", 1),
            ("new deal", "It is the old deal", 0),
            ("['24/7', '3.429']", "the result is 3.43", 1),
            ("x", "x", 1),
            ("x", "exit", 0),
        ],
    )
    def test_open_answers_are_judged_as_the_authors_do(
        self, answer: str, said: str, right: float, tmp_path: Path
    ) -> None:
        file = published.write_parquet(tmp_path / "validation-0.parquet", [{**OPEN_ROW, "answer": answer}])
        (question,) = read("mmmu", file)
        assert correct("mmmu", question, said) == right

    def test_the_shortest_end_of_every_line_may_be_the_answer(self) -> None:
        assert open_answers("It is red.\nThe answer is so blue") == ["red.", "blue"]
        assert open_answers("Blue") == ["blue"]

    def test_a_picture_that_is_missing_is_said(self, tmp_path: Path) -> None:
        row = {**MMMU_ROW, "question": "See <image 5>"}
        file = published.write_parquet(tmp_path / "validation-0.parquet", [row])
        assert reasons("mmmu", file) == ["<image 5> stands in the question, but there is no such picture"]

    def test_options_that_are_no_list_are_said(self, tmp_path: Path) -> None:
        file = published.write_parquet(tmp_path / "validation-0.parquet", [{**MMMU_ROW, "options": "__import__('os')"}])
        assert reasons("mmmu", file) == ["`options` is no list"]


class TestMMStar:
    QUESTION = "What is it?\nOptions: A: dog, B: cat, C: horse, D: cow"

    def test_the_options_stand_in_the_question(self, tmp_path: Path) -> None:
        row = {"index": 0, "question": self.QUESTION, "image": published.picture(5), "answer": "C"}
        row |= {"category": "perception", "l2_category": "scene", "meta_info": {"source": "x"}}
        (question,) = read("mmstar", published.write_parquet(tmp_path / "mmstar.parquet", [row]))
        assert question.question == f"{self.QUESTION}\n{LETTER}"
        assert (question.id, question.task, shades(question)) == ("0", "perception", [5])
        assert [correct("mmstar", question, said) for said in ("C", "C: horse", "D", "E")] == [1, 1, 0, 0]

    def test_a_table_has_a_column_for_each(self, tmp_path: Path) -> None:
        row = published.mmbench_row(0, l2_category="scene", D="a cow")
        (question,) = read("mmstar", published.write_table(tmp_path / "MMStar.tsv", [row]))
        assert question.options == ("a dog", "a cat", "a horse", "a cow")


class TestMathVista:
    def ask(self, folder: Path, **changes: object) -> Question:
        row = {**MATHVISTA_ROW, **changes}
        (question,) = read("mathvista", published.write_parquet(folder / "data/testmini-0.parquet", [row]))
        return question

    def test_a_number_is_rounded_as_the_question_asks(self, tmp_path: Path) -> None:
        question = self.ask(tmp_path)
        asked = "Answer the question using a single floating-point number with one decimal place."
        assert question.question == f"How long? (Unit: cm)\n{asked}"
        assert (question.id, question.task, shades(question)) == ("1", "geometry", [9])
        answers = {"1.2": 1, "1.24 cm": 1, "The answer is 1.2": 1, "1.26": 0, "12": 0, "no idea": 0}
        assert {said: correct("mathvista", question, said) for said in answers} == answers

    def test_whole_numbers_lists_and_options(self, tmp_path: Path) -> None:
        whole = self.ask(tmp_path, answer_type="integer", answer="1200", precision=None, unit=None)
        assert [correct("mathvista", whole, said) for said in ("1,200", "1200.0", "1201", "12 00")] == [1, 1, 0, 0]
        years = self.ask(tmp_path, answer_type="list", answer="[2007, 2008]", precision=None)
        assert [correct("mathvista", years, said) for said in ("[2007, 2008]", "2007 and 2008", "2008")] == [1, 1, 0]
        options = self.ask(tmp_path, answer_type="text", choices=["3/11", "8/11"], answer="8/11", precision=None)
        assert options.labels == ("B",)
        assert "Choices:\n(A) 3/11\n(B) 8/11" in options.question
        assert [correct("mathvista", options, said) for said in ("B", "(B) 8/11", "8/11", "A")] == [1, 1, 1, 0]

    def test_json_names_its_entries(self, tmp_path: Path) -> None:
        published.write_picture(tmp_path / "images/1.jpg", 3)
        entry = {key: value for key, value in MATHVISTA_ROW.items() if key not in ("pid", "decoded_image")}
        (question,) = read("mathvista", published.write_json(tmp_path / "testmini.json", {"17": entry}))
        assert (question.id, shades(question)) == ("17", [3])


class TestAI2D:
    def test_parquet_gives_the_place_of_the_option(self, tmp_path: Path) -> None:
        row = {"question": "Which?", "options": ["x", "y", "z", "w"], "answer": "2", "image": published.cell(4)}
        (question,) = read("ai2d", published.write_parquet(tmp_path / "data/test-0.parquet", [row]))
        assert (question.labels, shades(question)) == (("C",), [4])
        assert question.question == f"Which?\nA. x\nB. y\nC. z\nD. w\n{LETTER}"
        assert [correct("ai2d", question, said) for said in ("C", "z", "B")] == [1, 1, 0]

    def test_a_table_gives_its_letter(self, tmp_path: Path) -> None:
        rows = [published.mmbench_row(3, "A")]
        (question,) = read("ai2d", published.write_table(tmp_path / "AI2D_TEST.tsv", rows))
        assert (question.id, question.labels) == ("3", ("A",))


class TestChartQA:
    @pytest.mark.parametrize(
        ("said", "label", "right"),
        [
            ("14", "14", True),
            ("14.7", "14", True),
            ("14.71", "14", False),
            ("13.3", "14", True),
            ("13.29", "14", False),
            ("-14", "14", False),
            ("45%", "45%", True),
            ("0.45", "45%", True),
            ("45", "45%", False),
            ("1,050", "1000", True),
            ("$14", "14", True),
            ("0", "0", True),
            ("0.0", "0", True),
            ("0.1", "0", False),
            ("Yes", "yes", True),
            ("blue", "Blue", True),
            ("light blue", "blue", False),
            ("", "blue", False),
            ("2,5", "25", False),
        ],
    )
    def test_numbers_may_be_off_by_five_percent(self, said: str, label: str, right: bool) -> None:
        assert is_relaxed_match(said, label) is right

    def test_json_names_pictures_beside_it(self, tmp_path: Path) -> None:
        for kind, shade in (("human", 1), ("augmented", 2)):
            row = {"imgname": f"{kind}.png", "query": "How many?", "label": "14"}
            published.write_json(tmp_path / f"test/test_{kind}.json", [row])
            published.write_picture(tmp_path / f"test/png/{kind}.png", shade)
        published.write_json(tmp_path / "train/train_human.json", [{"imgname": "x", "query": "x", "label": "x"}])
        questions = read("chartqa", tmp_path)
        assert [(question.task, shades(question)) for question in questions] == [("augmented", [2]), ("human", [1])]
        assert questions[0].question == "How many?\nAnswer the question with a single word."
        assert correct("chartqa", questions[0], "The answer is 14.2.") == 1

    @pytest.mark.parametrize(
        "row",
        [
            {"type": "human_test", "question": "How many?", "answer": "14", "image": published.cell(6)},
            {"query": "How many?", "label": ["14"], "human_or_machine": 0, "image": published.cell(6)},
        ],
    )
    def test_parquet_of_two_kinds(self, row: dict, tmp_path: Path) -> None:
        (question,) = read("chartqa", published.write_parquet(tmp_path / "data/test-0.parquet", [row]))
        assert (question.task, question.labels, shades(question)) == ("human", ("14",), [6])

    def test_a_path_that_leads_out_is_refused(self, tmp_path: Path) -> None:
        row = {"imgname": "../../../etc/passwd", "query": "How many?", "label": "14"}
        file = published.write_json(tmp_path / "test_human.json", [row])
        assert "lies outside the folder" in reasons("chartqa", file)[0]


def test_blink_has_several_pictures(tmp_path: Path) -> None:
    row = {"idx": "val_Jigsaw_1", "sub_task": "Jigsaw", "prompt": "Which?\nSelect from:\n(A) x\n(B) y", "answer": "(B)"}
    row |= {"choices": ["x", "y"], "image_1": published.cell(1), "image_2": published.cell(2), "image_3": None}
    published.write_parquet(tmp_path / "Jigsaw/val-00000-of-00001.parquet", [row])
    published.write_parquet(tmp_path / "Jigsaw/test-00000-of-00001.parquet", [{**row, "answer": "hidden"}])
    (question,) = read("blink", tmp_path)
    assert (question.id, question.task, question.labels, shades(question)) == ("val_Jigsaw_1", "Jigsaw", ("B",), [1, 2])
    assert question.question == f"{row['prompt']}\n{LETTER}"
    (hidden,) = read("blink", tmp_path / "Jigsaw/test-00000-of-00001.parquet")
    assert hidden.labels == ()


class TestScienceQA:
    def test_problems_with_a_picture_are_asked(self, tmp_path: Path) -> None:
        published.write_picture(tmp_path / "images/test/11/image.png", 8)
        problems = {
            "11": {**SCIENCEQA_ROW, "image": "image.png", "split": "test"},
            "12": {**SCIENCEQA_ROW, "image": None, "split": "test"},
            "13": {**SCIENCEQA_ROW, "image": "image.png", "split": "train"},
        }
        (question,) = read("scienceqa", published.write_json(tmp_path / "problems.json", problems))
        assert (question.id, question.task, question.labels, shades(question)) == ("11", "natural science", ("B",), [8])
        assert question.question == f"Context: See.\nWhich?\nA. x\nB. y\n{LETTER}"

    def test_parquet(self, tmp_path: Path) -> None:
        rows = [{**SCIENCEQA_ROW, "image": published.cell(2), "answer": 0}, {**SCIENCEQA_ROW, "image": None}]
        (question,) = read("scienceqa", published.write_parquet(tmp_path / "data/test-0.parquet", rows))
        assert (question.labels, shades(question)) == (("A",), [2])


class TestPope:
    def test_each_file_is_a_kind(self, tmp_path: Path) -> None:
        for kind in ("random", "popular"):
            rows = [{"question_id": 1, "image": "a.jpg", "text": "Is there a dog in the image?", "label": "yes"}]
            published.write_lines(tmp_path / f"coco_pope_{kind}.json", rows)
        published.write_picture(tmp_path / "val2014/a.jpg", 7)
        questions = read("pope", tmp_path)
        assert [(question.task, shades(question)) for question in questions] == [("popular", [7]), ("random", [7])]
        assert questions[0].question.endswith("\nAnswer the question using a single word or phrase.")
        assert [correct("pope", questions[0], said) for said in ("Yes, a dog", "No", "")] == [1, 0, 0]

    def test_parquet_has_the_kind_in_a_field(self, tmp_path: Path) -> None:
        row = {"question_id": "1", "question": "Is there?", "answer": "no", "category": "adversarial"}
        row |= {"image_source": "x", "image": published.cell(1)}
        (question,) = read("pope", published.write_parquet(tmp_path / "test-0.parquet", [row]))
        assert (question.task, question.labels) == ("adversarial", ("no",))

    def test_f1_and_yes_ratio(self) -> None:
        pairs = [("yes", "yes")] * 3 + [("yes", "no")] + [("no", "yes")] * 2 + [("no", "no")] * 3 + [("no", "")]
        metrics = BENCHMARKS["pope"].metrics(pairs)
        assert metrics == pytest.approx({"precision": 3 / 5, "recall": 3 / 4, "f1": 2 / 3, "yes_ratio": 0.5})
        assert BENCHMARKS["pope"].metrics([])["f1"] == 0

    def test_another_answer_is_refused(self, tmp_path: Path) -> None:
        file = published.write_lines(
            tmp_path / "p.json", [{"question_id": 1, "image": "a", "text": "?", "label": "so"}]
        )
        assert reasons("pope", file) == ["the answer is 'so', neither yes nor no"]


class TestMMVet:
    def read(self, folder: Path) -> Question:
        entry = {
            "imagename": "v1_0.png",
            "question": "What is x?",
            "answer": "-1<AND>-5",
            "capability": ["ocr", "math"],
        }
        published.write_picture(folder / "images/v1_0.png", 4)
        (question,) = read("mm-vet", published.write_json(folder / "mm-vet.json", {"v1_0": entry}))
        return question

    def test_nobody_judges_by_rules(self, tmp_path: Path) -> None:
        question = self.read(tmp_path)
        assert (question.id, question.task, shades(question)) == ("v1_0", "math + ocr", [4])
        assert correct("mm-vet", question, "-1") is None

    def test_the_judge_gets_a_row_to_complete(self, tmp_path: Path) -> None:
        prompt = BENCHMARKS["mm-vet"].judge_prompt(self.read(tmp_path), "x = -1 |\n 1.0 |")
        assert prompt.splitlines()[-1] == "What is x? | -1 <AND> -5 | x = -1 / 1.0 / |"


def test_our_own_formats_are_answered_exactly(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "How many?"}, {"from": "gpt", "value": " two "}]
    file = published.write_json(tmp_path / "own.json", [{"conversations": turns}, {"conversations": []}])
    questions, bad = read_questions(None, file)
    assert [(q.labels, q.item, correct("samples", q, "two"), correct("samples", q, "Two")) for q in questions] == [
        (("two",), questions[0].id, 1, 0)
    ]
    assert [type(line) for line in bad] == [BadLine]


class TestRecognising:
    @pytest.mark.parametrize(
        ("name", "title"),
        [
            ("MMBench_DEV_EN_V11.tsv", "mmbench"),
            ("mm-vet.json", "mm-vet"),
            ("MMStar", "mmstar"),
            ("coco_pope_random.json", "pope"),
            ("AI2D_TEST.tsv", "ai2d"),
        ],
    )
    def test_by_name(self, name: str, title: str, tmp_path: Path) -> None:
        assert recognise(tmp_path / name).name == title

    @pytest.mark.parametrize(
        ("row", "name"),
        [
            (MMMU_ROW, "mmmu"),
            (MATHVISTA_ROW, "mathvista"),
            ({**SCIENCEQA_ROW, "lecture": "", "image": published.cell()}, "scienceqa"),
            ({"question": "?", "options": ["x"], "answer": "0", "image": published.cell()}, "ai2d"),
            ({"messages": "none of all"}, "samples"),
        ],
    )
    def test_by_fields(self, row: dict, name: str, tmp_path: Path) -> None:
        published.write_parquet(tmp_path / "data/test-0.parquet", [row])
        assert recognise(tmp_path).name == name

    def test_nothing_is_no_benchmark(self, tmp_path: Path) -> None:
        with pytest.raises(StageError, match="benchmark: .*nowhere does not exist; name the benchmark's file"):
            recognise(tmp_path / "nowhere")
        with pytest.raises(StageError, match="holds none of"):
            recognise(tmp_path)


def test_all_say_where_they_come_from() -> None:
    for name, benchmark in BENCHMARKS.items():
        assert (benchmark.name, bool(benchmark.title), bool(benchmark.metric), bool(benchmark.source)) == (
            name,
            True,
            True,
            True,
        )
