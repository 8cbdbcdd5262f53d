"""Parts of the HTML pages: templates, inlined Vega libraries, escaped data."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import vl_convert
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

_HERE = Path(__file__).parent
_TEMPLATES = Environment(
    loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True
)

_UNSAFE = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


def asset(name: str) -> Markup:
    """Read a style sheet or a script of the pages."""
    return Markup((_HERE / name).read_text(encoding="utf-8"))


def render_page(template: str, **context: Any) -> str:
    """Fill a template in; `context` is escaped, the style sheet is inlined."""
    return _TEMPLATES.get_template(template).render(css=asset("page.css"), **context)


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
