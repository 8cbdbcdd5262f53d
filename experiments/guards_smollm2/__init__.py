"""SmolLM2 on the erosion example: unguarded, replay alone, the best always-on guard, the Keeper."""
