"""The toy study: four conditions, three behaviours, and what each detector would have said."""
