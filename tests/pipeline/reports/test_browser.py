"""The report in a real browser, light and dark, narrow and wide (`make test-browser`)."""

from __future__ import annotations

import json
import re
import subprocess
from html import escape, unescape
from pathlib import Path
from typing import Any

import pytest

from pipeline.session import Session
from stages.contract.sayings import Shown, write_sayings
from tests.pipeline.reports.conftest import let_speak, report, speaker, write_predictions
from tests.pipeline.reports.test_layers import journal
from tests.pipeline.reports.test_sayings import HOSTILE

pytestmark = pytest.mark.browser

WIDTHS = (390, 1440)
DARK, LIGHT = 0, 1
"""Of Blink's `preferredColorScheme`."""


def look_at(page: str, folder: Path, scheme: int) -> tuple[list[dict[str, Any]], list[str]]:
    """What `measure.js` finds at each width, and what the browser's console says."""
    script = (Path(__file__).parent / "measure.js").read_text()
    frames = "".join(
        f'<iframe style="border:0;width:{width}px;height:900px" srcdoc="{escape(page)}"></iframe>' for width in WIDTHS
    )
    file = folder / "frames.html"
    file.write_text(f'<!doctype html><meta charset="utf-8"><pre id="found"></pre>{frames}<script>{script}</script>')
    done = subprocess.run(
        [
            "chromium",
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            "--enable-logging=stderr",
            f"--user-data-dir={folder / 'profile'}",
            f"--blink-settings=preferredColorScheme={scheme}",
            "--dump-dom",
            file.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=240,
        check=True,
    )
    found = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stderr
    return json.loads(unescape(found[1])), [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.fixture
def page(session: Session, monkeypatch: pytest.MonkeyPatch) -> str:
    """A report with everything in it, and a hostile sample."""
    lines = [{**line, "loss": 1.0, "match_mean": [0.5, 1.0], "match_expected": [0.5, 1.0]} for line in journal(40)]
    monkeypatch.setattr("pipeline.reports.layers.read_journal", lambda _: lines)
    artifacts = session.artifacts()
    for key in ("evaluation", "evaluation@sft"):
        write_predictions(artifacts[key], [True, False] * 20)
    let_speak(session)
    words = tuple(f"a-rather-long-word-{n}" for n in range(60))
    hostile = Shown(HOSTILE, HOSTILE * 5, HOSTILE, words, (), (speaker(HOSTILE, *words, confidence=1.0),))
    write_sayings(artifacts["evaluation@sft"].path, [hostile])
    del artifacts["evaluation@teacher"]
    return report(session, artifacts)


@pytest.mark.parametrize("scheme", [LIGHT, DARK], ids=["light", "dark"])
def test_the_page_works_at_every_width(page: str, tmp_path: Path, scheme: int) -> None:
    found, console = look_at(page, tmp_path, scheme)
    assert console == []
    assert [one["width"] for one in found] == list(WIDTHS)
    for one in found:
        assert one["overflow"] <= 0, one["width"]
        assert one["faint"] == []
        assert one["texts"] > 100
        assert one["figures"] == one["drawn"] > 20
        assert one["controls"] == one["reached"] > 20
        assert one["choices"] == one["shown"] == 2 + 2 * 20
        assert one["ids"] == one["distinct"]
        assert {"What the layers say", "Layers", "Training", "Stages", "Samples left out", "Lineage"} <= set(
            one["headings"]
        )
