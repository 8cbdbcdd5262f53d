"""Colors and fonts of the figures, readable without color vision.

Hues follow the palette of Okabe and Ito; alert levels also differ in lightness and in dash pattern.
"""

from __future__ import annotations

from typing import Any

from riprap.types import Level

INK = "#22313f"
MUTED = "#66757f"
GRID = "#e8ecef"
BLUE = "#0072b2"
BAND = "#9cc7e2"
CONE = "#d55e00"
DOWN = "#b5588a"
UP = "#5aa08c"
BREAK = "#000000"
LEVELS = {Level.WATCH: "#e6b400", Level.WARNING: "#e07b00", Level.CRITICAL: "#a3123f"}
DASHES = {Level.WATCH: [2, 3], Level.WARNING: [6, 3], Level.CRITICAL: [1, 0]}
GROUND, AXIS = "#ffffff", "#c8d0d6"
# In dark mode pages show the second in place of the first.
DARK = {
    GROUND: "#1a2229",
    INK: "#e5eaef",
    MUTED: "#a3b1bc",
    GRID: "#26313a",
    AXIS: "#4a5865",
    BLUE: "#56b4e9",
    BAND: "#2f5f7d",
    CONE: "#f08a3c",
    BREAK: "#fffffe",
    LEVELS[Level.CRITICAL]: "#ff6f91",
}
FONT = "Helvetica, Arial, 'Liberation Sans', sans-serif"

AXIS_WIDTH = 46  # width of every left axis, so that separate panels line up


def vega_config() -> dict[str, Any]:
    """Vega-Lite configuration of every figure."""
    muted = {"labelColor": MUTED, "titleColor": MUTED, "titleFontWeight": "normal"}
    sizes = {"labelFontSize": 10, "titleFontSize": 10, "titleLimit": 120, "tickSize": 3}
    lines = {"gridColor": GRID, "domainColor": AXIS, "tickColor": AXIS}
    title = {"anchor": "start", "color": INK, "fontSize": 14, "offset": 8, "limit": 840}
    return {
        "font": FONT,
        "background": GROUND,
        "view": {"stroke": None},
        "axis": muted | sizes | lines,
        "axisY": {"minExtent": AXIS_WIDTH, "maxExtent": AXIS_WIDTH, "domain": False},
        "title": title | {"subtitleColor": MUTED, "subtitleFontSize": 11},
        "header": {"labelColor": INK, "labelFontSize": 11, "titleColor": MUTED},
        "legend": muted,
    }
