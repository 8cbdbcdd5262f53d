"""Everything that the experiments share.

A new experiment is a folder `experiments/NAME` with three modules and a template:

- `plan.py`: the terms, a `StudyPlan`; its values are in `preregistrations/NAME.yaml`;
- `simulate.py`: one run, a `cached` function of plain arguments and the plan;
- `study.py`: `STUDY`, a `Study` with the jobs, the tables and the figures;
- `page.md`: the page, with placeholders for the tables.
"""
