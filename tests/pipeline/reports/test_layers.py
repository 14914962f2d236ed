"""Matching over time: frames of the journal, and the pictures of them."""

from __future__ import annotations

from itertools import pairwise

import pytest

from pipeline.reports.layers import FRAMES, frames, layers
from pipeline.reports.subject import Subject
from pipeline.session import Session
from tests.pipeline.conftest import journal_of_matches


def journal(steps: int) -> list[dict[str, object]]:
    """The share moves from the first teacher layer to the second."""
    shares = [step / steps for step in range(steps)]
    return [{"step": n, "matches": [[1 - share, share], [0.0, 1.0]]} for n, share in enumerate(shares, 1)]


@pytest.mark.parametrize("steps", [1, 7, 20, 333])
def test_frames_are_few_and_cover_every_step_once(steps: int) -> None:
    found = frames(journal(steps), FRAMES)
    assert len(found) == min(steps, FRAMES)
    assert [found[0].first, found[-1].last] == [1, steps]
    assert all(before.last + 1 == after.first for before, after in pairwise(found))


def test_a_frame_is_the_mean_of_its_steps() -> None:
    (only,) = frames(journal(4), 1)
    assert only.shares == [[pytest.approx(1 - 0.375), pytest.approx(0.375)], [0.0, 1.0]]
    assert frames([{"step": 1}], FRAMES) == []


@pytest.mark.parametrize(
    ("entropies", "said"), [([0.99, 0.998], "had 99.4 % of an even draw"), ([0.0, 0.0], None), ([], None)]
)
def test_how_open_the_draws_were_is_said_where_any_were_made(
    session: Session, monkeypatch: pytest.MonkeyPatch, entropies: list[float], said: str | None
) -> None:
    lines = journal_of_matches()
    for line, entropy in zip(lines, entropies, strict=False):
        line["match_entropy"] = entropy
    monkeypatch.setattr("pipeline.reports.layers.read_journal", lambda _: lines)
    artifacts = {"interaction": session.artifacts()["interaction"]}
    html = "".join(layers(Subject.of_graph(session.experiment, session.graph, artifacts)))
    assert "by step. Expected is the exact mean" in html
    assert said in html if said else "even draw" not in html


def test_the_slider_has_a_picture_for_each_frame(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.reports.layers.read_journal", lambda _: journal(40))
    monkeypatch.setattr("pipeline.reports.page._svg", lambda drawn: f"<svg >{drawn.axes[0].texts[0].get_text()}</svg>")
    artifacts = {"interaction": session.artifacts()["interaction"]}
    html = "".join(layers(Subject.of_graph(session.experiment, session.graph, artifacts)))
    slider = html[html.index('class="tabs slider"') :]
    assert slider.count("<svg") == slider.count('type="radio"') == FRAMES
    assert slider.count(" checked") == 1
    assert ".99</svg>" in slider
    assert "steps 1 to 2<" in slider
    assert "steps 39 to 40<" in slider


def test_a_changed_number_changes_the_picture(session: Session) -> None:
    artifact = session.artifacts()["interaction"]
    pictures = []
    for share in (0.25, 0.3):
        summary = {**artifact.manifest.summary, "matching_end": [[1 - share, share, 0.0], [0.0, 0.4, 0.6]]}
        manifest = artifact.manifest.model_copy(update={"summary": summary})
        changed = {"interaction": type(artifact)(artifact.path, manifest)}
        pictures.append("".join(layers(Subject.of_graph(session.experiment, session.graph, changed))))
    assert pictures[0] != pictures[1]
    assert ".25" in pictures[0]
    assert ".30" in pictures[1]
