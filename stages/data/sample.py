"""A sample: pictures, a conversation about them, and where it stood in its file.

A sample file is JSON Lines. Each line holds `id`, `images` (paths relative to the file's folder),
`messages` in chat form with content parts, and optionally `task`:

    {"id": "7", "images": ["images/7.png"], "task": "counting", "messages": [
      {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "How many cats?"}]},
      {"role": "assistant", "content": [{"type": "text", "text": "two"}]}]}
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from stages.contract.quarantine import BadLine

ROLES = ("system", "user", "assistant")


class BadSample(Exception):
    """A sample that cannot be used. The message is the reason; the run goes on without the sample."""


@dataclass(frozen=True)
class Sample:
    """One conversation about zero or more pictures.

    Attributes:
        id: unique within its file.
        images: absolute paths, in the order of the image parts of the messages.
        messages: chat messages whose content is always a list of `image` and `text` parts.
        task: what kind of question it is; scores are reported by it.
        line: where it stood in its file, counted from 1.
    """

    id: str
    images: tuple[Path, ...]
    messages: tuple[dict[str, Any], ...]
    task: str = ""
    line: int = 0

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
        return [_read_image(path) for path in self.images]

    def decode_images(self, files: Sequence[bytes], max_pixels: int) -> list[Image.Image]:
        """The pictures as RGB.

        Raises:
            BadSample: a picture is damaged or has more than `max_pixels` pixels.
        """
        return [_decode_image(data, path.name, max_pixels) for data, path in zip(files, self.images, strict=True)]

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
    """Read a sample file, in order; what cannot be used is returned beside the samples, with its reason."""
    samples: dict[str, Sample] = {}
    bad = []
    root = path.parent.resolve()
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            sample_id = f"line {number}"
            try:
                data = json.loads(line.decode("utf-8"))
                sample_id = str(data["id"]) if isinstance(data, dict) and "id" in data else sample_id
                sample = replace(parse_sample(data, root), line=number)
                if sample.id in samples:
                    raise BadSample("duplicate id")
                samples[sample.id] = sample
            except UnicodeDecodeError:
                bad.append(BadLine(sample_id, number, "invalid UTF-8"))
            except json.JSONDecodeError as error:
                bad.append(BadLine(sample_id, number, f"invalid JSON: {error.msg}"))
            except BadSample as error:
                bad.append(BadLine(sample_id, number, str(error)))
    return list(samples.values()), bad


def parse_sample(data: Any, root: Path) -> Sample:
    """One decoded line as a sample whose pictures lie below `root`.

    Raises:
        BadSample: a field is missing or of the wrong form, or the pictures do not fit the messages.
    """
    if not isinstance(data, dict) or not {"id", "messages"} <= set(data):
        raise BadSample("a sample needs `id` and `messages`")
    if not data["messages"]:
        raise BadSample("`messages` is empty")
    messages = tuple(_parse_message(message) for message in _list_of(data, "messages"))
    images = tuple(_inside(root, str(name)) for name in _list_of({"images": data.get("images") or []}, "images"))
    placeholders = sum(part["type"] == "image" for message in messages for part in message["content"])
    if placeholders != len(images):
        raise BadSample(f"{len(images)} images but {placeholders} image parts in the messages")
    sample = Sample(str(data["id"]), images, messages, str(data.get("task", "")))
    if messages[0]["role"] == "assistant" or not sample.responses:
        raise BadSample("a conversation needs a question and then an answer")
    if not all(text.strip() for text in sample.responses):
        raise BadSample("an answer is empty")
    return sample


def _list_of(data: dict[str, Any], key: str) -> list[Any]:
    if not isinstance(data[key], list):
        raise BadSample(f"`{key}` has to be a list")
    return data[key]


def _parse_message(message: Any) -> dict[str, Any]:
    if not isinstance(message, dict) or message.get("role") not in ROLES:
        raise BadSample(f"a message needs a `role` out of {', '.join(ROLES)}")
    content = message.get("content")
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(parts, list):
        raise BadSample("a message needs `content`: a text or a list of parts")
    return {"role": message["role"], "content": [_parse_part(part, message["role"]) for part in parts]}


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


def _inside(root: Path, name: str) -> Path:
    path = (root / name).resolve()
    if not path.is_relative_to(root):
        raise BadSample(f"image {name} lies outside the folder of the sample file")
    return path


def _read_image(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadSample(f"image {path.name} cannot be read: {type(error).__name__}") from error


def _decode_image(data: bytes, name: str, max_pixels: int) -> Image.Image:
    try:
        with Image.open(BytesIO(data)) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise BadSample(f"image {name} has {width} x {height} pixels, more than {max_pixels} allowed")
            return image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise BadSample(f"image {name} cannot be read: {type(error).__name__}") from error


def _text(message: dict[str, Any]) -> str:
    return "".join(part["text"] for part in message["content"] if part["type"] == "text")
