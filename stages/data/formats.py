"""Formats: what a record of instruction data means. Each is translated into `messages`, and judged there.

    messages   {"id": …, "images": [path, …], "messages": [{"role": "user", "content": [part, …] or text}, …]}
               a part is {"type": "text", "text": …} or {"type": "image"}, which may name its picture: "image": path
    llava      {"id": …, "image": path or [path, …], "conversations": [{"from": "human", "value": "<image>\\n…"}, …]}
    sharegpt   {"conversations": [{"from": "gpt", "value": …}, …], "images": [path, …], "system": …}
    alpaca     {"instruction": …, "input": …, "output": …}, with `image` or `images` if it has any

Only in `messages` an id names one sample: elsewhere it is often that of a picture with many conversations.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Literal, get_args

from stages.data import BadSample

Format = Literal["auto", "messages", "llava", "sharegpt", "alpaca"]
"""`auto` looks at each record."""
STATED = tuple(name for name in get_args(Format) if name != "auto")

_ROLES = {"human": "user", "gpt": "assistant", "model": "assistant", "chatgpt": "assistant"}
_TAG = re.compile(r"\n?<(?:image|\|image\|)>\n?")
"""Stands for a picture, together with the line breaks that set it apart."""


def translate(record: Any, stated: str) -> tuple[str, dict[str, Any]]:
    """The format of a record, and the record as `messages`, with a list `images` and whatever else it has.

    Raises:
        BadSample: it is of no known format, not of the stated one, or calls tools.
    """
    name = _recognise(record) if stated == "auto" else stated
    key, translation = _TRANSLATIONS[name]
    if not isinstance(record, dict) or key not in record:
        known = ", ".join(dict.fromkeys(f"`{key}`" for key, _ in list(_TRANSLATIONS.values())[1:]))
        wanted = f"`id` and `messages`, or {known}" if stated == "auto" else f"`{key}` to be {stated}"
        raise BadSample(f"a sample needs {wanted}")
    if not record[key]:
        raise BadSample(f"`{key}` is empty")
    if record.get("tools"):
        raise BadSample("a conversation with `tools` cannot be used: tool turns are not supported")
    return name, {**record, **translation(record)}


def _recognise(record: Any) -> str:
    found = {key for key, value in record.items() if value is not None} if isinstance(record, dict) else set()
    if "messages" in found or not found & {"conversations", "instruction"}:
        return "messages"
    if "conversations" not in found:
        return "alpaca"
    return "llava" if "image" in found else "sharegpt"


def _messages(record: dict[str, Any]) -> dict[str, Any]:
    turns, images = record["messages"], _images(record)
    if images and isinstance(turns, list):
        turns = [_with_tags_split(turn) for turn in turns]
    return {"messages": turns, "images": images or _named_in_parts(turns)}


def _conversations(record: dict[str, Any]) -> dict[str, Any]:
    turns, system = record["conversations"], record.get("system")
    if not isinstance(turns, list):
        raise BadSample("`conversations` has to be a list")
    before = [{"role": "system", "content": system}] if system else []
    return {"messages": before + [_with_tags_split(_turn(turn)) for turn in turns], "images": _images(record)}


def _alpaca(record: dict[str, Any]) -> dict[str, Any]:
    asked = "\n\n".join(str(record[key]) for key in ("instruction", "input") if record.get(key))
    turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": record.get("output")}]
    return {"messages": [_with_tags_split(turn) for turn in turns], "images": _images(record)}


_TRANSLATIONS: dict[str, tuple[str, Callable[[dict[str, Any]], dict[str, Any]]]] = {
    "messages": ("messages", _messages),
    "llava": ("conversations", _conversations),
    "sharegpt": ("conversations", _conversations),
    "alpaca": ("instruction", _alpaca),
}
"""Of each format, the key that its records have, and how they become `messages`."""


def _images(record: dict[str, Any]) -> Any:
    """`images` as it is, or `image`, one or several, as a list."""
    image = record.get("image")
    if record.get("images") is not None or image is None:
        return record.get("images") or []
    return image if isinstance(image, list) else [image]


def _turn(turn: Any) -> dict[str, Any]:
    if not isinstance(turn, dict) or not isinstance(turn.get("value"), str):
        raise BadSample("a turn of `conversations` needs `from` and, as a text, `value`")
    speaker = turn.get("from")
    return {"role": _ROLES.get(str(speaker), speaker), "content": turn["value"]}


def _with_tags_split(turn: Any) -> Any:
    """A turn whose content is one text, as parts: a picture for every `<image>`, the text between them."""
    if not isinstance(turn, dict) or not isinstance(turn.get("content"), str):
        return turn
    first, *others = _TAG.split(turn["content"])
    parts: list[dict[str, str]] = [{"type": "text", "text": first}]
    for text in others:
        parts += [{"type": "image"}, {"type": "text", "text": text}]
    return {**turn, "content": [part for part in parts if part.get("text") != ""]}


def _named_in_parts(turns: Any) -> list[str]:
    """The pictures that image parts name themselves."""
    contents = [turn.get("content") for turn in turns if isinstance(turn, dict)] if isinstance(turns, list) else []
    parts = [part for content in contents if isinstance(content, list) for part in content if isinstance(part, dict)]
    names = (part.get("image") or part.get("path") for part in parts if part.get("type") == "image")
    return [name for name in names if isinstance(name, str)]
