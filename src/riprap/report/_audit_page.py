"""What a selection of rows looks like: table, figure, and a page that needs no network."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import altair as alt
import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from riprap._text import shorten
from riprap.errors import ConfigError
from riprap.report import _formatting as words
from riprap.report import _style as style
from riprap.report._charts import save, styled

_HERE = Path(__file__).parent
_TEMPLATES = Environment(
    loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True
)
TAKEN, LEFT = "chosen", "not chosen"
NORMS = ("high", "moderate", "low")  # groups by the norm of the gradient
DECADE = 10  # bars for each power of ten


@dataclass
class Group:
    """Some of the rows.

    Attributes:
        tokens, loss, norm: means over the rows.
        harm: mean by behaviour.
        categories: rows by category.
    """

    name: str
    rows: int = 0
    tokens: float = 0.0
    loss: float = 0.0
    norm: float = 0.0
    harm: dict[str, float] = field(default_factory=dict)
    categories: dict[str, int] = field(default_factory=dict)

    def share(self, category: str) -> float:
        """Share of the group's rows that are of a category."""
        return self.categories.get(category, 0) / self.rows if self.rows else 0.0


@dataclass
class Worst:
    """A row that would harm a behaviour most, or that pulls most where none is given.

    Attributes:
        row: its line in the file, from 1.
        behavior: the one that it is predicted to harm most; empty without behaviours.
        prompt, response: of the row, shortened.
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
    """A selection of the rows of a data set.

    Attributes:
        rows, usable, cut: how many there are; that have response tokens and finite numbers; that
            were longer than was read of them.
        groups: all rows, chosen, not chosen, and those of high, moderate and low gradient norm.
        norms: usable rows by the tenth of a power of ten of their norm, (not chosen, chosen).
        worst: in falling order.
    """

    title: str
    settings: dict[str, Any]
    strategy: str
    ratio: float
    rows: int
    usable: int
    cut: int
    groups: list[Group]
    norms: dict[int, list[int]]
    worst: list[Worst]

    def group(self, name: str) -> Group:
        """The group by that name."""
        return next(group for group in self.groups if group.name == name)

    @property
    def behaviors(self) -> list[str]:
        """Behaviours whose harm is predicted."""
        return list(self.groups[0].harm)

    @property
    def categories(self) -> list[str]:
        """Categories, the largest first."""
        known = self.groups[0].categories
        return sorted(known, key=lambda name: (-known[name], name))


def group_rows(audit: Audit, most: int = 6) -> list[dict[str, str]]:
    """The groups as cells, with the `most` largest categories."""
    return [
        {
            "group": group.name,
            "rows": f"{group.rows:,}",
            "tokens": words.number(group.tokens),
            "loss": words.number(group.loss),
            "norm": words.number(group.norm),
        }
        | {f"harm to {name}": words.number(value) for name, value in group.harm.items()}
        | {shorten(name, 40): f"{group.share(name):.0%}" for name in audit.categories[:most]}
        for group in audit.groups
    ]


def facts(audit: Audit) -> str:
    """How many rows there are, and what could not be used of them."""
    said = f"{audit.rows:,} rows; {audit.group(TAKEN).rows:,} chosen by {audit.strategy} at ratio "
    said += f"{audit.ratio:g}"
    if audit.cut:
        limit = audit.settings.get("max_length", "the limit of")
        said += f"; {audit.cut:,} were longer than {limit} tokens and were cut"
    if audit.rows > audit.usable:
        said += f"; {audit.rows - audit.usable:,} have nothing to learn from and cannot be chosen"
    return said


def figure(audit: Audit) -> alt.HConcatChart:
    """Norms of the rows, and what the groups consist of."""
    panels = [_norms(audit)]
    if audit.categories:
        panels.append(_categories(audit))
    if audit.behaviors:
        panels.append(_harms(audit))
    title = alt.TitleParams(shorten(audit.title), subtitle=facts(audit), fontSize=15)
    chart = alt.hconcat(*panels, spacing=30, title=title).resolve_scale(color="independent")
    found: alt.HConcatChart = styled(chart)
    return found


def _norms(audit: Audit) -> alt.Chart:
    bars = [
        {
            "from": 10 ** (place / DECADE),
            "to": 10 ** ((place + 1) / DECADE),
            "rows": count,
            "which": which,
            "order": order,
        }
        for place, counts in sorted(audit.norms.items())
        for order, (which, count) in enumerate(zip((LEFT, TAKEN), counts, strict=True))
    ]
    frame = pd.DataFrame(bars, columns=["from", "to", "rows", "which", "order"])
    return (
        alt.Chart(frame)
        .mark_bar()
        .encode(
            x=alt.X("from:Q", scale=alt.Scale(type="log"), title="norm (log scale)").bin("binned"),
            x2="to:Q",
            y=alt.Y("rows:Q", title="rows"),
            order="order:Q",
            color=alt.Color(
                "which:N",
                title=None,
                scale=alt.Scale(domain=[TAKEN, LEFT], range=[style.BLUE, "#c8d0d6"]),
                legend=alt.Legend(orient="bottom", columns=3),
            ),
        )
        .properties(width=300, height=220, title="Norms of the rows' gradients")
    )


def _categories(audit: Audit) -> alt.Chart:
    frame = pd.DataFrame(
        {"group": group.name, "category": shorten(name, 40), "share": group.share(name)}
        for group in audit.groups
        for name in audit.categories
    )
    return (
        alt.Chart(frame)
        .mark_bar()
        .encode(
            y=alt.Y("group:N", sort=[g.name for g in audit.groups], title=None).axis(minExtent=70),
            x=alt.X("share:Q", title="share of rows", axis=alt.Axis(format="%")),
            color=alt.Color(
                "category:N",
                scale=alt.Scale(scheme="tableau10"),
                legend=alt.Legend(orient="bottom", columns=3),
            ),
        )
        .properties(width=300, height=220, title="What the groups consist of")
    )


def _harms(audit: Audit) -> alt.Chart:
    frame = pd.DataFrame(
        {"group": group.name, "behaviour": name, "harm": value}
        for group in audit.groups
        for name, value in group.harm.items()
    )
    return (
        alt.Chart(frame)
        .mark_point(filled=True, size=80, opacity=0.9)
        .encode(
            y=alt.Y("group:N", sort=[g.name for g in audit.groups], title=None).axis(minExtent=70),
            x=alt.X("harm:Q", title="mean predicted harm"),
            color=alt.Color(
                "behaviour:N",
                scale=alt.Scale(scheme="dark2"),
                legend=alt.Legend(orient="bottom", columns=3),
            ),
        )
        .properties(width=280, height=220, title="What they would do to behaviours")
    )


def write_audit(audit: Audit, folder: Path) -> tuple[Path, Path]:
    """Write `audit.png` and `audit.html` into a folder; returns their paths.

    Raises:
        ConfigError: they cannot be written there.
    """
    image, page = folder / "audit.png", folder / "audit.html"
    try:
        save(figure(audit), image)
        picture = base64.b64encode(image.read_bytes()).decode()
        text = _TEMPLATES.get_template("audit.html").render(
            audit=audit,
            facts=facts(audit),
            groups=group_rows(audit),
            picture=picture,
            number=words.number,
            css=Markup((_HERE / "page.css").read_text(encoding="utf-8")),
        )
        page.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write the audit to {folder}: {error}") from error
    return page, image
