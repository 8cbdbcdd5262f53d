"""Make five unlike runs of the toy world and their pages: `python -m tools.recorded_runs --out F`.

For readers who know nothing of them: titles and names of folders do not say what happened. What
was trained stands in `RUNS`. Each folder gets `record.sqlite` and `report.html`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from riprap.report import write_report
from tools.demo_stories import STEPS, Setup, train

TITLE = "A small model learns multiplication"
RUNS = {
    "1": Setup(checkpoint_every=10),
    "2": Setup(rate=0.0),
    "3": Setup(is_guarded=True, checkpoint_every=50),
    "4": Setup(rate=0.02, task="C_disjoint"),
    "5": Setup(stop_on="warning", checkpoint_every=2),
}


def make_runs(out: Path, steps: int = STEPS, names: tuple[str, ...] = tuple(RUNS)) -> list[Path]:
    """Train the runs, each into a new folder, and return their pages."""
    pages = []
    for name in names:
        record = train(RUNS[name], TITLE, out / name, steps)
        pages.append(write_report(record, record.with_name("report.html")))
    return pages


def main() -> None:
    """Make all five, and print where their pages are."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    out = parser.parse_args().out
    torch.set_num_threads(1)
    for page in make_runs(out):
        print(page)


if __name__ == "__main__":
    main()
