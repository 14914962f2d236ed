"""What was asked and what one model's layers said: the thing that screen, page and JSON all show."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from stages.contract.sayings import Said

SURE, LIKELY = 0.75, 0.4
"""From these probabilities on a word is shown as sure, or as likely."""


@dataclass(frozen=True)
class Saying:
    """One model on one question.

    Attributes:
        model: its name.
        through: `verbalizers` or `logit lens`.
        question: what was asked.
        answer: what was forced; the model's own words where each layer decodes its own.
        tokens: of the forced answer; none where each layer decodes its own.
        layers: what the target layers say, in the order of depth.
        output: what the model itself says.
    """

    model: str
    through: str
    question: str
    answer: str
    tokens: tuple[str, ...]
    layers: tuple[Said, ...]
    output: Said

    @property
    def rows(self) -> list[tuple[str, Said]]:
        """Every row with its name, the deepest last."""
        return [*((f"block {said.block}", said) for said in self.layers), ("output", self.output)]

    def to_json(self) -> dict[str, Any]:
        """As plain values; a block is 0-based, and the output's is one behind the last."""
        return asdict(self)


def level(confidence: float) -> str:
    """`sure`, `likely` or `unsure`."""
    return "sure" if confidence >= SURE else "likely" if confidence >= LIKELY else "unsure"


def visible(word: str) -> str:
    """A token so that it can be seen: its own spaces are left out, and a token of nothing else has a sign."""
    alone = "⏎" if "\n" in word else "␣" if word else "∅"
    return word.strip().replace("\n", "⏎") or alone
