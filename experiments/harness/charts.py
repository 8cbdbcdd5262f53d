"""Colors, fonts and inline data of figures, as the library's own figures have them."""

from riprap.report import _style as style
from riprap.report import apply_style
from riprap.report._panels import inline_data

__all__ = ["apply_style", "inline_data", "style"]
