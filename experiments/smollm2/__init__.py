"""Two fine-tuning runs of SmolLM2, trained to refuse, under a monitor."""
