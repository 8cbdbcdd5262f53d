"""The record between processes: readers beside its writer, and after the writer's death."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import pytest

from riprap.record import Reader, Writer
from riprap.types import Alert, Level, Reading

READINGS = [Reading(step, "refusal", "margin", step / 7, "logits") for step in range(5)]
ALERT = Alert(3, "refusal", Level.CRITICAL, "forecast", "soon")


def in_another_process(script: str, *arguments: object) -> subprocess.Popen:
    """Start Python on `script` with this project importable."""
    command = [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True
    )


@pytest.mark.skipif(not hasattr(os, "setuid"), reason="needs users")
def test_a_closed_record_can_be_read_where_nothing_may_be_written() -> None:
    """As in a colleague's folder; root, who may write anywhere, reads it as nobody."""
    script = """
        import os, sys
        from riprap.record import Reader
        if os.getuid() == 0:
            os.setuid(65534)
        print(len(Reader(sys.argv[1]).readings()))
    """
    with tempfile.TemporaryDirectory() as folder:
        writer = Writer(folder)
        writer.add_readings(READINGS)
        writer.close()
        Path(folder).chmod(0o555)
        output, _ = in_another_process(script, folder).communicate(timeout=120)
        Path(folder).chmod(0o755)
    assert output.split() == [str(len(READINGS))]


def test_a_reader_in_another_process_sees_what_is_committed(tmp_path: Path) -> None:
    script = """
        import sys
        from riprap.record import Reader
        reader = Reader(sys.argv[1])
        for _ in sys.stdin:
            print(len(reader.readings()), len(reader.alerts()), flush=True)
    """
    writer = Writer(tmp_path)
    other = in_another_process(script, tmp_path)

    def seen() -> list[int]:
        assert other.stdin is not None and other.stdout is not None
        other.stdin.write("look\n")
        other.stdin.flush()
        return [int(count) for count in other.stdout.readline().split()]

    try:
        assert seen() == [0, 0]
        writer.add_readings(READINGS)
        writer.flush()
        assert seen() == [len(READINGS), 0]
        writer.add_readings(READINGS)
        writer.add_alert(ALERT)
        assert seen() == [2 * len(READINGS), 1]
        writer.connection.execute("BEGIN")
        writer.connection.execute(
            "INSERT INTO readings (step, behavior, signal, unit, state, layer, detail) "
            "VALUES (9, '', '', '', 'ERROR', '', '')"
        )
        assert seen() == [2 * len(READINGS), 1]
    finally:
        other.communicate(timeout=60)


def test_a_killed_writer_loses_nothing_that_was_flushed(tmp_path: Path) -> None:
    script = """
        import itertools, sys
        from riprap.types import Reading
        from riprap.record import Writer
        writer = Writer(sys.argv[1])
        for step in itertools.count():
            writer.add_readings([Reading(step, "refusal", "margin", step / 7)])
            writer.flush()
            print(step, flush=True)
    """
    other = in_another_process(script, tmp_path)
    assert other.stdout is not None
    for _ in range(200):
        flushed = int(other.stdout.readline())
    other.send_signal(signal.SIGKILL)
    rest = other.communicate(timeout=60)[0].split()
    flushed = int(rest[-1]) if rest else flushed
    assert other.returncode == -signal.SIGKILL
    readings = Reader(tmp_path).readings()
    assert len(readings) >= flushed + 1 >= 200
    assert [(r.step, r.value) for r in readings] == [(n, n / 7) for n in range(len(readings))]
