"""Erosion of a behavior while its fastest-drifting features are frozen."""
