"""Parts of the HTML pages: head, templates, explained words, Vega libraries, escaped data."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import vl_convert
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from riprap._formatting import format_number
from riprap._glossary import explained_parts, explanation
from riprap._text import PAGE_KIND, PAGE_MARK, PAGE_MARK_WITHIN, escape_control_chars
from riprap.errors import ConfigError

_HERE = Path(__file__).parent
CODE = re.compile(r"`([^`]+)`")


def _shown(value: Any) -> Any:
    """Escape control characters in a text that a template shows."""
    is_text = isinstance(value, str) and not isinstance(value, Markup)
    return escape_control_chars(value) if is_text else value


_TEMPLATES = Environment(
    loader=FileSystemLoader(_HERE),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    finalize=_shown,
)

_UNSAFE = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


@dataclass(frozen=True)
class Head:
    """Head of every page: its first line and what follows it.

    Attributes:
        kind: of the page, such as "diagnosis".
        title: what the page is about.
        line: the answer.
        numbers: up to three numbers as text, by what they are.
        advice: what would help; empty: nothing is known.
        limits: what the page does not tell.
        notes: further lines in small print.
        detail: what stands directly below the answer; empty: nothing.
    """

    kind: str
    title: str
    line: str
    numbers: Mapping[str, str]
    advice: str = ""
    limits: str = ""
    notes: tuple[str, ...] = ()
    detail: str = ""


@dataclass
class Words:
    """The explained words of one page."""

    used: dict[str, str] = field(default_factory=dict)

    def term(self, word: str, shown: str = "") -> Markup:
        """Return a word, with its explanation if the glossary has it.

        Args:
            shown: text of the page; empty: the word itself.
        """
        why = explanation(word)
        if why is None:
            return Markup.escape(_shown(shown or word))
        self.used[word] = why
        marked = Markup('<dfn class="term" tabindex="0" aria-description="{}">{}</dfn>')
        return marked.format(why, shown or word)

    def explain(self, text: str, code: bool = False) -> Markup:
        """Return a text in which new words are explained.

        Args:
            code: whether what stands in ` marks is code. Names of others may hold such marks.
        """
        pieces = []
        for place, part in enumerate(CODE.split(text) if code else [text]):
            if place % 2:
                pieces.append(Markup("<code>{}</code>").format(_shown(part)))
                continue
            for piece, why in explained_parts(part):
                is_known = why is None or piece in self.used
                pieces.append(Markup.escape(_shown(piece)) if is_known else self.term(piece))
        return Markup("").join(pieces)


def asset(name: str) -> Markup:
    """Read a style sheet or a script of the pages."""
    return Markup((_HERE / name).read_text(encoding="utf-8"))


def render_page(template: str, head: Head, **context: Any) -> str:
    """Fill a template in; `context` is escaped, the style sheet is inlined."""
    words = Words()
    own = {"head": head, "term": words.term, "explain": words.explain, "words": words}
    own |= {"css": asset("page.css"), "number": format_number}
    own["kind_mark"] = Markup(PAGE_KIND).format(head.kind)
    return _TEMPLATES.get_template(template).render(own | context)


def write_page(file: Path, kind: str, page: str) -> None:
    """Write a page; only an earlier page of the same kind is replaced.

    Raises:
        ConfigError: something else is there: another file, another kind of page, a link.
        OSError, ValueError: the file cannot be written.
    """
    check_page(file, kind)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(page, encoding="utf-8")


def check_page(file: Path, kind: str) -> None:
    """Check that a page of a kind may be written to a file; raises as `write_page` does."""
    if file.is_symlink():  # somebody else may have made the folder and the link
        raise ConfigError(f"{file} is a link to another file: give another path for the {kind}")
    if file.is_file():
        with file.open(encoding="utf-8", errors="replace") as opened:
            before = opened.read(PAGE_MARK_WITHIN)
        if PAGE_MARK not in before:
            raise ConfigError(
                f"{file} is no page of Riprap, and is left as it is: give another path"
            )
        is_marked = PAGE_KIND.partition("{")[0] in before  # those of earlier versions are not
        if is_marked and PAGE_KIND.format(kind) not in before:
            raise ConfigError(
                f"{file} is another page than that of a {kind}, and is left as it is: give "
                "another path"
            )


@cache
def vega_bundle() -> Markup:
    """Vega, Vega-Lite and Vega-Embed as one script that loads nothing from the network."""
    script = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return Markup(script.replace("</script", "<\\/script"))


def json_for_script(value: Any) -> Markup:
    """Serialize a value for a <script> element; no text in it can close the element."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    for character, escape in _UNSAFE.items():
        text = text.replace(character, escape)
    return Markup(text)


def figure_page(spec: dict[str, Any]) -> str:
    """HTML page with one figure."""
    return (
        "<!DOCTYPE html><html><head><meta charset='utf-8'>"
        f"<script>{vega_bundle()}</script></head><body><div id='figure'></div>"
        f"<script type='application/json' id='spec'>{json_for_script(spec)}</script>"
        "<script>vegaEmbed('#figure', JSON.parse(document.getElementById('spec').textContent), "
        "{actions: false});</script></body></html>"
    )
