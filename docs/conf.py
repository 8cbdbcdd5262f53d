"""Sphinx configuration of Riprap's documentation: `make docs`."""

import re
from pathlib import Path

import riprap

# First imported by autodoc, with TYPE_CHECKING set, models of pydantic with extra fields fail.
import riprap.fastslow
import riprap.integrations.config

project = "Riprap"
author = "The Riprap authors"
copyright = "2026, The Riprap authors"
release = version = riprap.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "Riprap"

myst_enable_extensions = ["dollarmath", "colon_fence", "deflist"]
myst_heading_anchors = 4

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_default_options = {"members": True, "show-inheritance": True}
napoleon_google_docstring = True
napoleon_use_ivar = True

# A class is known by its package and by its private module; either target is right.
suppress_warnings = ["ref.python"]

ROOT = Path(__file__).parents[1]
REPOSITORY = "https://github.com/riprap-ml/riprap/blob/main/"
_LINK = re.compile(r"(?P<image>!\[[^\]]*)?\]\((?P<target>(?:\.\./)+[^)\s]*)\)")


def link_to_repository(app, docname, source):
    """Turn links to files outside of docs/ into links to the repository; figures are copied."""
    page = Path(app.srcdir, docname).parent

    def replace(match):
        if match["image"]:
            return match[0]
        path, _, anchor = match["target"].partition("#")
        target = (page / path).resolve()
        if target.is_relative_to(Path(app.srcdir)):
            return match[0]
        url = REPOSITORY + target.relative_to(ROOT).as_posix()
        return f"]({url}{'#' + anchor if anchor else ''})"

    source[0] = _LINK.sub(replace, source[0])


def setup(app):
    """Register the link conversion."""
    app.connect("source-read", link_to_repository)
