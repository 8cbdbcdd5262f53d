"""`riprap eval`: evaluate a model by generation and likelihood, with intervals.

- `run_eval`: load, evaluate, write; `parse_judges`: judges from the texts of `--judge`.
- `table_rows`, `summary_lines`: the table, and what it does not show.
"""

from riprap.commands.eval._run import HEADINGS, parse_judges, run_eval, summary_lines, table_rows

__all__ = ["HEADINGS", "parse_judges", "run_eval", "summary_lines", "table_rows"]
