"""SmolLM2 taught to refuse, fine-tuned twice under a monitor."""
