"""What LLaVA, ShareGPT and chat records mean, and what of them cannot be used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from stages.data import BadSample
from stages.data.sample import Sample, parse_sample

ROOT = Path("/data")


def llava(*values: str, **fields: Any) -> dict[str, Any]:
    """A conversation of human and gpt in turn."""
    speakers = ("human", "gpt") * len(values)
    turns = [{"from": speaker, "value": value} for speaker, value in zip(speakers, values, strict=False)]
    return {"id": "7", "conversations": turns} | fields


def chat(*turns: tuple[str, Any], **fields: Any) -> dict[str, Any]:
    return {"id": "7", "messages": [{"role": role, "content": content} for role, content in turns]} | fields


def read(record: dict[str, Any], stated: str = "auto") -> Sample:
    return parse_sample(record, ROOT, "line 1", stated)


def layout(sample: Sample) -> list[tuple[str, ...]]:
    """Each message's role, and its parts with `*` for a picture."""
    return [(message["role"], *(part.get("text", "*") for part in message["content"])) for message in sample.messages]


@pytest.mark.parametrize(
    ("question", "parts"),
    [
        ("<image>\nWhat is it?", ("*", "What is it?")),
        ("What is it?\n<image>", ("What is it?", "*")),
        ("Is <image> a cat?", ("Is ", "*", " a cat?")),
        ("<image>", ("*",)),
        ("<image>\n\nWhat?\n", ("*", "\nWhat?\n")),
    ],
)
def test_the_image_tag_is_a_picture_where_it_stands(question: str, parts: tuple[str, ...]) -> None:
    sample = read(llava(question, "a cat", image="a.png"))
    assert layout(sample) == [("user", *parts), ("assistant", "a cat")]
    assert (sample.images, sample.format) == ((ROOT / "a.png",), "llava")


@pytest.mark.parametrize("question", ["<image>\n<image>\nSame?", "<image><image>Same?"])
def test_two_pictures_in_one_turn(question: str) -> None:
    sample = read(llava(question, "no", image=["a.png", "b.png"]))
    assert layout(sample)[0] == ("user", "*", "*", "Same?")
    assert sample.images == (ROOT / "a.png", ROOT / "b.png")


def test_pictures_in_different_turns_keep_their_order() -> None:
    sample = read(llava("<image>\nWhat?", "a cat", "And <image>?", "a dog", images=["b.png", "a.png"]))
    assert layout(sample) == [
        ("user", "*", "What?"),
        ("assistant", "a cat"),
        ("user", "And ", "*", "?"),
        ("assistant", "a dog"),
    ]
    assert sample.images == (ROOT / "b.png", ROOT / "a.png")
    assert sample.format == "sharegpt"


def test_sharegpt_without_pictures_and_ids_and_with_a_system_text() -> None:
    record = llava("Hello", "Hi", system="Be brief.")
    del record["id"]
    sample = read(record)
    assert layout(sample) == [("system", "Be brief."), ("user", "Hello"), ("assistant", "Hi")]
    assert (sample.id, sample.format) == ("line 1", "sharegpt")


def test_sharegpt_with_a_system_turn() -> None:
    turns = [
        {"from": "system", "value": "Be brief."},
        {"from": "human", "value": "Hello"},
        {"from": "gpt", "value": "Hi"},
    ]
    assert layout(read({"conversations": turns}))[0] == ("system", "Be brief.")


def test_chat_with_texts_and_tags_or_with_parts() -> None:
    parts = [{"type": "image", "text": None}, {"type": "text", "text": "What?"}]
    expected = [("user", "*", "What?"), ("assistant", "a cat")]
    assert layout(read(chat(("user", "<image>\nWhat?"), ("assistant", "a cat"), images=["a.png"]))) == expected
    assert layout(read(chat(("user", parts), ("assistant", "a cat"), images=["a.png"]))) == expected
    assert layout(read(chat(("user", parts), ("assistant", "a cat"), image="a.png"))) == expected


def test_chat_whose_parts_name_their_pictures() -> None:
    parts = [{"type": "image", "image": "a.png"}, {"type": "image", "path": "b.png"}, {"type": "text", "text": "Same?"}]
    sample = read(chat(("user", parts), ("assistant", "no")))
    assert sample.images == (ROOT / "a.png", ROOT / "b.png")


def test_docowl_names_one_picture_in_a_chat_with_its_own_tag() -> None:
    sample = read(chat(("user", "<|image|>Read it."), ("assistant", "a cat"), image=["./imgs/a.png"]))
    assert layout(sample)[0] == ("user", "*", "Read it.")
    assert sample.images == (ROOT / "imgs" / "a.png",)


def test_alpaca_with_and_without_input() -> None:
    sample = read({"instruction": "Add.", "input": "1 and 2", "output": "3"})
    assert layout(sample) == [("user", "Add.\n\n1 and 2"), ("assistant", "3")]
    assert sample.format == "alpaca"
    pictured = read({"instruction": "<image>\nWhat?", "input": "", "output": "a cat", "image": "a.png"})
    assert layout(pictured)[0] == ("user", "*", "What?")
    with pytest.raises(BadSample, match="an answer is empty"):
        read({"instruction": "Add.", "output": " "})
    with pytest.raises(BadSample, match="needs `content`"):
        read({"instruction": "Add."})


def test_a_tag_in_a_chat_without_pictures_is_text() -> None:
    sample = read(chat(("user", "What does <image> do in HTML?"), ("assistant", "nothing")))
    assert layout(sample)[0] == ("user", "What does <image> do in HTML?")


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (llava("<image>\nWhat?", "a cat"), "0 images but 1 image parts"),
        (llava("What?", "a cat", image="a.png"), "1 images but 0 image parts"),
        (llava("<image>\n<image>\nWhat?", "a cat", image="a.png"), "1 images but 2 image parts"),
        (llava("What?", "<image>", image="a.png"), "a part of a assistant message"),
        (llava("<image>\nWhat?", "a cat", image="../a.png"), "lies outside the folder"),
        (llava("<image>\nWhat?", "a cat", image=".."), "lies outside the folder"),
        (llava("<image>\nWhat?", "a cat", image="a\0/b.png"), "is no path"),
        (llava("<image>\nWhat?", "a cat", image={"bytes": "x"}), "an image has to be named by its path"),
        (llava(" \n", "a cat"), "a question is empty"),
        (llava("What?", ""), "an answer is empty"),
        (llava("What?", "a cat", "", "a dog"), "a question is empty"),
        (llava("What?"), "a question and then an answer"),
        (llava(), "`conversations` is empty"),
        ({"id": "7", "conversations": "hello"}, "`conversations` has to be a list"),
        ({"id": "7", "conversations": [{"from": "human"}]}, "needs `from` and, as a text, `value`"),
        ({"id": "7", "conversations": [{"from": "gpt", "value": "a"}]}, "a question and then an answer"),
        (chat(("system", ""), ("user", "a"), ("assistant", "b")), "a system message is empty"),
        (chat(("system", "a"), ("assistant", "b"), ("user", "c")), "a question and then an answer"),
        (chat(("user", "a"), ("tool", "b"), ("assistant", "c")), "not 'tool'; tool turns are not supported"),
        (llava("a", "b", tools="[{}]"), "tool turns are not supported"),
    ],
)
def test_what_cannot_be_used_is_named(record: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadSample) as error:
        read(record)
    assert reason in str(error.value)


@pytest.mark.parametrize("role", ["function_call", "observation", "tool", "function"])
def test_tool_turns_are_refused(role: str) -> None:
    turns = [{"from": "human", "value": "a"}, {"from": role, "value": "{}"}, {"from": "gpt", "value": "b"}]
    with pytest.raises(BadSample, match=f"not '{role}'; tool turns are not supported"):
        read({"conversations": turns})


def test_tool_calls_are_refused() -> None:
    call = {"role": "assistant", "content": "x", "tool_calls": [{"function": "f"}]}
    with pytest.raises(BadSample, match="tool turns are not supported"):
        read({"messages": [{"role": "user", "content": "a"}, call]})


def test_a_stated_format_is_not_guessed() -> None:
    record = llava("Hello", "Hi") | {"messages": None}
    assert read(record, "llava").format == "llava"
    with pytest.raises(BadSample, match="needs `conversations` to be sharegpt"):
        read(chat(("user", "a"), ("assistant", "b")), "sharegpt")
