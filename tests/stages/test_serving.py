"""A student behind `transformers serve` says over HTTP what it says here.

Opt-in, `make test-serving`: the server needs packages that nothing else here does.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path

import pytest

from stages.contract.settings import ModelLoading, Preprocessing
from stages.models.answering import Answerer, ask
from stages.models.backbone import Backbone, load_processor
from stages.models.student import save_student
from tests.stages import tiny

pytestmark = [
    pytest.mark.serving,
    pytest.mark.skipif(not find_spec("openai"), reason="needs the package openai: make test-serving"),
]

FLOAT32 = ModelLoading(dtype="float32")
PATIENCE_SECONDS = 180.0
TOKENS = 8
QUESTION = "How many dots are there?"


@contextmanager
def served(student: Path, log: Path) -> Iterator[str]:
    """The URL of a server of one student, which ends with the test."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = Path(sys.executable).with_name("transformers")
    command = [program, "serve", student, "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        try:
            wait_until_healthy(f"http://127.0.0.1:{port}", process, log)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(20)
            process.kill()


def wait_until_healthy(url: str, process: subprocess.Popen, log: Path) -> None:
    begun = time.monotonic()
    while time.monotonic() - begun < PATIENCE_SECONDS:
        assert process.poll() is None, log.read_text()
        with suppress(urllib.error.URLError, ConnectionError), urllib.request.urlopen(f"{url}/health", timeout=5):
            return
        time.sleep(0.1)
    raise AssertionError(log.read_text())


def chat(url: str, student: Path, picture: Path) -> str:
    """One OpenAI-style question about a picture."""
    image = f"data:image/png;base64,{b64encode(picture.read_bytes()).decode()}"
    content = [{"type": "image_url", "image_url": {"url": image}}, {"type": "text", "text": QUESTION}]
    body = {"model": str(student), "messages": [{"role": "user", "content": content}]}
    body |= {"temperature": 0, "max_tokens": TOKENS}
    request = urllib.request.Request(
        f"{url}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=PATIENCE_SECONDS) as answer:
        return json.load(answer)["choices"][0]["message"]["content"]


def without_control_tokens(text: str, answerer: Answerer) -> str:
    """A model of random weights says some, and the server lets them through; spaces beside them stay behind."""
    for token in answerer.encoder.processor.tokenizer.added_tokens_decoder.values():
        text = text.replace(token.content, "") if token.special else text
    return "".join(text.split())


@pytest.mark.timeout(600)
def test_the_served_student_answers_as_evaluation_decodes(tmp_path: Path) -> None:
    tiny.save_samples(tmp_path / "data", count=1)
    base = tiny.save_qwen2vl(tmp_path / "base", width=32, layers=3, pad_rows=5, seed=0)
    student = tmp_path / "student"
    save_student(Backbone.load(str(base), FLOAT32), load_processor(str(base), FLOAT32), student)
    answerer = Answerer(str(student), FLOAT32, Preprocessing())
    with served(student, tmp_path / "server.log") as url:
        for picture in sorted((tmp_path / "data" / "images").iterdir()):
            answer = without_control_tokens(chat(url, student, picture), answerer)
            assert answer == "".join(answerer.answer(ask(QUESTION, [picture]), TOKENS).split())
