"""Small models and tasks that share no code with Riprap's own worlds, and their recorded runs.

- `base.py`: what a world is; margins and losses of its answers.
- `sorting.py`, `digits.py`, `signals.py`: the worlds.
- `updates.py`: optimizers and schedules.
- `plan.py`: the runs.
- `record.py`: pretraining, probes and the recording of a run.
- `page.py`: the tables.

`python -m experiments.onset.unlike --out runs/onset` records all runs; it resumes where it ended.
"""
