"""Callbacks for training frameworks; import the module of your framework.

- `riprap.integrations.hf`: transformers' Trainer and TRL's trainers (`riprap[hf]`).
- `riprap.integrations.lightning`: Lightning's Trainer (`riprap[lightning]`).
- `riprap.integrations.axolotl`: a plugin for Axolotl.
- `riprap.integrations.accelerate`: a tracker for loops with Accelerate (`riprap[hf]`).
- `riprap.integrations.trackers`: trackers, CSV files and webhooks for a loop of your own.
- `riprap.integrations.terminal`: a live table in the terminal (`riprap[cli]`).
- `riprap.integrations.config`: monitors from configuration files.
- `riprap.integrations.lm_eval`: lm-eval's tasks on a live model (needs the package lm_eval).
- `riprap.integrations.smollm2`: a small instruct model from PyPI (`riprap[smollm2]`).
"""
