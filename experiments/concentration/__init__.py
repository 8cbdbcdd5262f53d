"""Are refusals special, or merely concentrated? Curvature, Jacobian and redundancy side by side."""
