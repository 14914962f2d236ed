"""A referee: asks a model behind an OpenAI-compatible endpoint what a free answer is worth."""

from __future__ import annotations

import json
import os
import re
import time
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from stages.contract import StageError
from stages.contract.settings import Judge

ATTEMPTS = 4
TIMEOUT_SECONDS = 120.0
_FIRST_PAUSE_SECONDS = 1.0
_FINAL_STATUSES = (400, 401, 403, 404)
"""Asking again would not help."""
_SCORE = re.compile(r"(?<![\d.])(?:0(?:\.\d+)?|1(?:\.0+)?)(?![\d.]*\d)")


class Referee:
    """Scores answers, one request each."""

    def __init__(self, settings: Judge, *, pause_seconds: float = _FIRST_PAUSE_SECONDS) -> None:
        """`pause_seconds` is waited after a failure, then twice as long, and so on."""
        self._settings = settings
        self._pause = pause_seconds

    def score(self, prompt: str) -> float:
        """What the answer in `prompt` is worth, from 0 to 1.

        Raises:
            StageError: the endpoint refuses, or does not give a score however often it is asked.
        """
        problem = ""
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(self._pause * 2 ** (attempt - 1))
            try:
                said = self._ask(prompt)
            except HTTPError as error:
                problem = f"it answers {error.code} {error.reason}"
                if error.code in _FINAL_STATUSES:
                    break
            except (URLError, OSError, ValueError, LookupError, TypeError) as error:
                problem = f"{type(error).__name__}: {error}"
            else:
                if found := _SCORE.search(said):
                    return float(found[0])
                problem = f"it says {said[:80]!r}, which is no score from 0 to 1"
        raise StageError(
            f"evaluation: the judge {self._settings.model} at {self._settings.url} gives no score ({problem}); set "
            "evaluation.judge to another one, or to null to keep the answers without a score"
        )

    def _ask(self, prompt: str) -> str:
        body = {
            "model": self._settings.model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": 0,
            "max_tokens": 16,
        }
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(self._settings.key_variable):
            headers["Authorization"] = f"Bearer {key}"
        request = Request(f"{self._settings.url.rstrip('/')}/chat/completions", json.dumps(body).encode(), headers)
        with urlopen(request, timeout=TIMEOUT_SECONDS) as answer:
            return str(json.load(answer)["choices"][0]["message"]["content"]).strip()
