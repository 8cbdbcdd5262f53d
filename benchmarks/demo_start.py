"""How soon `riprap demo` shows its page: processor time from its start to the first view.

    python benchmarks/demo_start.py [--times 3] [--out results/cost]

The command runs as a user types it, in an empty folder. The time ends when its page, one script
after the other, and the view of a story are fetched, and is that of both of its processes: the
command until it prints the address, and the server of the page. The training comes later.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from dashboard_load import Server, first_view, seconds_of
from suite import machine

AIM = 10.0  # seconds


def measure() -> tuple[float, float, float]:
    """Return seconds of the command, of the server's start, and of the first view."""
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            [sys.executable, "-m", "riprap", "demo", "--run", folder],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
        )
        try:
            assert process.stdout is not None
            lines = (re.search(r"http://\S+", line) for line in process.stdout)
            address = next((found[0] for found in lines if found), None)
            if address is None:
                raise SystemExit("the demo gave no address: is the machine too busy?")
            command = seconds_of(process.pid)
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
            server = Server(int(children.split()[0]), address)
            start = server.seconds
            _, view, _ = asyncio.run(first_view(server))
            os.kill(server.process, signal.SIGTERM)
        finally:
            process.kill()
            process.wait()
    return command, start, view


def main() -> None:
    """Measure, print the table, and write it to `--out`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--out", type=Path, help="folder of demo.md")
    asked = parser.parse_args()
    found = [measure() for _ in range(asked.times)]
    parts = {
        "`riprap demo` until it prints the address": [own[0] for own in found],
        "the server of the page until then": [own[1] for own in found],
        "the first view: page, scripts, greeting, a story": [own[2] for own in found],
        "**together**": [sum(own) for own in found],
    }
    together = statistics.median(parts["**together**"])
    met = "met" if together <= AIM else "**missed**"
    lines = [
        "# First page of the demo",
        "",
        f"`python benchmarks/demo_start.py --times {asked.times}`. {machine()}",
        "",
        f"Aim: at most {AIM:.0f} s of processor time: {met}.",
        "",
        "| part | median, s | range |",
        "|---|---|---|",
    ]
    for name, own in parts.items():
        middle = statistics.median(own)
        lines.append(f"| {name} | {middle:.2f} | {min(own):.2f} to {max(own):.2f} |")
    text = "\n".join([*lines, ""])
    print(text)
    if asked.out is not None:
        (asked.out / "demo.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
