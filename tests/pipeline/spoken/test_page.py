"""What layers say, as a page."""

from __future__ import annotations

import re

import pytest

from pipeline.spoken.page import render_page
from tests.pipeline.spoken.sayings import HOSTILE, saying_of


@pytest.mark.parametrize("decoded", [False, True])
def test_hostile_words_do_nothing(decoded: bool) -> None:
    saying = saying_of(HOSTILE, decoded=decoded, model="<b>[red]m")
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
