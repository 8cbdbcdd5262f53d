"""The live page of a long run under many readers: first view, memory, and what the writer pays.

    python benchmarks/dashboard_load.py [--steps 100000] [--readers 100] [--out results/cost]

The record is that of `report_cost.py`. `riprap dashboard` serves it in a process of its own. One
reader opens it: all that a browser fetches, and the view. Then all readers fetch the view at once
and keep a stream of events each, while this process appends evaluations. The benchmark fails unless
each reader is told of the last step. In turn with them, evaluations are appended without any
reader; the writer's cost is the processor time inside of the `Writer`, with a commit each time.

Seconds are processor time, of the server or of the writer; the wall clock is given where it says
so. Memory is the server's resident set.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
from report_cost import BEHAVIORS, PROBES, readings_of_evaluation, write_record
from suite import machine

from riprap.record import Writer

ROUNDS, EVALUATIONS = 5, 40  # of each kind: with the readers, and without
REST = 0.05  # seconds between two evaluations
SECONDS = 300.0  # until a wait is given up
TICKS = os.sysconf("SC_CLK_TCK")


def seconds_of(process: int) -> float:
    """Return the processor time of a process so far."""
    text = Path(f"/proc/{process}/stat").read_text(encoding="utf-8")
    user, system = text.rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / TICKS


@contextmanager
def dashboard(folder: Path) -> Iterator[Server]:
    """Run `riprap dashboard` in a process of its own."""
    command = [sys.executable, "-m", "riprap", "dashboard", str(folder), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield Server(process.pid, process.stdout.readline().partition("live page: ")[2].strip())
    finally:
        process.terminate()
        process.wait(30)


class Server:
    """A server of pages, by the number of its process and its address."""

    def __init__(self, process: int, address: str) -> None:
        self.process, parts = process, urlsplit(address)
        self.host, self.port = str(parts.hostname), int(parts.port or 0)

    @property
    def seconds(self) -> float:
        """Processor time so far."""
        return seconds_of(self.process)

    def megabytes(self, key: str = "VmRSS") -> float:
        """Resident memory now; `VmHWM`: at most so far."""
        text = Path(f"/proc/{self.process}/status").read_text(encoding="utf-8")
        return next(int(own.split()[1]) for own in text.splitlines() if own.startswith(key)) / 1024

    async def get(self, path: str) -> bytes:
        """Fetch a path; return the body."""
        async with self._asked(path) as answer:
            return await asyncio.wait_for(answer.read(), SECONDS)

    @asynccontextmanager
    async def _asked(self, path: str) -> AsyncIterator[asyncio.StreamReader]:
        answer, ask = await asyncio.open_connection(self.host, self.port, limit=1 << 24)
        try:
            ask.write(
                f"GET {path} HTTP/1.1\r\nHost: {self.host}:{self.port}\r\n"
                "Connection: close\r\n\r\n".encode()
            )
            head = await asyncio.wait_for(answer.readuntil(b"\r\n\r\n"), SECONDS)
            assert b" 200 " in head.splitlines()[0], head
            yield answer
        finally:
            ask.close()

    async def messages(self) -> AsyncIterator[dict[str, object]]:
        """Yield what the stream of events tells one reader."""
        async with self._asked("/events") as answer:
            while True:
                line = await asyncio.wait_for(answer.readline(), SECONDS)
                if line.startswith(b"data: "):
                    yield json.loads(line[6:])


class Run:
    """The record, to which evaluations are appended."""

    def __init__(self, folder: Path, step: int) -> None:
        self.writer, self.step = Writer(folder, resume=True), step
        self._random = np.random.default_rng(1)
        self.writer.add_event(step, "resumed")
        self.writer.flush()

    def append(self) -> float:
        """Append an evaluation and commit; return the seconds inside of the writer."""
        self.step += 1
        margins = {name: self._random.normal(4, 0.5, PROBES) for name in BEHAVIORS}
        readings = [
            own
            for name in BEHAVIORS
            for own in readings_of_evaluation(self.step, name, margins[name], self._random)
        ]
        began = time.process_time()
        for name, values in margins.items():
            self.writer.add_margins(self.step, name, values)
        self.writer.add_readings(readings)
        self.writer.flush()
        return time.process_time() - began

    async def append_many(self) -> float:
        """Append a round of evaluations; return the median of their seconds."""
        found = []
        for _ in range(EVALUATIONS):
            found.append(self.append())
            await asyncio.sleep(REST)
        return statistics.median(found)


@dataclass
class Loaded:
    """What the server did under all readers, and what the writer paid."""

    views: float  # seconds of the server, for all first views
    views_wall: float
    told: float  # seconds of the server, for one change told to all
    alone: list[float]  # seconds of the writer an evaluation, by round
    read: list[float]


async def read_until(server: Server, key: str, greeted: asyncio.Event, last: list[int]) -> int:
    """Be a reader: return the number of changes until the last step was told."""
    changes = 0
    async for message in server.messages():
        if "runs" in message:
            await server.get(f"/runs/{key}")
            greeted.set()
        elif message.get("key") == key:
            changes += 1
            told = message.get("last_step")
            if last and (message.get("restart") or told == last[0]):
                assert told == last[0], "the view was made anew: the last step was not told"
                return changes
    raise AssertionError("the stream ended before the last step was told")


async def load(server: Server, key: str, run: Run, readers: int) -> Loaded:
    """Append evaluations in turns, without and with readers."""
    found = Loaded(0.0, 0.0, 0.0, [], [])
    told = []
    for place in range(ROUNDS):
        found.alone.append(await run.append_many())
        before, began = server.seconds, time.monotonic()
        greeted, last = [asyncio.Event() for _ in range(readers)], list[int]()
        reading = [asyncio.create_task(read_until(server, key, own, last)) for own in greeted]
        await asyncio.gather(*(own.wait() for own in greeted))
        if not place:
            found.views, found.views_wall = server.seconds - before, time.monotonic() - began
        before = server.seconds
        found.read.append(await run.append_many())
        last.append(run.step + 1)
        run.append()
        changes = await asyncio.gather(*reading)
        assert min(changes) > 0
        told.append((server.seconds - before) / statistics.mean(changes))
    found.told = statistics.median(told)
    return found


async def first_view(server: Server) -> tuple[int, float, float]:
    """Fetch the page and its newest run; return the view's bytes, and seconds, also by the wall."""
    before, began = server.seconds, time.monotonic()
    page = (await server.get("/")).decode()
    for name in re.findall(r'(?:src|href)="/?([^"/]+[.](?:js|css))"', page):
        await server.get(f"/{name}")
    async for message in server.messages():
        runs = message["runs"]
        assert isinstance(runs, list)
        view = await server.get(f"/runs/{runs[-1]['key']}")
        return len(view), server.seconds - before, time.monotonic() - began
    raise AssertionError("the server did not greet")


async def measure(steps: int, readers: int) -> str:
    """Measure all; return the table as Markdown."""
    with tempfile.TemporaryDirectory() as folder:
        rows, _ = write_record(Path(folder) / "run", steps)
        size = (Path(folder) / "run" / "record.sqlite").stat().st_size
        run = Run(Path(folder) / "run", steps)
        with dashboard(Path(folder)) as server:
            start, empty = server.seconds, server.megabytes()
            n_bytes, seconds, wall = await first_view(server)
            seen = server.megabytes()
            found = await load(server, "1", run, readers)
            most = server.megabytes("VmHWM")
        run.writer.close()
    more = statistics.median(b / a - 1 for a, b in zip(found.alone, found.read, strict=True))
    lines = [
        ("start of the server, until it gives its address", f"{start:.1f} s"),
        ("first view: page, scripts, greeting, run", f"{seconds:.2f} s ({wall:.2f} s by the wall)"),
        ("the view of the run", f"{n_bytes:,} bytes"),
        (
            f"first views of {readers} readers at once",
            f"{found.views:.2f} s ({found.views_wall:.2f} s by the wall)",
        ),
        (f"one change, told to {readers} readers", f"{1e3 * found.told:.0f} ms"),
        ("resident memory of the server at its start", f"{empty:.0f} MB"),
        ("after the first view", f"{seen:.0f} MB"),
        (f"at most, with {readers} readers", f"{most:.0f} MB"),
        ("writer, an evaluation and its commit, without readers", _span(found.alone)),
        (f"with {readers} readers", _span(found.read)),
        ("more with readers, median of the pairs", f"{more:+.1%}"),
    ]
    return "\n".join(
        [
            "# The live page under readers",
            "",
            f"`python benchmarks/dashboard_load.py --steps {steps} --readers {readers}`. "
            f"{machine()}",
            "",
            f"A record of {steps:,} steps: {rows:,} rows, {size / 1e6:.0f} MB. Then {ROUNDS} "
            f"rounds of {EVALUATIONS} evaluations without readers and {EVALUATIONS} with "
            f"{readers}, one every {1e3 * REST:.0f} ms; each reader of each round was told of the "
            "last step.",
            "",
            "| figure | measured |",
            "|---|---|",
            *(f"| {name} | {value} |" for name, value in lines),
            "",
        ]
    )


def _span(seconds: list[float]) -> str:
    """Return the median of the rounds, and their range."""
    own = [1e3 * value for value in (statistics.median(seconds), min(seconds), max(seconds))]
    return "{:.2f} ms ({:.2f} to {:.2f})".format(*own)


def main() -> None:
    """Measure, print the table, and write it to `--out`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--readers", type=int, default=100)
    parser.add_argument("--out", type=Path, help="folder of dashboard.md")
    asked = parser.parse_args()
    text = asyncio.run(measure(asked.steps, asked.readers))
    print(text)
    if asked.out is not None:
        (asked.out / "dashboard.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
