"""Live page of runs, read from their records while other processes train; `riprap[dashboard]`.

- `serve`: serve the page until it is interrupted.
- `make_app`: the page as an ASGI application.
- `check_address`: refuse an address that is open to others without a token.
"""

# ruff: noqa: E402
from riprap._extras import EXTRAS, require

require("dashboard", *EXTRAS["dashboard"])

from riprap.dashboard._app import make_app
from riprap.dashboard._serve import check_address, serve

__all__ = ["check_address", "make_app", "serve"]
