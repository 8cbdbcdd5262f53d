"""Colors, fonts and inline data of figures, as the library's own figures have them."""

from riprap.report import apply_style, inline_data, style

__all__ = ["apply_style", "inline_data", "style"]
