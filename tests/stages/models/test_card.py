"""The model card: what it says, what it does not give away, and that nothing in it can break out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from stages.contract.lineage import Lineage, Source, Step
from stages.models.card import Accuracy, CardScores, Publication, licence_of, model_card

HUB = "Qwen/Qwen2-VL-2B-Instruct"


def lineage_of(student: str = HUB, teacher: str | None = "/home/someone/large") -> Lineage:
    sources = {"student": Source(student, "57d1"), "samples": Source("/home/someone/train.jsonl", "5a5a")}
    steps = [Step("reinforcement", "f1f1", {"schedule": {"learning_rate": 1e-4, "steps": 300}})]
    return Lineage(steps, sources | ({"teacher": Source(teacher, "7e7e")} if teacher else {}))


def test_the_header_is_one_that_the_hub_reads() -> None:
    header = ModelCard(model_card(lineage_of())).data
    assert header.base_model == HUB
    assert (header.get("library_name"), header.pipeline_tag) == ("transformers", "image-text-to-text")
    assert header.license is None
    assert ModelCard(model_card(lineage_of(f"{HUB}@abc123"))).data.base_model == HUB


def test_a_base_on_this_machine_is_named_in_the_text_alone() -> None:
    card = model_card(lineage_of("/home/someone/small"))
    assert ModelCard(card).data.base_model is None
    assert "`small`" in card
    assert "someone" not in card


def test_where_the_student_comes_from_is_said() -> None:
    card = model_card(lineage_of(), Publication("me/student", commit="c0ffee"))
    for expected in ("`large`, digest `7e7e`", "`train.jsonl`, digest `5a5a`", "reinforcement: `f1f1`", "`c0ffee`"):
        assert expected in card
    settings = yaml.safe_load(card.partition("```yaml\n")[2].partition("```")[0])
    assert settings == {"reinforcement": {"schedule": {"learning_rate": 1e-4, "steps": 300}}}


def test_a_student_without_a_teacher_does_not_claim_one() -> None:
    card = model_card(lineage_of(teacher=None))
    assert "finetuned" in card
    assert "layers of" not in card


def test_scores_are_there_or_the_card_says_where() -> None:
    assert "`vlsi push-to-hub REPO`" in model_card(lineage_of())
    tasks = {"overall": Accuracy(0.5, 0.4, 0.625), "read": Accuracy(1, 0.9, 1)}
    rows = [CardScores("VLsI", 40, tasks), CardScores("teacher", 40, {"overall": Accuracy(0.75, 0.7, 0.8)})]
    card = model_card(lineage_of(), Publication("me/student", rows))
    assert "| read | 100.0 (90.0–100.0) | – |" in card
    assert "| overall | 50.0 (40.0–62.5) | 75.0 (70.0–80.0) |" in card
    assert card.index("| read |") < card.index("| overall |")
    assert "push-to-hub" not in card


HOSTILE = "a|b</td><script>alert(1)</script>`x`\n# heading\x1b[2J [link](http://x) $y$"


def test_names_from_strangers_format_nothing() -> None:
    rows = [CardScores(HOSTILE, 1, {HOSTILE: Accuracy(1, 1, 1), "overall": Accuracy(1, 1, 1)})]
    card = model_card(lineage_of(f"/x/{HOSTILE.replace('/', '')}"), Publication("me/x", rows))
    assert "<script>" not in card.replace("`", "").partition("## Scores")[2].partition("##")[0]
    assert "\n# heading" not in card
    assert "\x1b" not in card
    row = next(line for line in card.splitlines() if line.startswith("| a"))
    assert row.replace("\\|", "").count("|") == 3
    ModelCard(card)


def checkpoint(folder: Path, readme: str | None = None, config: dict | None = None) -> str:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config or {}))
    if readme is not None:
        (folder / "README.md").write_text(readme)
    return str(folder)


@pytest.mark.parametrize(
    ("readme", "config", "licence"),
    [
        ("---\nlicense: apache-2.0\n---\n# x", {}, "apache-2.0"),
        ("# nothing is said", {"license": "mit"}, "mit"),
        ("---\nlicense: [a, b]\n---\n", {}, None),
        ("---\n: broken: [\n---\n", {}, None),
        (None, {}, None),
    ],
)
def test_the_licence_is_the_one_that_the_base_states(
    tmp_path: Path, readme: str | None, config: dict, licence: str | None
) -> None:
    place = checkpoint(tmp_path / "base", readme, config)
    assert licence_of(place) == licence
    card = model_card(lineage_of(place))
    assert ModelCard(card).data.license == licence
    assert ("states none" in card) == (licence is None)
    assert ModelCard(model_card(lineage_of(place), Publication("me/x", licence="other"))).data.license == "other"


def test_a_hub_id_that_is_not_on_this_machine_states_nothing() -> None:
    assert licence_of("nobody/nothing-of-this-name") is None
