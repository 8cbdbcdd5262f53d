"""Words of the pages: explained where they stand, once in a text, and never as markup."""

from __future__ import annotations

import re
from html import unescape
from pathlib import Path

import pytest

from report.synthetic import typical
from riprap._glossary import IN_TEXTS, WORDS, explained_parts, explanation
from riprap.report import write_report
from riprap.report._bundle import Words


@pytest.mark.parametrize("word", WORDS)
def test_an_explanation_is_one_short_sentence(word: str) -> None:
    text = WORDS[word]
    assert text.endswith(".") and text.count(". ") == 0
    assert len(text.split()) <= 30
    assert explanation(word) == text


@pytest.mark.parametrize(
    ("plural", "word"),
    [
        ("probes", "probe"),
        ("probe evaluations", "probe evaluation"),
        ("losses", "loss"),
        ("alert policies", "alert policy"),
        ("policy hashes", "policy hash"),
        ("replays", "replay"),
    ],
)
def test_a_plural_is_explained_as_its_word(plural: str, word: str) -> None:
    assert explanation(plural) == WORDS[word]
    assert explanation(f"un{plural}") is None and explanation(f"{plural}s") is None


def test_the_longest_word_is_explained_and_parts_of_words_are_not() -> None:
    assert set(IN_TEXTS) <= set(WORDS)
    text = "the threshold margin of 3 probes; marginal scores, re-score, alert policies, no loss"
    assert [part for part, why in explained_parts(text) if why] == [
        "threshold margin",
        "probes",
        "scores",
        "alert policies",
    ]
    code = explained_parts('guard=guards.AutoGuard(...) or guard: {name: x}, score="1", a guard.')
    assert [part for part, why in code if why] == ["guard"]
    assert "".join(part for part, _ in explained_parts(text)) == text


def test_a_text_explains_a_word_once_and_stays_text() -> None:
    words = Words()
    html = str(words.explain("<b>margin</b> and margin"))
    assert html.count("<dfn") == 1 and "&lt;b&gt;" in html and html.endswith("and margin")
    assert words.term("no such <word>") == "no such &lt;word&gt;"
    assert list(words.used) == ["margin"]


def test_a_page_explains_each_of_its_words_and_lists_them(tmp_path: Path) -> None:
    scene = typical(tmp_path / "run")
    scene.writer.close()
    html = write_report(tmp_path / "run", tmp_path / "page.html").read_text(encoding="utf-8")
    found = re.findall(r'<dfn class="term" tabindex="0" aria-description="([^"]+)">', html)
    marked = [unescape(text) for text in found]
    for word in ("interference", "forecast", "threshold margin", "floor", "watch", "NOT_RUN"):
        assert WORDS[word] in marked
    listed = unescape(html.split("Words on this page")[1])
    assert all(text in listed for text in marked)
