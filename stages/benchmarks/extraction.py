"""Extraction: what an answer in free words says, by rules alone.

No rule guesses: an answer that says two things, or nothing that was asked for, gives an empty text, which is wrong.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Iterator, Sequence

from stages.benchmarks.question import LETTERS

_THOUGHTS = re.compile(r"<think>.*?</think>", re.DOTALL)
_BOXED = re.compile(r"\\boxed\s*\{([^{}]*(?:\{[^{}]*\}[^{}]*)*)\}")
_MARKUP = re.compile(r"[*`$]|\\(?:text|mathrm|mathbf)\b|[{}]|</?answer>")
_SAYS = r"(?:\s+(?:is|be|would|should|must|option|choice|letter))*\s*(?:[:=]|是|为)?\s*"
_LETTER = r"[(\[]?([A-Z]|[a-z](?=[)\].,]|\s*$))(?![\w'’])[)\]]?"
_ANSWERS = re.compile(rf"(?i:\banswer|答案){_SAYS}{_LETTER}")
_CHOICES = re.compile(rf"(?i:\b(?:option|choice|choose|pick|select|go with)){_SAYS}{_LETTER}")
_BARE = re.compile(r"[(\[\s]*([A-Za-z])[)\].:,;!\s]*")
_LEADING = re.compile(r"[(\[]([A-Z])[)\]]|([A-Za-z])(?:\)|[.:](?=\s)|\s*\n|\s+[-–—]\s)")
_BRACKETED = re.compile(r"[(\[]([A-Z])[)\]]")
_ALONE = re.compile(r"(?<![\w'’-])([A-Z])(?![\w'’-])")
_ARTICLE = re.compile(r"\s+(?!(?:because|since|as|for|which|and|or|is)\b)[a-z]")
_ANOTHER = re.compile(r"\s*(?:,|/|\bor\b|\band\b)\s*[(\[]?[A-Z]\b(?![a-z'])")
_DENIED = re.compile(r"\b(?:not|n't|nor|than)\s+[(\[]?$", re.IGNORECASE)

_FIRST_WORD = re.compile(r"\W*(yes|yeah|yep|no|nope)\b", re.IGNORECASE)
_SAYS_YES_NO = re.compile(r"\banswer(?:\s+(?:is|would|should|be))*\W+(yes|no)\b", re.IGNORECASE)
_NEGATION = re.compile(r"\b(?:no|not|none|never|neither|cannot|nobody|nothing|\w+n['’]t)\b", re.IGNORECASE)

_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?"
_NUMBER = re.compile(rf"(?<![\w.])[-+]?{_DIGITS}")
_FRACTION = re.compile(r"([-+]?\d+)\s*/\s*(\d+)")
_LEADING_NUMBER = re.compile(rf"\W*?([-+]?{_DIGITS})\s*[%°\w]*\s*(?:\(|[.;:](?:\s|$)|$)")
_RESULT = re.compile(r"(?i:\banswer(?:\s+(?:is|would|should|be))*\s*[:=]?|=)\s*")
_WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen twenty"
).split()
_FINAL = re.compile(r"(?i:\banswer(?:\s+(?:is|would be|should be)\b\s*:?|\s*[:=]))\s*")


def option_letter(said: str, options: Sequence[str]) -> str:
    """The letter of the option that an answer chooses, `A` for the first; empty if it chooses none or several.

    In this order: a letter alone, an option's own text, a letter that is said to be the answer or chosen, one that
    the answer begins with, the only letter in it, the only option whose text is in it.
    """
    letters, text = LETTERS[: len(options)], _plain(said)
    return (
        _letter_of(_BARE.fullmatch(text), letters)
        or _same_text(text, options)
        or _stated(text, letters)
        or _letter_of(_LEADING.match(text), letters)
        or _only_letter(_without(text, options), letters)
        or _only_named(text, options)
    )


def yes_or_no(said: str) -> str:
    """`yes` or `no`; empty for an empty answer.

    The first word decides, else what is said to be the answer, else whether the first sentence denies anything, as
    in POPE's own evaluation (repository AoiDragon/POPE, evaluate.py).
    """
    text = _plain(said)
    if found := _FIRST_WORD.match(text):
        return "no" if found[1].lower() in ("no", "nope") else "yes"
    if stated := _SAYS_YES_NO.findall(text):
        return str(stated[-1]).lower()
    sentence = re.split(r"[.!?\n]", text.lstrip(string.punctuation + " "), maxsplit=1)[0]
    if not sentence.strip():
        return ""
    return "no" if _NEGATION.search(sentence) else "yes"


def number(said: str) -> float | None:
    """The number that an answer gives: after its last `answer is` or `=`, else the one that it begins with and goes
    on to explain, else its last; digits before words. None if there is none."""
    text = _plain(said).replace("−", "-")
    for tail in reversed(_RESULT.split(text)[1:]):
        if (found := _first_number(tail)) is not None:
            return found
    if leading := _LEADING_NUMBER.match(text):
        return _value(leading[1])
    if whole := _FRACTION.fullmatch(text.strip(" .")):
        return int(whole[1]) / int(whole[2]) if int(whole[2]) else None
    if every := _NUMBER.findall(text):
        return _value(every[-1])
    spelled = [word for word in re.findall(r"[a-z]+", text.lower()) if word in _WORDS]
    return float(_WORDS.index(spelled[-1])) if spelled else None


def numbers(said: str) -> list[float]:
    """All numbers in a text, in order."""
    return [_value(found) for found in _NUMBER.findall(_plain(said).replace("−", "-"))]


def short_answer(said: str) -> str:
    """An answer without `The answer is` before it, quotes around it and a full stop after it."""
    return _FINAL.split(_plain(said))[-1].strip().strip("\"'“”").removesuffix(".").strip()


def _plain(said: str) -> str:
    """Without thoughts and markup, wide characters made narrow; of a boxed answer what is in the last box."""
    text = _THOUGHTS.sub("", unicodedata.normalize("NFKC", said))
    if boxes := _BOXED.findall(text):
        text = boxes[-1]
    return _MARKUP.sub("", text).strip()


def _letter_of(found: re.Match[str] | None, letters: str) -> str:
    letter = next((group for group in found.groups() if group), "").upper() if found else ""
    return letter if letter in letters else ""


def _same_text(text: str, options: Sequence[str]) -> str:
    return _only(letter for letter, option in _lettered(options) if _bare_words(option) == _bare_words(text))


def _stated(text: str, letters: str) -> str:
    """What is last said to be the answer, else the one letter that is chosen."""
    answers = list(_spoken(_ANSWERS, text, letters))
    return answers[-1] if answers else _only(_spoken(_CHOICES, text, letters))


def _spoken(pattern: re.Pattern[str], text: str, letters: str) -> Iterator[str]:
    for found in pattern.finditer(text):
        letter, rest = found[1].upper(), text[found.end() :]
        is_article = letter == "A" and _ARTICLE.match(rest) and not found[0].endswith((")", "]"))
        if letter in letters and not is_article and not _ANOTHER.match(rest):
            yield letter


def _only_letter(text: str, letters: str) -> str:
    bracketed = {letter for letter in _BRACKETED.findall(text) if letter in letters}
    if bracketed:
        return _only(bracketed)
    return _only(
        found[1]
        for found in _ALONE.finditer(text)
        if found[1] in letters.replace("I", "")
        and not (found[1] == "A" and _ARTICLE.match(text, found.end()))
        and not _DENIED.search(text[: found.start()])
    )


def _only_named(text: str, options: Sequence[str]) -> str:
    named = [(letter, option.strip().lower()) for letter, option in _lettered(options) if _stands_in(option, text)]
    return _only(
        letter for letter, option in named if not any(option != other and option in other for _, other in named)
    )


def _without(text: str, options: Sequence[str]) -> str:
    """The text without the options' own: a letter in `vitamin C` chooses nothing."""
    for option in sorted(options, key=len, reverse=True):
        if len(option.strip()) > 1:
            text = re.sub(_whole(option), " ", text, flags=re.IGNORECASE)
    return text


def _stands_in(option: str, text: str) -> bool:
    return bool(option.strip()) and re.search(_whole(option), text, re.IGNORECASE) is not None


def _whole(option: str) -> str:
    return rf"(?<![\w.]){re.escape(option.strip().rstrip('.'))}(?!\w|\.\d)"


def _bare_words(text: str) -> str:
    return " ".join(text.casefold().strip(string.punctuation + string.whitespace).split())


def _lettered(options: Sequence[str]) -> list[tuple[str, str]]:
    return [(letter, option) for letter, option in zip(LETTERS, options, strict=False) if option.strip()]


def _only(letters: Iterator[str] | set[str]) -> str:
    found = set(letters)
    return found.pop() if len(found) == 1 else ""


def _first_number(text: str) -> float | None:
    if fraction := _FRACTION.match(text):
        return int(fraction[1]) / int(fraction[2]) if int(fraction[2]) else None
    found = _NUMBER.search(text)
    return _value(found[0]) if found else None


def _value(digits: str) -> float:
    return float(digits.replace(",", ""))
