"""Curvature, Jacobian ranks and redundancy of refusals, beside those of other behaviors."""
