"""The page of a prediction begins with the verdict, three numbers, and the best change."""

from __future__ import annotations

from pathlib import Path

from report.predicted import predicted
from report.test_page import Page
from riprap.report import write_preflight


def test_the_head_has_the_verdict_three_numbers_and_the_best_change(tmp_path: Path) -> None:
    found = predicted()
    file = write_preflight(
        found, "rows.jsonl", {0: ("a prompt", "an answer")}, {"model": "m"}, tmp_path / "page.html"
    )
    html = file.read_text(encoding="utf-8")
    text = Page(html).text
    head = text[: text.index("Each behavior")]
    assert found.verdict in head
    for part in ("1 of 2", "0.90", "7 of 40"):
        assert part in head
    assert "What would help: With 25 %" in head
    assert "the probability that refusal breaks is 0.10 in place of 0.90" in head
    assert "left out" in text and "a prompt" in text
    assert "<script" not in html and Page(html).links[0].startswith("data:image/png")
