"""Time and memory of `riprap select` after scoring, on synthetic scores.

    python benchmarks/selection_million.py --rows 1000000

Scores are written in parts, as `riprap select` writes them. Then each strategy chooses a fifth of
the rows, and the audit compares the groups. Seconds of wall-clock time. Memory is the peak above
that of the process before the scores are loaded (Linux only).
"""

from __future__ import annotations

import argparse
import re
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
from rich.progress import track

from riprap.commands.select import STRATEGIES, Store, audit, choose, number_columns

RATIO = 0.2
BEHAVIORS = ("refusal", "arithmetic")
PART_ROWS = 8192  # rows of a part, as in `riprap select`


def write_scores(folder: Path, n_rows: int) -> Store:
    """Write random scores, in parts."""
    store, generator = Store(folder, {"rows": n_rows}, BEHAVIORS), np.random.default_rng(0)
    for start in track(range(0, n_rows, PART_ROWS), description="writing", transient=True):
        numbers = range(start + 1, min(start + PART_ROWS, n_rows) + 1)
        n = len(numbers)
        columns = {name: generator.lognormal(size=n).tolist() for name in ("loss", "norm", "proxy")}
        columns |= {f"harm/{name}": generator.normal(size=n).tolist() for name in BEHAVIORS}
        columns |= {"row": [*numbers], "tokens": generator.integers(0, 200, n).tolist()}
        columns |= {"id": [f"row-{number}" for number in numbers], "cut": [False] * n}
        columns["category"] = [f"topic {number % 20}" for number in numbers]
        store.append(columns)
    return store


def memory(name: str) -> float:
    """Memory of this process in MiB: VmRSS (now) or VmHWM (peak)."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    match = re.search(rf"^{name}:\s+(\d+) kB", status, re.M)
    assert match is not None
    return int(match[1]) / 1024


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    n_rows = parser.parse_args().rows
    print("| step | seconds | peak memory, MiB |", "|---" * 3 + "|", sep="\n")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = write_scores(folder, n_rows)
        pa.default_memory_pool().release_unused()
        before = memory("VmRSS")

        def report(step: str, start: float) -> None:
            seconds = time.perf_counter() - start
            print(f"| {step} | {seconds:.2f} | {memory('VmHWM') - before:.0f} |", flush=True)
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets the peak

        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        start = time.perf_counter()
        table = store.table()
        columns = number_columns(table)
        report(f"load {n_rows:,} rows", start)
        for strategy in STRATEGIES:
            start = time.perf_counter()
            chosen = choose(columns, strategy, RATIO)
            report(f"choose by {strategy}", start)
        start = time.perf_counter()
        store.finish(table, chosen)
        report("write scores.parquet", start)
        start = time.perf_counter()
        settings = {"behaviors": [*BEHAVIORS]}
        audit(table, chosen, "synthetic", settings, strategy, RATIO)
        report("audit", start)


if __name__ == "__main__":
    main()
