"""Rows of the one table of all benchmarks, and how they are measured."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import torch

DATA = Path("../shared/data/gsm8k_train.jsonl")
HEAD = "| group | what | median | range (n) | floor | aim | | note |"
HERE = Path(__file__).parent


@dataclass(frozen=True)
class Asked:
    """What is asked of a group.

    Attributes:
        quick: measure less often.
        cases: measure only these cases of the group; empty: all.
        data: texts to train SmolLM2 on.
        progress: called with what is measured next.
    """

    quick: bool = False
    cases: Sequence[str] = ()
    data: Path = DATA
    progress: Callable[[str], None] = print

    def wants(self, case: str) -> bool:
        """Return whether a case is to be measured."""
        return not self.cases or case in self.cases


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        group: the value of `--only` that measures it.
        what: what is measured, in which unit; most are ratios, watched ÷ plain.
        values: one measurement each; the table shows their median and range.
        floor: the same figure if nothing but the necessary passes were done; None: not computed.
        aim: the largest median that is wanted; None: none was set.
        note: counts, sizes, or how it was computed.
    """

    group: str
    what: str
    values: Sequence[float]
    floor: float | None = None
    aim: float | None = None
    note: str = ""

    def line(self) -> str:
        """Return the row as a line of a Markdown table."""
        middle = statistics.median(self.values)
        low, high = min(self.values), max(self.values)
        spread = f"{low:.3f}–{high:.3f} ({len(self.values)})" if len(self.values) > 1 else "(1)"
        floor = "" if self.floor is None else f"{self.floor:.3f}"
        aim = "" if self.aim is None else f"{self.aim:g}"
        verdict = "" if self.aim is None else "met" if middle <= self.aim else "**missed**"
        cells = [self.group, self.what, f"{middle:.3f}", spread, floor, aim, verdict, self.note]
        return "| " + " | ".join(cells) + " |"


def print_table(rows: Iterable[Row]) -> None:
    """Print the rows as they come."""
    print(HEAD, "|---" * (HEAD.count("|") - 1) + "|", sep="\n", flush=True)
    for row in rows:
        print(row.line(), flush=True)


def machine() -> str:
    """Describe the machine, the program and the day in one line."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", info.read_text()) if info.exists() else None
    name = found[1] if found else platform.processor() or platform.machine()
    git = ["git", "-C", str(HERE), "describe", "--always", "--dirty"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return (
        f"{name}, {os.cpu_count()} cores, {torch.get_num_threads()} thread, torch "
        f"{torch.__version__}, commit {commit or 'unknown'}, {date.today()}, load average {load}; "
        "processor seconds"
    )


def peak_bytes() -> int:
    """Return the largest memory that this process has held so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def peak_above_start(call: Callable[[], object]) -> int:
    """Return the bytes that a call needs at its peak, in a process that is forked for it."""
    gc.collect()
    if sys.platform == "linux":  # else the child would use free memory of this process first
        ctypes.CDLL(None).malloc_trim(0)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            before = peak_bytes()
            call()
            os.write(write, json.dumps(peak_bytes() - before).encode())
        except Exception as error:  # noqa: BLE001 told by the parent
            os.write(write, json.dumps(f"{type(error).__name__}: {error}").encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as stream:
        text = stream.read()
    os.waitpid(child, 0)
    found = json.loads(text or '"the forked process ended"')
    if isinstance(found, str):
        raise RuntimeError(found)
    return int(found)


def processor_seconds(call: Callable[[], object]) -> float:
    """Return the processor time of a call, in seconds."""
    begun = time.process_time()
    call()
    return time.process_time() - begun


def in_new_process(script: Path, *arguments: str) -> dict[str, float]:
    """Run a script that prints a JSON object as its last line, and return the object."""
    command = [sys.executable, str(script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stderr[-2000:]}")
    result: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def ratios(values: Sequence[float], others: Sequence[float]) -> list[float]:
    """Divide pair by pair."""
    return [one / other for one, other in zip(values, others, strict=True)]
