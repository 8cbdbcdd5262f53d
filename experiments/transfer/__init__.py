"""Guards from safety and from continual learning, on refusals and on capabilities."""
