"""Guards on SmolLM2: no guard, replay, constrained tokens and AutoGuard."""
