"""Vega figures inside HTML: the libraries inlined, the figures' text unable to break out."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import vl_convert
from markupsafe import Markup

_UNSAFE = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


@cache
def library() -> Markup:
    """Vega, Vega-Lite and Vega-Embed as one script that needs nothing from a network."""
    script = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return Markup(script.replace("</script", "<\\/script"))


def embedded(value: Any) -> Markup:
    """JSON for a <script> element: no text in it can end the element or open another."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    for character, escape in _UNSAFE.items():
        text = text.replace(character, escape)
    return Markup(text)


def document(spec: dict[str, Any]) -> str:
    """A whole page with one figure."""
    return (
        "<!DOCTYPE html><html><head><meta charset='utf-8'>"
        f"<script>{library()}</script></head><body><div id='figure'></div>"
        f"<script type='application/json' id='spec'>{embedded(spec)}</script>"
        "<script>vegaEmbed('#figure', JSON.parse(document.getElementById('spec').textContent), "
        "{actions: false});</script></body></html>"
    )
