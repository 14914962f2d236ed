import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from stages.benchmarks.referee import ATTEMPTS, Referee
from stages.contract import StageError
from stages.contract.settings import Judge


class Endpoint:
    """Answers with what it is told, and remembers what it was asked."""

    def __init__(self) -> None:
        self.answers: list[tuple[int, object]] = []
        self.asked: list[tuple[str, dict, str | None]] = []
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                endpoint.asked.append((self.path, body, self.headers.get("Authorization")))
                status, content = endpoint.answers[min(len(endpoint.asked), len(endpoint.answers)) - 1]
                answer = json.dumps({"choices": [{"message": {"content": content}}]}).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: object) -> None:
                return None

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    endpoint = Endpoint()
    thread = threading.Thread(target=endpoint.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield endpoint
    endpoint.server.shutdown()
    thread.join()
    endpoint.server.server_close()


def referee(endpoint: Endpoint) -> Referee:
    return Referee(Judge(url=endpoint.url, model="judge", key_variable="TEST_JUDGE_KEY"), pause_seconds=0.0)


def test_a_judge_is_asked_for_one_score(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_JUDGE_KEY", "secret")
    endpoint.answers = [(200, "0.7")]
    assert referee(endpoint).score("What is it worth?") == 0.7
    ((path, body, key),) = endpoint.asked
    assert (path, key) == ("/v1/chat/completions", "Bearer secret")
    assert body["messages"] == [{"role": "user", "content": "What is it worth?"}]
    assert (body["model"], body["temperature"]) == ("judge", 0)


@pytest.mark.parametrize(
    ("said", "score"), [("1.0", 1.0), ("0", 0.0), ("Correctness: 0.4", 0.4), (" 0.3 |", 0.3), ("1", 1.0), ("0.9.", 0.9)]
)
def test_a_score_is_found_in_what_it_says(endpoint: Endpoint, said: str, score: float) -> None:
    endpoint.answers = [(200, said)]
    assert referee(endpoint).score("?") == score


def test_it_is_asked_again_after_a_failure_or_nonsense(endpoint: Endpoint) -> None:
    endpoint.answers = [(503, ""), (200, "well done"), (200, "0.5")]
    assert referee(endpoint).score("?") == 0.5
    assert [key for _, _, key in endpoint.asked] == [None] * 3


@pytest.mark.parametrize(("answer", "times"), [((200, "10"), ATTEMPTS), ((200, None), ATTEMPTS), ((401, ""), 1)])
def test_a_judge_that_gives_no_score_is_named(endpoint: Endpoint, answer: tuple[int, object], times: int) -> None:
    endpoint.answers = [answer]
    with pytest.raises(StageError, match=r"the judge judge at http.* gives no score \(.*set evaluation\.judge"):
        referee(endpoint).score("?")
    assert len(endpoint.asked) == times
