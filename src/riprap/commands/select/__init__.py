"""Select rows of a data set before training (`riprap select`)."""

# ruff: noqa: E402
from riprap._extras import EXTRAS, require

require("hf", *EXTRAS["hf"])

from riprap.commands.select._audit import audit
from riprap.commands.select._choose import STRATEGIES, choose
from riprap.commands.select._config import SelectConfig
from riprap.commands.select._run import select_rows
from riprap.commands.select._store import Store, number_columns

__all__ = [
    "STRATEGIES",
    "SelectConfig",
    "Store",
    "audit",
    "choose",
    "number_columns",
    "select_rows",
]
