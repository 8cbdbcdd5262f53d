"""Four conditions and three behaviors on the toy world, with the alerts of each detector."""
