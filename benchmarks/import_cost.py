"""Rows `import` of `run.py`: seconds and modules of `import riprap` and of `riprap --help`."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

from suite import Asked, Row

# A program prints the processor seconds of its last line, and the number of loaded modules.
TIMED = """
import sys, time
begun = time.process_time()
{}
print(time.process_time() - begun, len(sys.modules))
"""
HELP = """
import contextlib, io
with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
    sys.argv = ["riprap", "--help"]
    from riprap.cli import main
    main()
"""
PROGRAMS = {
    "import torch": TIMED.format("import torch"),
    "import riprap": TIMED.format("import riprap"),
    "riprap.Monitor, after torch": "import torch\n" + TIMED.format("from riprap import Monitor"),
    "riprap --help": TIMED.format(HELP),
}


def rows(asked: Asked) -> Iterator[Row]:
    """Yield the rows of the group `import`, each in fresh processes."""
    for name, program in PROGRAMS.items():
        asked.progress(f"{name}, in fresh processes")
        seconds, modules = [], 0
        for _ in range(3 if asked.quick else 5):
            command = [sys.executable, "-c", program]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            spent, count = done.stdout.split()[-2:]
            seconds.append(float(spent))
            modules = int(count)
        yield Row("import", f"{name}, s", seconds, note=f"{modules} modules loaded")
