"""The audit of a selection: the figure is drawn with any data, the page runs no code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from riprap._text import shorten
from riprap.errors import ConfigError
from riprap.report._audit_page import (
    Audit,
    Group,
    HarmfulRow,
    audit_figure,
    audit_summary,
    group_rows,
    write_audit,
)

NAMES = ("all", "chosen", "not chosen", "high", "moderate", "low")
HOSTILE = "<script>alert(1)</script>\x1b[2J\u202e](x)|{{ 1 }}"


def made(harm: dict[str, float], categories: dict[str, int], rows: int = 4) -> Audit:
    groups = [Group(n, rows, 3.5, 2.0, 0.25, dict(harm), dict(categories)) for n in NAMES]
    worst = [
        HarmfulRow(7, None, None, "refusal", 0.5, 1.25, 2.0, True, shorten(HOSTILE), "so"),
        HarmfulRow(9, "nine", "sums", "", None, 1.0, 2.0, False),
    ]
    settings = {"model": HOSTILE, "max_length": 96}
    norms = {-7: [1, 2], 0: [1, 0]}
    return Audit(HOSTILE, settings, "moderate", 0.5, 6, rows, 1, groups, norms, worst)


@pytest.mark.parametrize("harm", [{}, {"refusal": 0.1, "over_refusal": -0.2}])
@pytest.mark.parametrize("categories", [{}, {"sums": 3, HOSTILE: 1}])
def test_page_and_figure_are_whole(
    harm: dict[str, float], categories: dict[str, int], tmp_path: Path
) -> None:
    page, image = write_audit(made(harm, categories), tmp_path)
    assert image.read_bytes().startswith(b"\x89PNG")
    whole = page.read_text(encoding="utf-8")
    assert "alert(1)</script>" not in whole
    text = re.sub(r"<script.*?</script>", "", whole, flags=re.DOTALL)
    assert "http:" not in text and "https:" not in text
    assert "&lt;script&gt;" in text and r"\x1b[2J" in text
    assert ("harm to refusal" in text) == bool(harm)
    assert ("Rows with the largest predicted harm" in text) == bool(harm)
    assert text.count("data:image/png") == 1  # where scripts are refused
    assert "<noscript><div" in text
    panels = audit_figure(made(harm, categories)).to_dict()["hconcat"]
    assert len(panels) == text.count("data-figure=") == 1 + bool(harm) + bool(categories)


def test_shares_are_of_each_group() -> None:
    audit = made({"refusal": 0.5}, {"talk": 1, "sums": 3})
    assert audit.categories == ["sums", "talk"]
    (first, *_) = group_rows(audit)
    assert first == {
        "group": "all",
        "rows": "4",
        "tokens": "3.50",
        "loss": "2.00",
        "norm": "0.250",
        "harm to refusal": "0.500",
        "sums": "75%",
        "talk": "25%",
    }
    assert list(group_rows(audit, max_categories=1)[0])[-1] == "sums"


def test_what_could_not_be_used_is_said() -> None:
    said = audit_summary(made({}, {}))
    assert said == (
        "6 rows; 4 selected by moderate with ratio 0.5; 1 were longer than 96 tokens and were "
        "truncated; 2 have no response to learn from and cannot be selected"
    )


def test_nothing_usable_is_still_a_page(tmp_path: Path) -> None:
    empty = made({}, {}, rows=0)
    empty.norms, empty.most_harmful = {}, []
    page, _ = write_audit(empty, tmp_path)
    assert "0 selected by moderate" in page.read_text()


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot write the audit"):
        write_audit(made({}, {}), tmp_path / "file")
