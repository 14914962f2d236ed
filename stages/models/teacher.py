"""A teacher at work: samples in, hidden states of its target layers at response tokens out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from stages.contract.settings import ModelLoading
from stages.data.encoding import Encoded, collate, pad_id
from stages.data.packing import pack
from stages.data.sample import BadLine
from stages.models.backbone import Backbone, States, load_processor


class Teacher:
    """A frozen model that is run forward under teacher forcing; no text is generated."""

    def __init__(self, place: str, loading: ModelLoading) -> None:
        self.backbone = Backbone.load(place, loading)
        self._pad_id = pad_id(load_processor(place, loading).tokenizer)
        self._checked = False

    def states(
        self, samples: Sequence[Encoded], layers: Sequence[int], micro_batch_tokens: int, bad: list[BadLine]
    ) -> Iterator[tuple[list[Encoded], States]]:
        """Run over samples, those of similar length together.

        Args:
            samples: in any order.
            layers: block indices.
            micro_batch_tokens: padded tokens of one forward pass.
            bad: samples whose states are not finite are added here and left out.

        Yields:
            The samples of one forward pass, and their states, tokens one sample after the other.
        """
        for indices in pack([len(sample.input_ids) for sample in samples], max_tokens=micro_batch_tokens):
            group = [samples[i] for i in indices]
            yield keep_finite(group, self._forward(group, layers), bad)

    @torch.no_grad()
    def _forward(self, group: list[Encoded], layers: Sequence[int]) -> States:
        batch = collate(group, self._pad_id).to(self.backbone.device)
        if not self._checked:
            self.backbone.check(batch)
            self._checked = True
        return self.backbone.states(batch, layers)


def keep_finite(group: list[Encoded], states: States, bad: list[BadLine]) -> tuple[list[Encoded], States]:
    """Leave out the samples with a NaN or infinite state, and name them in `bad`."""
    finite = torch.stack([tensor.isfinite().all(dim=1) for tensor in (*states.targets, states.last)]).all(dim=0)
    counts = [len(encoded.response_ids) for encoded in group]
    fine = [bool(tokens.all()) for tokens in finite.split(counts)]
    if all(fine):
        return group, states
    unfit = [encoded.sample for encoded, is_fine in zip(group, fine, strict=True) if not is_fine]
    bad += [BadLine(s.id, s.line, "the teacher's hidden states are not finite") for s in unfit]
    tokens = torch.repeat_interleave(torch.tensor(fine), torch.tensor(counts)).to(finite.device)
    kept = States(tuple(target[tokens] for target in states.targets), states.last[tokens])
    return [encoded for encoded, is_fine in zip(group, fine, strict=True) if is_fine], kept
