"""Speaking: what every layer of one model says about a picture, through verbalizers or the logit lens.

Under teacher forcing each layer says a word in the place of each token of one answer (paper Fig. 3). Decoding
from a layer feeds a layer's own words back to the model, so that it says a text of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from stages.contract import StageError
from stages.contract.sayings import Said
from stages.contract.settings import ModelLoading, Preprocessing
from stages.data.encoding import collate
from stages.data.sample import Sample
from stages.losses.divergence import Head, most_probable
from stages.models.answering import Answerer
from stages.models.backbone import Backbone, collect_outputs
from stages.models.saying import spell, what_layer_says, what_layers_say
from stages.models.verbalizer import Verbalizers

Verbalize = Callable[[Sequence[Tensor]], list[Tensor]]
"""From one [N, d] state of each layer to as many inputs of the head."""


@dataclass(frozen=True)
class Spoken:
    """What one model says.

    Attributes:
        tokens: of the answer that is forced; none where every layer decodes its own.
        layers: what the target layers say, in the order of depth.
        output: what the model itself says; its block is one behind the last.
    """

    tokens: tuple[str, ...]
    layers: tuple[Said, ...]
    output: Said


class Speaking(Answerer):
    """A model whose layers speak.

    Attributes:
        layers: the blocks that speak, increasing.
    """

    def __init__(
        self,
        place: str,
        loading: ModelLoading,
        preprocessing: Preprocessing,
        verbalizers: Path | None = None,
        layers: Sequence[int] | None = None,
    ) -> None:
        """Load a checkpoint, and the file of its verbalizers if there is one.

        Args:
            place: a folder or hub id.
            loading: how it is loaded.
            preprocessing: how samples become tensors.
            verbalizers: what `Verbalizers.save` wrote.
            layers: blocks that speak; None for all that can.

        Raises:
            StageError: a layer has no verbalizer, or the verbalizers are those of another model.
        """
        super().__init__(place, loading, preprocessing)
        trained = None if verbalizers is None else Verbalizers.load(verbalizers)
        if trained:
            _check_fit(trained, self.backbone, place)
        self.layers = _choose(layers, trained.target_layers if trained else range(len(self.backbone.blocks)))
        self._verbalizers = trained and trained.only(self.layers).to(self.backbone.device)
        self._head = self.backbone.readout.head_rows(self.encoder.real_vocabulary)

    @torch.no_grad()
    def say(self, conversation: Sample) -> Spoken:
        """What every layer says in the place of each token of the answers.

        Args:
            conversation: it ends with an answer.

        Raises:
            BadSample: a picture or the answer cannot be used.
        """
        encoded = self.encoder.encode(conversation)
        batch = collate([encoded], self.encoder.pad_id).to(self.backbone.device)
        states = self.backbone.states(batch, self.layers)
        tokenizer = self.encoder.processor.tokenizer
        return Spoken(
            spell(batch.labels, tokenizer),
            what_layers_say(self.layers, self._verbalize(states.targets), self._head, tokenizer),
            what_layer_says(len(self.backbone.blocks), states.last, self._head, tokenizer),
        )

    @torch.no_grad()
    def decode(self, conversation: Sample, max_new_tokens: int) -> Spoken:
        """What every layer says if its own words go back into the model, greedily.

        All layers decode side by side, each in a row of its own of one batch.

        Args:
            conversation: it ends with a question.
            max_new_tokens: texts are cut off there.

        Raises:
            BadSample: a picture cannot be used, or the conversation is too long.
        """
        inputs = self.encoder.encode_prompt(conversation)
        rows = len(self.layers) + 1
        with collect_outputs({layer: self.backbone.blocks[layer] for layer in self.layers}) as outputs:
            going_on = _FromLayers(outputs, self.layers, self._verbalize, self._head)
            generated = self.backbone.model.generate(  # type: ignore[operator]
                **{name: torch.cat([tensor] * rows).to(self.backbone.device) for name, tensor in inputs.items()},
                max_new_tokens=max_new_tokens,
                do_sample=False,
                num_beams=1,
                pad_token_id=self.encoder.pad_id,
                logits_processor=LogitsProcessorList([going_on]),
            )
        new = generated[:, inputs["input_ids"].shape[1] :]
        numbers = (*self.layers, len(self.backbone.blocks))
        texts = [
            self._until_the_end(block, ids, confidence)
            for block, ids, confidence in zip(numbers, new, going_on.confidence, strict=True)
        ]
        return Spoken((), tuple(texts[:-1]), texts[-1])

    def _verbalize(self, states: Sequence[Tensor]) -> list[Tensor]:
        """What the layers give the head: [N, d] each, through their verbalizers or the norm alone."""
        if self._verbalizers is None:
            return [self.backbone.norm(state) for state in states]
        return self._verbalizers(states, self.backbone.norm)

    def _until_the_end(self, block: int, ids: Tensor, confidence: Tensor) -> Said:
        """One row of a batch, without the token that ends it and what follows."""
        end = self.backbone.model.generation_config.eos_token_id
        ends = {end} if isinstance(end, int) else set(end or ())
        length = next((place for place, token in enumerate(ids.tolist()) if token in ends), len(ids))
        words = spell(ids[:length], self.encoder.processor.tokenizer)
        return Said(block, words, tuple(round(value, 4) for value in confidence[:length].tolist()))


class _FromLayers(LogitsProcessor):
    """Lets each row of a batch go on with what its own layer says, and the last row with what the model says."""

    def __init__(self, outputs: Mapping[int, Tensor], layers: Sequence[int], verbalize: Verbalize, head: Head) -> None:
        """`outputs` are those of the blocks in the forward pass that has just been."""
        self._outputs = outputs
        self._layers = layers
        self._verbalize = verbalize
        self._head = head
        self._steps: list[Tensor] = []

    @property
    def confidence(self) -> Tensor:
        """[rows, steps], probability of the chosen words."""
        return torch.stack(self._steps, dim=1)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores that leave each row one word: [rows, vocabulary] → the same shape."""
        states = [self._outputs[layer][row, -1:] for row, layer in enumerate(self._layers)]
        words, confidence = most_probable(torch.cat(self._verbalize(states)), self._head)
        own = scores[-1, : len(self._head.weight)].float().softmax(dim=0).max()
        self._steps.append(torch.cat([confidence, own[None]]).cpu())
        chosen = torch.full_like(scores, -torch.inf)
        chosen[torch.arange(len(words), device=words.device), words] = 0
        chosen[-1] = scores[-1]
        return chosen


def _choose(layers: Sequence[int] | None, there: Sequence[int]) -> tuple[int, ...]:
    """The asked layers, else all that can speak."""
    if layers is None:
        return tuple(there)
    if missing := [layer for layer in layers if layer not in there]:
        raise StageError(
            f"--layers: block {', '.join(map(str, missing))} cannot speak; allowed: {', '.join(map(str, there))}"
        )
    return tuple(sorted(set(layers)))


def _check_fit(verbalizers: Verbalizers, backbone: Backbone, place: str) -> None:
    width = verbalizers.width
    if width != backbone.width or verbalizers.target_layers[-1] >= len(backbone.blocks):
        raise StageError(
            f"{place} has {len(backbone.blocks)} blocks of width {backbone.width}; its verbalizers are for blocks "
            f"{', '.join(map(str, verbalizers.target_layers))} of width {width}"
        )
