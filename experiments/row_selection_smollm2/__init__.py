"""Row selection on SmolLM2 from mixed data, and its effect on refusals."""
