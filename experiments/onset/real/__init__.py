"""Corpus of real runs: SmolLM2 with LoRA on public data, and what eight behaviors did meanwhile.

`python -m experiments.onset.real --out results/onset` records the runs of `plan.PLAN`, one file
each; a finished run is never repeated. `--page` writes the corpus's README.
"""
