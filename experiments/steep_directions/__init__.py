"""Share of a task gradient in a behavior's steep directions, where cosines are near 0."""
