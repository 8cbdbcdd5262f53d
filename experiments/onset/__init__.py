"""Onset: corpora of recorded runs, and what alert rules say on them before behaviors break."""
