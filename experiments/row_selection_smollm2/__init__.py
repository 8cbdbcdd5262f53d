"""SmolLM2 on mixed rows: which of them selectors take, and what that does to refusals."""
