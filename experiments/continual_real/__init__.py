"""Four real tasks in sequence on SmolLM2 that refuses, under many methods."""
