"""Select rows of a data set before training (`riprap select`)."""

# ruff: noqa: E402, F401
from riprap._extras import EXTRAS, require

require("hf", *EXTRAS["hf"])

from riprap.commands.select._audit import audit
from riprap.commands.select._choose import STRATEGIES, choose
from riprap.commands.select._config import SelectConfig
from riprap.commands.select._run import select_rows
from riprap.commands.select._store import Store, number_columns
