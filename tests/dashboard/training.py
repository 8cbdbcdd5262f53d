"""A training with a monitor in a process of its own, until its input is closed: `python -m`."""

from __future__ import annotations

import sys
import threading
import time

import torch
from torch import nn
from torch.nn import functional

from riprap import Behavior, Monitor


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))
    probes = torch.randn(24, 8)
    behavior = Behavior("size", probes, margins=lambda own, rows: own(rows).square().mean(-1))
    stop = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), stop.set()), daemon=True).start()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    monitor = Monitor([behavior], run_dir=sys.argv[1], probe_every=5, budget=None)
    with monitor.watch(model, optimizer):
        while not stop.is_set():
            labels = torch.randint(0, 4, (16,))
            functional.cross_entropy(model(torch.randn(16, 8)), labels).backward()
            optimizer.step()
            optimizer.zero_grad()
            time.sleep(0.1)  # leaves the processor to the page
    print(monitor.step)


if __name__ == "__main__":
    main()
