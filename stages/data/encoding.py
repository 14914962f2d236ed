"""Encoding: samples to token ids, response masks and the model's other inputs.

The conversation is rendered by the checkpoint's own chat template and tokenized by its own
processor. A response is what the template marks as generated (`{% generation %}`) or, in a template
that marks nothing, what it adds between an assistant turn's header and the end of that turn, the
end-of-turn token included. Only those tokens carry loss (METHOD §1), and they have to decode to the
responses. Text that spells a control token could end a turn or begin one, so it is refused.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import unicodedata
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy, deepcopy
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from jinja2 import TemplateError
from torch import Tensor
from transformers.utils.chat_template_utils import render_jinja_template

from stages.contract import StageError
from stages.contract.settings import Preprocessing
from stages.data.sample import BadLine, BadSample, Sample

Positions = Callable[[Mapping[str, Tensor]], Tensor | None]
"""From the model's inputs of one sample to the places of its tokens, [axes, 1, T] int64, if the model wants them."""

_GENERATION_BLOCK = re.compile(r"\{%-?\s*generation\s*-?%\}")


@dataclass(frozen=True)
class Encoded:
    """One sample as the model sees it.

    Attributes:
        sample: where it comes from.
        input_ids: [T] int64, prompt, image tokens and responses.
        response_mask: [T] bool, true at response tokens.
        extras: the processor's other tensors (pixel values, grids, …) and maybe the tokens' places; those of shape
            […, 1, T] are padded with the tokens, the others are concatenated over samples.
        content_hash: of its messages and pictures, then of the processor and the template.
    """

    sample: Sample
    input_ids: Tensor
    response_mask: Tensor
    extras: dict[str, Tensor]
    content_hash: str = ""

    @property
    def response_ids(self) -> Tensor:
        """[R] int64, the tokens that carry loss."""
        return self.input_ids[self.response_mask]

    @property
    def signature(self) -> str:
        """What a teacher's and a student's view of one sample have in common: all token ids, and the image grids."""
        tokens = f"{len(self.input_ids)} tokens {zlib.crc32(self.input_ids.numpy().tobytes()):08x}"
        grids = (
            f"{name} {tensor.tolist()}"
            for name, tensor in sorted(self.extras.items())
            if not tensor.is_floating_point() and tensor.shape[-1] != len(self.input_ids)
        )
        return ", ".join([tokens, *grids])

    @property
    def num_bytes(self) -> int:
        """Memory of the tensors."""
        return sum(tensor.nbytes for tensor in (self.input_ids, self.response_mask, *self.extras.values()))


@dataclass(frozen=True)
class Batch:
    """Padded samples and the places where a response token is predicted.

    Attributes:
        sample_ids: of the B samples.
        inputs: what the model's forward takes; `input_ids` is [B, T].
        rows, positions: [N] int64; the hidden state at (rows[n], positions[n]) predicts labels[n].
        labels: [N] int64, response tokens of all samples one after the other.
        cached: the teacher's side: for each cached layer one [N, width] tensor per field.
        counts: False for a micro-batch that is repeated only because other workers have more.
    """

    sample_ids: tuple[str, ...]
    inputs: dict[str, Tensor]
    rows: Tensor
    positions: Tensor
    labels: Tensor
    cached: Sequence[Sequence[Tensor]] = ()
    counts: bool = True

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device."""
        return replace(
            self,
            inputs={name: tensor.to(device) for name, tensor in self.inputs.items()},
            rows=self.rows.to(device),
            positions=self.positions.to(device),
            labels=self.labels.to(device),
            cached=[[tensor.to(device) for tensor in layer] for layer in self.cached],
        )


class Encoder:
    """Turns samples into tensors with one checkpoint's processor."""

    def __init__(
        self, processor: Any, settings: Preprocessing, *, positions: Positions | None = None, memory_bytes: int = 2**30
    ) -> None:
        """Encoded samples are kept up to `memory_bytes`, so that a second epoch of a small set decodes nothing.

        Args:
            positions: where the model that is trained places tokens; it finds them itself if it is not told.
        """
        self.processor = processor
        self._settings = settings
        self._positions = positions
        self._memory = _Memory(memory_bytes)
        self._limits = pixel_limits(processor, settings)

    @property
    def real_vocabulary(self) -> int:
        """Number of real token ids; a head may have more rows, which are padding."""
        return len(self.processor.tokenizer)

    @property
    def pad_id(self) -> int:
        """Token id that fills the end of short samples."""
        return pad_id(self.processor.tokenizer)

    def encode(self, sample: Sample) -> Encoded:
        """Encode a conversation with its responses.

        Raises:
            BadSample: a picture cannot be used, the sample is too long, or its response tokens do
                not decode to the responses.
        """
        encoded = self._memory.get(sample.id)
        if encoded is None:
            encoded = self._encode(sample)
            self._memory.keep(encoded)
        return encoded

    def encode_prompt(self, sample: Sample) -> dict[str, Tensor]:
        """A conversation that ends with a question, as what a model has to continue.

        Returns:
            The model's inputs of one row: `input_ids` is [1, T]; pictures are not padded.

        Raises:
            BadSample: a picture cannot be used, or the conversation is too long.
        """
        self._refuse_control_tokens(sample)
        images = sample.load_images(self._settings.max_image_pixels)
        inputs = self._process(self.render(sample.messages, prompt=True), images)
        self._refuse_too_long(inputs["input_ids"].shape[1])
        return {name: value for name, value in inputs.items() if isinstance(value, Tensor)}

    def for_another_thread(self) -> Encoder:
        """An encoder with a processor of its own and the same memory."""
        other = copy(self)
        other.processor = deepcopy(self.processor)
        return other

    def _encode(self, sample: Sample) -> Encoded:
        self._refuse_control_tokens(sample)
        text = self.render(sample.messages)
        spans = self._marked_spans(sample) if self._template_marks else self._response_spans(sample, text)
        files = sample.read_images()
        images = sample.decode_images(files, self._settings.max_image_pixels)
        extras = self._process(text, images, return_offsets_mapping=True, return_text_replacement_offsets=True)
        offsets = extras.pop("offset_mapping")[0]
        said = "".join(text[start:end] for start, end in spans)
        spans = _expand(spans, extras.pop("text_replacement_offsets", None), int(offsets[-1][1]) - len(text))
        input_ids = extras.pop("input_ids")[0]
        for unused in ("attention_mask", "labels"):
            extras.pop(unused, None)
        if others := sorted(name for name, value in extras.items() if not isinstance(value, Tensor)):
            raise BadSample(f"the processor gives {', '.join(others)} not as tensors, which no batch can be made of")
        self._refuse_too_long(len(input_ids))
        places = self._positions({"input_ids": input_ids[None], **extras}) if self._positions else None
        if places is not None:
            extras["position_ids"] = places
        mask = _within(spans, *offsets.unbind(dim=1))
        self._check(sample, input_ids[mask], said)
        content_hash = f"{sample.content_hash(files)}-{self._processor_hash}"
        return Encoded(sample, input_ids, mask, extras, content_hash)

    @cached_property
    def _processor_hash(self) -> str:
        """16 hex digits of what decides how samples become tensors."""
        tokenizer, pictures = self.processor.tokenizer, getattr(self.processor, "image_processor", None)
        parts = {
            "vocabulary": tokenizer.get_vocab(),
            "template": self.processor.chat_template or tokenizer.chat_template,
            "pictures": pictures and pictures.to_dict(),
            "limits": self._limits,
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]

    def render(self, messages: Sequence[dict[str, Any]], *, prompt: bool = False) -> str:
        """The text of a conversation, as the chat template lays it out.

        Raises:
            BadSample: the template refuses it.
        """
        try:
            return self.processor.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=prompt)
        except TemplateError as error:
            raise BadSample(f"the chat template refuses the conversation: {error}") from error

    def _process(self, text: str, images: list[Any], **options: Any) -> dict[str, Any]:
        limits = self._limits if images else {}
        try:
            return dict(self.processor(text=[text], images=images or None, return_tensors="pt", **limits, **options))
        except (ValueError, IndexError, TypeError, RuntimeError) as error:
            raise BadSample(f"the processor refuses the sample: {error}") from error

    @property
    def _template(self) -> str:
        return str(self.processor.chat_template or self.processor.tokenizer.chat_template)

    @cached_property
    def _template_marks(self) -> bool:
        return _GENERATION_BLOCK.search(self._template) is not None

    @cached_property
    def _control_tokens(self) -> tuple[str, ...]:
        tokens = self.processor.tokenizer.added_tokens_decoder.values()
        return tuple(token.content for token in tokens if token.special)

    def _refuse_control_tokens(self, sample: Sample) -> None:
        texts = [part["text"] for message in sample.messages for part in message["content"] if "text" in part]
        for token in self._control_tokens:
            if any(token in text for text in texts):
                raise BadSample(f"a text contains {token}, which is a control token of the model")

    def _refuse_too_long(self, tokens: int) -> None:
        if tokens > self._settings.max_tokens:
            raise BadSample(f"{tokens} tokens, more than preprocessing.max_tokens {self._settings.max_tokens}")

    def _marked_spans(self, sample: Sample) -> list[tuple[int, int]]:
        """Character spans of the rendered text that the template itself marks as generated."""
        rendered: Any = render_jinja_template(
            [list(sample.messages)],
            chat_template=self._template,
            return_assistant_tokens_mask=True,
            **self.processor.tokenizer.special_tokens_map,
        )
        return rendered[1][0]

    def _response_spans(self, sample: Sample, text: str) -> list[tuple[int, int]]:
        """Character spans of the responses in the rendered text, each through its end-of-turn token."""
        spans = []
        for index, message in enumerate(sample.messages):
            if message["role"] != "assistant":
                continue
            header = self.render(sample.messages[:index], prompt=True)
            turn = self.render(sample.messages[: index + 1])
            if not (text.startswith(turn.rstrip()) and turn.startswith(header)):
                raise BadSample("the chat template renders a turn differently once the conversation goes on")
            spans.append((len(header), len(turn.rstrip())))
        return spans

    def _check(self, sample: Sample, response_ids: Tensor, said: str) -> None:
        """`said` are the responses in the rendered text, with the tokens that end their turns."""
        decoded = self.processor.tokenizer.decode(response_ids, skip_special_tokens=True)
        if _comparable(decoded) != _comparable("".join(sample.responses)):
            raise BadSample(f"the response tokens decode to {decoded!r}, not to the responses")
        whole = self.processor.tokenizer.decode(response_ids)
        if _comparable(whole) != _comparable(said):
            raise BadSample(f"the response tokens decode to {whole!r}, the chat template has {said!r} there")


def _comparable(text: str) -> str:
    """Tokenizers compose characters (NFC) and templates strip white space; neither changes what is said."""
    return "".join(unicodedata.normalize("NFC", text).split())


def pixel_limits(processor: Any, settings: Preprocessing) -> dict[str, Any]:
    """The processor's option that holds pictures between `min_pixels` and `max_pixels`; empty without limits.

    Raises:
        StageError: the processor resizes pictures by another rule.
    """
    if settings.min_pixels is None and settings.max_pixels is None:
        return {}
    size = processor.image_processor.to_dict().get("size") or {}
    if not {"shortest_edge", "longest_edge"} <= set(size):
        raise StageError(
            f"preprocessing.max_pixels and min_pixels do not go with {type(processor.image_processor).__name__}, "
            f"which resizes to {size}; leave them null"
        )
    least, most = settings.min_pixels or size["shortest_edge"], settings.max_pixels or size["longest_edge"]
    return {"size": {"shortest_edge": least, "longest_edge": most}}


class _Memory:
    """Encoded samples by id, up to a number of bytes; several threads may use it."""

    def __init__(self, num_bytes: int) -> None:
        self._left = num_bytes
        self._kept: dict[str, Encoded] = {}
        self._lock = threading.Lock()

    def get(self, sample_id: str) -> Encoded | None:
        return self._kept.get(sample_id)

    def keep(self, encoded: Encoded) -> None:
        with self._lock:
            if encoded.num_bytes <= self._left and encoded.sample.id not in self._kept:
                self._kept[encoded.sample.id] = encoded
                self._left -= encoded.num_bytes


def pad_id(tokenizer: Any) -> int:
    """Token id that fills the end of short samples."""
    return tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id


def encode_all(encoder: Encoder, samples: Iterable[Sample]) -> tuple[list[Encoded], list[BadLine]]:
    """Encode what can be encoded; the others are named with the reason."""
    good, bad = [], []
    for sample in samples:
        try:
            good.append(encoder.encode(sample))
        except BadSample as error:
            bad.append(BadLine(sample.id, sample.line, str(error)))
    return good, bad


def collate(samples: Sequence[Encoded], pad_id: int) -> Batch:
    """Pad samples on the right and list their response positions.

    A response token at position t is predicted from the hidden state at t - 1.
    """
    longest = max(len(sample.input_ids) for sample in samples)
    inputs = {
        "input_ids": torch.stack([_pad(sample.input_ids, longest, pad_id) for sample in samples]),
        "attention_mask": torch.stack([_pad(torch.ones_like(s.input_ids), longest, 0) for s in samples]),
    }
    names = dict.fromkeys(name for sample in samples for name in sample.extras)
    inputs |= {name: _collate_extra([s for s in samples if name in s.extras], name, longest) for name in names}
    places = [sample.response_mask.nonzero()[:, 0] for sample in samples]
    return Batch(
        sample_ids=tuple(sample.sample.id for sample in samples),
        inputs=inputs,
        rows=torch.repeat_interleave(torch.arange(len(samples)), torch.tensor([len(p) for p in places])),
        positions=torch.cat(places) - 1,
        labels=torch.cat([sample.response_ids for sample in samples]),
    )


def collate_prompts(samples: Sequence[Encoded], pad_id: int) -> dict[str, Tensor]:
    """Everything before the last response, padded on the left, for generation."""
    cut = [_before_last_response(sample) for sample in samples]
    batch = collate(cut, pad_id).inputs
    length = batch["input_ids"].shape[1]
    shifts = [length - len(sample.input_ids) for sample in cut]
    return {
        name: torch.stack([row.roll(shift, 0) for row, shift in zip(tensor, shifts, strict=True)])
        if tensor.shape[:2] == (len(cut), length)
        else tensor
        for name, tensor in batch.items()
    }


def _before_last_response(sample: Encoded) -> Encoded:
    mask = sample.response_mask
    starts = (mask & ~mask.roll(1)).nonzero()[:, 0]
    end = int(starts[-1])
    extras = {
        name: tensor[:, :end] if tensor.shape == (1, len(mask)) else tensor for name, tensor in sample.extras.items()
    }
    return Encoded(sample.sample, sample.input_ids[:end], mask[:end], extras)


def _collate_extra(samples: Sequence[Encoded], name: str, longest: int) -> Tensor:
    values = [sample.extras[name] for sample in samples]
    along_tokens = all(v.shape[-2:] == (1, len(s.input_ids)) for v, s in zip(values, samples, strict=True))
    if along_tokens:
        return torch.cat([_pad(value, longest, 0) for value in values], dim=-2)
    largest = [max(sizes) for sizes in zip(*(value.shape[1:] for value in values), strict=True)]
    return torch.cat([_grow(value, largest) for value in values])


def _grow(tensor: Tensor, shape: list[int]) -> Tensor:
    """Zeros at the end of every axis but the first, up to `shape`: tiles that a smaller picture does not have."""
    missing = [target - size for size, target in zip(tensor.shape[1:], shape, strict=True)]
    return torch.nn.functional.pad(tensor, [amount for axis in reversed(missing) for amount in (0, axis)])


def _pad(tensor: Tensor, length: int, value: int) -> Tensor:
    """Fill the end of the last axis."""
    return torch.nn.functional.pad(tensor, (0, length - tensor.shape[-1]), value=value)


def _within(spans: Sequence[tuple[int, int]], start: Tensor, end: Tensor) -> Tensor:
    """Which tokens, from character `start` to `end` ([T] int64 each), are not empty and lie in one of the spans."""
    mask = torch.zeros(len(start), dtype=torch.bool)
    for first, last in spans:
        mask |= (first <= start) & (start < end) & (end <= last)
    return mask


def _expand(
    spans: list[tuple[int, int]], replacements: list[list[dict[str, Any]]] | None, growth: int
) -> list[tuple[int, int]]:
    """Move spans of the rendered text into the text whose image placeholders were expanded.

    A processor that does not say what it replaced is taken to have done so before the first response; what the
    tokens then decode to shows whether it has.
    """
    if replacements is None:
        return [(start + growth, end + growth) for start, end in spans]
    of_text = replacements[0] if len(replacements) else []

    def moved(place: int) -> int:
        before = [r for r in of_text if r["span"][1] <= place]
        return place + (before[-1]["new_span"][1] - before[-1]["span"][1] if before else 0)

    return [(moved(start), moved(end)) for start, end in spans]
