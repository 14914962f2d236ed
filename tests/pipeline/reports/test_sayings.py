"""The explorer: samples to choose from, and what every layer says of them."""

from __future__ import annotations

import re

from pipeline.reports.sayings import SHOWN_TOKENS, sayings
from pipeline.reports.subject import Subject
from pipeline.session import Session
from stages.contract.sayings import Shown, write_sayings
from tests.pipeline.reports.conftest import let_speak, speaker

HOSTILE = '</style><script>alert("1")</script>\'" $x$ \u202eשלום'


def page_of(session: Session) -> str:
    return "".join(sayings(Subject.of_graph(session.experiment, session.graph, session.artifacts())))


def test_teacher_backbone_and_student_stand_side_by_side(session: Session) -> None:
    let_speak(session)
    html = page_of(session)
    assert re.findall(r"<h3>(.*?)</h3>", html) == ["teacher", "small backbone, before", "VLsI, after"]
    assert html.count('<tr class="answer">') == 3
    assert [len(re.findall("<tr><td>", part)) for part in html.split("<h3>")[1:]] == [3, 1, 1]


def test_right_and_wrong_words_and_their_confidence_are_told_apart(session: Session) -> None:
    let_speak(session)
    backbone = page_of(session).split("<h3>")[2]
    assert '<td class="right c4"><b><bdi>two</bdi></b><small>50</small></td>' in backbone
    assert '<td class="wrong c4"><b><bdi>nine</bdi></b><small>50</small></td>' in backbone


def test_another_confidence_changes_the_picture(session: Session) -> None:
    let_speak(session)
    before = page_of(session)
    sample = Shown("7", "Which digit?", "two three", ("two", " three"), (), (speaker("student", "two", " three"),))
    write_sayings(session.artifacts()["interaction"].path, [sample])
    assert page_of(session) != before


def test_hostile_samples_are_escaped(session: Session) -> None:
    models = (speaker(HOSTILE, HOSTILE),)
    sample = Shown(HOSTILE, HOSTILE, HOSTILE, (HOSTILE,), (f'data:image/png;base64,"{HOSTILE}',), models)
    write_sayings(session.artifacts()["verbalization"].path, [sample])
    html = page_of(session)
    assert "<script" not in html
    assert "</style" not in html
    assert not re.search(r'src="[^"]*"[^>]*alert\("', html)
    assert html.count("<bdi>") == html.count("</bdi>") > 4


def test_long_answers_are_cut(session: Session) -> None:
    tokens = tuple(f"w{n}" for n in range(500))
    sample = Shown("7", "?" * 200, "…", tokens, (), (speaker("teacher", *tokens),))
    write_sayings(session.artifacts()["verbalization"].path, [sample])
    html = page_of(session)
    assert html.count('<td class="right') == SHOWN_TOKENS
    assert f"the first {SHOWN_TOKENS} of 500 tokens" in html


def test_white_space_that_is_a_word_of_its_own_is_visible(session: Session) -> None:
    sample = Shown("7", "Which?", "…", ("\n", " ", "a"), (), (speaker("teacher", "\n", " ", ""),))
    write_sayings(session.artifacts()["verbalization"].path, [sample])
    assert [text for text in "⏎␣∅" if text in page_of(session)] == list("⏎␣∅")


def test_without_sayings_there_is_no_section(session: Session) -> None:
    assert page_of(session) == ""
