"""Harm to an old skill by a new task: shared tokens or shared computation."""
