"""Audit of a selection of rows: figure, table, and one self-contained page."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import altair as alt
import pandas as pd

from riprap._formatting import format_number
from riprap._text import shorten
from riprap.errors import ConfigError
from riprap.report import _style as style
from riprap.report._bundle import (
    Head,
    asset,
    check_page,
    json_for_script,
    render_page,
    vega_bundle,
    write_page,
)
from riprap.report._charts import apply_style, save_figure

KIND = "selection audit"  # of the page
SELECTED, REJECTED = "chosen", "not chosen"  # stored names of the groups
NORM_GROUPS = ("high", "moderate", "low")  # groups by gradient norm
BINS_PER_DECADE = 10  # bars per power of ten
LEGEND = alt.Legend(orient="bottom", columns=3)


@dataclass
class Group:
    """A group of rows.

    Attributes:
        tokens, loss, norm: means over the rows.
        harm: behavior → mean predicted harm.
        categories: category → number of rows.
    """

    name: str
    rows: int = 0
    tokens: float = 0.0
    loss: float = 0.0
    norm: float = 0.0
    harm: dict[str, float] = field(default_factory=dict)
    categories: dict[str, int] = field(default_factory=dict)

    def category_share(self, category: str) -> float:
        """Share of the rows in a category."""
        return self.categories.get(category, 0) / self.rows if self.rows else 0.0


@dataclass
class HarmfulRow:
    """A row with a large predicted harm; without behaviors, with a large gradient norm.

    Attributes:
        row: line number in the file, from 1.
        behavior: the behavior with the largest predicted harm; empty without behaviors.
        prompt, response: texts of the row, shortened.
    """

    row: int
    id: str | None
    category: str | None
    behavior: str
    harm: float | None
    norm: float
    loss: float
    chosen: bool
    prompt: str = ""
    response: str = ""


@dataclass
class Audit:
    """A selection of rows from a data set.

    Attributes:
        rows: number of rows.
        usable: number of rows with response tokens and finite scores.
        truncated: number of rows longer than the maximum length.
        groups: all rows, selected rows ("chosen"), other rows ("not chosen"), and rows of high,
            moderate and low norm.
        norms: tenth of a power of ten of the norm → usable rows (not selected, selected).
        most_harmful: rows in falling order of predicted harm.
    """

    title: str
    settings: dict[str, Any]
    strategy: str
    ratio: float
    rows: int
    usable: int
    truncated: int
    groups: list[Group]
    norms: dict[int, list[int]]
    most_harmful: list[HarmfulRow]

    def group(self, name: str) -> Group:
        """Return the group with this name."""
        return next(group for group in self.groups if group.name == name)

    @property
    def behaviors(self) -> list[str]:
        """Names of the behaviors with predicted harm."""
        return list(self.groups[0].harm)

    @property
    def categories(self) -> list[str]:
        """Categories, largest first."""
        known = self.groups[0].categories
        return sorted(known, key=lambda name: (-known[name], name))


def group_rows(audit: Audit, max_categories: int = 6) -> list[dict[str, str]]:
    """Table of the groups as text, with the `max_categories` largest categories."""
    return [
        {
            "group": group.name,
            "rows": f"{group.rows:,}",
            "tokens": format_number(group.tokens),
            "loss": format_number(group.loss),
            "norm": format_number(group.norm),
        }
        | {f"harm to {name}": format_number(value) for name, value in group.harm.items()}
        | {
            shorten(name, 40): f"{group.category_share(name):.0%}"
            for name in audit.categories[:max_categories]
        }
        for group in audit.groups
    ]


def audit_summary(audit: Audit) -> str:
    """Number of rows, selected, truncated and unusable, as a sentence."""
    text = f"{audit.rows:,} rows; {audit.group(SELECTED).rows:,} selected by {audit.strategy} "
    text += f"with ratio {audit.ratio:g}"
    if audit.truncated:
        limit = audit.settings.get("max_length", "the maximum number of")
        text += f"; {audit.truncated:,} were longer than {limit} tokens and were truncated"
    if audit.rows > audit.usable:
        unusable = audit.rows - audit.usable
        text += f"; {unusable:,} have no response to learn from and cannot be selected"
    return text


def audit_figure(audit: Audit) -> alt.HConcatChart:
    """Figure of gradient norms, and of the groups' categories and predicted harm."""
    panels = [chart.properties(title=name) for name, chart in audit_panels(audit).items()]
    title = alt.TitleParams(shorten(audit.title), subtitle=audit_summary(audit), fontSize=15)
    chart = alt.hconcat(*panels, spacing=30, title=title).resolve_scale(color="independent")
    figure: alt.HConcatChart = apply_style(chart)
    return figure


def audit_panels(audit: Audit) -> dict[str, alt.Chart]:
    """Return the panels of the figure by their titles."""
    panels = {"Gradient norms of the rows": _norms(audit)}
    if audit.categories:
        panels["Categories of the groups"] = _categories(audit)
    if audit.behaviors:
        panels["Predicted harm to behaviors"] = _harms(audit)
    return panels


def _norms(audit: Audit) -> alt.Chart:
    bars = [
        {
            "from": 10 ** (place / BINS_PER_DECADE),
            "to": 10 ** ((place + 1) / BINS_PER_DECADE),
            "rows": count,
            "which": which,
            "order": order,
        }
        for place, counts in sorted(audit.norms.items())
        for order, (which, count) in enumerate(zip((REJECTED, SELECTED), counts, strict=True))
    ]
    frame = pd.DataFrame(bars, columns=["from", "to", "rows", "which", "order"])
    colors = alt.Scale(domain=[SELECTED, REJECTED], range=[style.BLUE, "#c8d0d6"])
    chart = alt.Chart(frame).mark_bar()
    return chart.encode(
        x=alt.X("from:Q", scale=alt.Scale(type="log"), title="norm (log scale)").bin("binned"),
        x2="to:Q",
        y=alt.Y("rows:Q", title="rows"),
        order="order:Q",
        color=alt.Color("which:N", title=None, scale=colors, legend=LEGEND),
    ).properties(width=300, height=220)


def _group_axis(audit: Audit) -> alt.Y:
    names = [group.name for group in audit.groups]
    return alt.Y("group:N", sort=names, title=None).axis(minExtent=70)


def _categories(audit: Audit) -> alt.Chart:
    frame = pd.DataFrame(
        {"group": group.name, "category": shorten(name, 40), "share": group.category_share(name)}
        for group in audit.groups
        for name in audit.categories
    )
    chart = alt.Chart(frame).mark_bar()
    return chart.encode(
        y=_group_axis(audit),
        x=alt.X("share:Q", title="share of rows", axis=alt.Axis(format="%")),
        color=alt.Color("category:N", scale=alt.Scale(scheme="tableau10"), legend=LEGEND),
    ).properties(width=300, height=220)


def _harms(audit: Audit) -> alt.Chart:
    frame = pd.DataFrame(
        {"group": group.name, "behavior": name, "harm": value}
        for group in audit.groups
        for name, value in group.harm.items()
    )
    chart = alt.Chart(frame).mark_point(filled=True, size=80, opacity=0.9)
    return chart.encode(
        y=_group_axis(audit),
        x=alt.X("harm:Q", title="mean predicted harm"),
        color=alt.Color("behavior:N", scale=alt.Scale(scheme="dark2"), legend=LEGEND),
    ).properties(width=280, height=220)


def harmful_rows(audit: Audit) -> list[dict[str, str]]:
    """Table of the most harmful rows as text."""
    return [
        {
            "line": str(row.row),
            "id": row.id or "",
            "category": row.category or "",
            "behavior": row.behavior,
            "harm": "" if row.harm is None else format_number(row.harm),
            "norm": format_number(row.norm),
            "loss": format_number(row.loss),
            "selected": "yes" if row.chosen else "no",
            "prompt": row.prompt,
            "response": row.response,
        }
        for row in audit.most_harmful
    ]


def _head(audit: Audit) -> Head:
    selected, other = audit.group(SELECTED), audit.group(REJECTED)
    numbers = {"selected rows": f"{selected.rows:,} of {audit.rows:,}"}
    if audit.behaviors and selected.rows and other.rows:
        name = max(audit.behaviors, key=lambda own: abs(selected.harm[own] - other.harm[own]))
        pair = (format_number(group.harm[name]) for group in (selected, other))
        numbers[f"mean harm to {name}, selected and other rows"] = " and ".join(pair)
    elif selected.rows:
        pair = (format_number(group.norm) for group in (selected, other) if group.rows)
        numbers["mean norm, selected and other rows"] = " and ".join(pair)
    numbers["truncated rows"] = f"{audit.truncated:,} of {audit.rows:,}"
    return Head(
        KIND,
        audit.title,
        f"{audit_summary(audit)}.",
        numbers,
        limits="Harm and norm are measured on the model as it was when the rows were scored; what "
        "the training on the selected rows does is not measured here.",
    )


def write_audit(audit: Audit, folder: Path) -> tuple[Path, Path]:
    """Write `audit.png` and `audit.html` into a folder; return the paths of page and image.

    Raises:
        ConfigError: the folder cannot be written, or `audit.html` is no audit.
    """
    image, page = folder / "audit.png", folder / "audit.html"
    try:
        check_page(page, KIND)
        save_figure(audit_figure(audit), image)
        png = base64.b64encode(image.read_bytes()).decode()
        panels = {name: apply_style(own) for name, own in audit_panels(audit).items()}
        context: dict[str, Any] = {
            "audit": audit,
            "groups": group_rows(audit),
            "rows": harmful_rows(audit),
        }
        specs = [own.to_dict(validate=False) for own in panels.values()]
        context |= {"titles": list(panels), "figures": json_for_script(specs)}
        context |= {"vega": vega_bundle(), "script": asset("page.js")}
        context |= {"dark": json_for_script(style.DARK)}
        text = render_page("audit.html", _head(audit), image=png, **context)
        write_page(page, KIND, text)
    except OSError as error:
        raise ConfigError(f"cannot write the audit to {folder}: {error}") from error
    return page, image
