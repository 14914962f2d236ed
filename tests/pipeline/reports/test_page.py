"""The parts of a page: names of its figures, and what is escaped."""

from __future__ import annotations

import re

from pipeline import figures
from pipeline.reports.page import choice, figure, page


def test_equal_figures_on_one_page_share_no_name() -> None:
    drawn = [figure(figures.loss_curves({"a": [{"step": 1, "loss": 1.0}]}), '"<b>"') for _ in range(2)]
    html = page("<title>", drawn)
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids)) > 20
    used = re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', html)
    assert {one or other for one, other in used} <= set(ids)
    assert "<title>&lt;title&gt;</title>" in html
    assert html.count('aria-label="&quot;&lt;b&gt;&quot;"') == 2


def test_one_option_of_a_choice_is_chosen_at_first() -> None:
    html = choice("which", [("a", "first"), ("b", "second")], chosen=1)
    assert re.findall(r'id="(\S+)" checked', html) == ["which-1"]
    assert html.count("<section>") == 2
