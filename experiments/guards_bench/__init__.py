"""Comparison bench of guards: every guard and plain mixing on unlike grounds, at equal cost."""
