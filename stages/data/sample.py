"""A sample: pictures, a conversation about them, and where it stood in its file.

Data in any of the known formats is read as one thing (`stages.data.formats`); our own is JSON Lines.
Each line holds `id`, `images` (paths relative to the file's folder), `messages` in chat form with
content parts, and optionally `task`:

    {"id": "7", "images": ["images/7.png"], "task": "counting", "messages": [
      {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "How many cats?"}]},
      {"role": "assistant", "content": [{"type": "text", "text": "two"}]}]}
"""

from __future__ import annotations

import gc
import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from stages.contract.quarantine import BadLine
from stages.data import BadSample
from stages.data.formats import translate
from stages.data.mixture import Source, open_sources
from stages.data.pictures import Cell, Picture, decode_picture, inside, read_picture
from stages.data.records import read_records

ROLES = ("system", "user", "assistant")
_NAMES = {"system": "a system message", "user": "a question", "assistant": "an answer"}


@dataclass(frozen=True, slots=True)
class Sample:
    """One conversation about zero or more pictures.

    Attributes:
        id: unique within its data set.
        images: where each picture lies, in the order of the image parts of the messages.
        messages: chat messages whose content is always a list of `image` and `text` parts.
        task: what kind of question it is; scores are reported by it.
        line: where it stood in its file, counted from 1.
        format: what it was written in.
    """

    id: str
    images: tuple[Picture, ...]
    messages: tuple[dict[str, Any], ...]
    task: str = ""
    line: int = 0
    format: str = "messages"

    @property
    def responses(self) -> list[str]:
        """The texts of the assistant's turns."""
        return [_text(message) for message in self.messages if message["role"] == "assistant"]

    @property
    def question(self) -> str:
        """The text of the last user turn."""
        return next((_text(m) for m in reversed(self.messages) if m["role"] == "user"), "")

    def read_images(self) -> list[bytes]:
        """The pictures' files.

        Raises:
            BadSample: a picture is missing.
        """
        return [read_picture(picture) for picture in self.images]

    def decode_images(self, files: Sequence[bytes], max_pixels: int) -> list[Image.Image]:
        """The pictures as RGB.

        Raises:
            BadSample: a picture is damaged or has more than `max_pixels` pixels.
        """
        return [decode_picture(data, image.name, max_pixels) for data, image in zip(files, self.images, strict=True)]

    def load_images(self, max_pixels: int) -> list[Image.Image]:
        """Read and decode the pictures; raises as both do."""
        return self.decode_images(self.read_images(), max_pixels)

    def content_hash(self, files: Sequence[bytes]) -> str:
        """16 hex digits of the messages and the pictures' files: what it says, wherever it lies."""
        content = hashlib.sha256(json.dumps(self.messages, sort_keys=True).encode())
        for data in files:
            content.update(hashlib.sha256(data).digest())
        return content.hexdigest()[:16]


def read_samples(path: Path) -> tuple[list[Sample], list[BadLine]]:
    """Read a data set, in order; what cannot be used is returned beside the samples, with its reason.

    Args:
        path: JSON Lines, a JSON array, Parquet or a folder of it, each with a format stated behind
            it if need be (`train.json#llava`); or the YAML file of a mixture.

    Raises:
        StageError: a file is missing or damaged as a whole.
    """
    mixture = open_sources(path)
    with _garbage_collection_paused():
        entries = [entry for source in mixture.sources for entry in _take(source, mixture.seed)]
    samples = [entry for entry in entries if isinstance(entry, Sample)]
    return samples, [entry for entry in entries if isinstance(entry, BadLine)]


@contextmanager
def _garbage_collection_paused() -> Iterator[None]:
    """Looking for garbage among millions of objects that all stay would double the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _take(source: Source, seed: int) -> Iterator[Sample | BadLine]:
    """What a mixture takes of one source; a sample that is taken again gets an id of its own."""
    entries = list(read_source(source))
    last, times = -1, 1
    for index in source.take(len(entries), seed):
        times = times + 1 if index == last else 1
        entry, last = entries[index], index
        yield entry if times == 1 else replace(entry, id=f"{entry.id}#{times}")


def read_source(source: Source) -> Iterator[Sample | BadLine]:
    """Every record of one source, in order, as a sample or as the reason why it is none."""
    seen: set[str] = set()
    prefix = f"{source.name}/" if source.name else ""
    for record in read_records(source.path, source.root):
        sample_id = record.name
        try:
            if record.reason:
                raise BadSample(record.reason)
            if isinstance(record.value, dict):
                sample_id = _id(record.value, record.name)
            sample = parse_sample(record.value, source.root, record.name, source.format)
            if sample.id in seen and sample.format == "messages":
                raise BadSample("duplicate id")
            sample_id = f"{sample.id} ({record.name})" if sample.id in seen else sample.id
            seen.add(sample_id)
            yield replace(sample, id=prefix + sample_id, task=sample.task or source.name, line=record.line)
        except BadSample as error:
            yield BadLine(prefix + sample_id, record.line, str(error))


def parse_sample(data: Any, root: Path, name: str = "", stated: str = "auto") -> Sample:
    """One decoded record as a sample whose pictures lie below `root`.

    Args:
        name: its id if it has none.
        stated: its format, or `auto`.

    Raises:
        BadSample: a field is missing or of the wrong form, or the pictures do not fit the messages.
    """
    form, data = translate(data, stated)
    messages = tuple(_parse_message(message) for message in _list_of(data, "messages"))
    images = tuple(_picture(root, image) for image in _list_of(data, "images"))
    placeholders = sum(part["type"] == "image" for message in messages for part in message["content"])
    if placeholders != len(images):
        raise BadSample(f"{len(images)} images but {placeholders} image parts in the messages")
    sample = Sample(_id(data, name), images, messages, str(data.get("task") or ""), format=form)
    if not _begins_with_a_question(sample) or not sample.responses:
        raise BadSample("a conversation needs a question and then an answer")
    for message in messages:
        _refuse_empty(message)
    return sample


def _id(data: dict[str, Any], name: str) -> str:
    return name if data.get("id") is None else str(data["id"])


def _begins_with_a_question(sample: Sample) -> bool:
    return next((m["role"] for m in sample.messages if m["role"] != "system"), None) == "user"


def _refuse_empty(message: dict[str, Any]) -> None:
    if not _text(message).strip() and not any(part["type"] == "image" for part in message["content"]):
        raise BadSample(f"{_NAMES[message['role']]} is empty")


def _picture(root: Path, image: Any) -> Picture:
    if isinstance(image, Cell):
        return image
    if not isinstance(image, str):
        raise BadSample("an image has to be named by its path")
    return inside(root, image)


def _list_of(data: dict[str, Any], key: str) -> list[Any]:
    if not isinstance(data[key], list):
        raise BadSample(f"`{key}` has to be a list")
    return data[key]


def _parse_message(message: Any) -> dict[str, Any]:
    role = message.get("role") if isinstance(message, dict) else None
    if role not in ROLES or message.get("tool_calls"):
        allowed = ", ".join(ROLES)
        raise BadSample(f"a message needs a `role` out of {allowed}, not {role!r}; tool turns are not supported")
    content = message.get("content")
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(parts, list):
        raise BadSample("a message needs `content`: a text or a list of parts")
    return {"role": role, "content": [_parse_part(part, role) for part in parts]}


def _parse_part(part: Any, role: str) -> dict[str, str]:
    if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return {"type": "text", "text": _encodable(part["text"])}
    if isinstance(part, dict) and part.get("type") == "image" and role != "assistant":
        return {"type": "image"}
    raise BadSample(f"a part of a {role} message is not one of: text, image (images only in questions)")


def _encodable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadSample(f"a text cannot be encoded: half a character at place {error.start}") from error
    return text


def _text(message: dict[str, Any]) -> str:
    return "".join(part["text"] for part in message["content"] if part["type"] == "text")
