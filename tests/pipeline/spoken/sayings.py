"""Sayings to show: two layers and an output, ever surer, and words that want to break out."""

from __future__ import annotations

from pipeline.spoken.saying import Saying
from stages.contract.sayings import Said

HOSTILE = ["<script>alert(1)</script>", '"><img src=x>', "[bold]x[/]", "\x1b[31m", "</style>", "\n", " "]


def saying_of(tokens: list[str], *, decoded: bool = False, model: str = "vlsi") -> Saying:
    """All say the tokens."""
    said = [Said(block, tuple(tokens), (share,) * len(tokens)) for block, share in ((0, 0.1), (3, 0.5), (4, 0.9))]
    answer = "".join(tokens)
    return Saying(model, "verbalizers", "Which?", answer, () if decoded else tuple(tokens), tuple(said[:2]), said[2])
