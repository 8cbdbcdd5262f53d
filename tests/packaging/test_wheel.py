"""The wheel: what it holds, and what works where only its core dependencies are installed."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CORE = ("torch", "numpy", "scipy", "pydantic", "pyyaml", "safetensors")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder)]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, str(ROOT)], check=True)
    (file,) = folder.glob("riprap-*.whl")
    return file


@pytest.fixture(scope="module")
def clean(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel and its core dependencies; its `bin` folder."""
    folder = tmp_path_factory.mktemp("clean") / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    install(folder / "bin", str(wheel))
    return folder / "bin"


def install(environment: Path, *requirements: str) -> None:
    options = ["--quiet", "--disable-pip-version-check", "-c", str(ROOT / "constraints.txt")]
    subprocess.run([str(environment / "pip"), "install", *options, *requirements], check=True)


def run(environment: Path, *command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    program, *arguments = command
    return subprocess.run(
        [str(environment / program), *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=600,
        env={"HOME": str(cwd), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
    )


def test_it_holds_the_library_and_no_experiment(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert tops == {"riprap", wheel.name.rsplit("-", 3)[0] + ".dist-info"}
    assert not any("experiment" in name or "preregistration" in name for name in names)
    for file in (
        "py.typed",
        "behaviors/probe_sets/refusal.jsonl",
        "detectors/policies/default.yaml",
        "report/broken.html",
        "report/page.html",
        "toy/stories/the-loss-fell.sqlite.xz",
    ):
        assert f"riprap/{file}" in names


def test_its_core_dependencies_are_those_of_the_plan(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (metadata,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
    lines = archive.read(metadata).decode().splitlines()
    required = [line for line in lines if line.startswith("Requires-Dist") and ";" not in line]
    names = {line.split(": ")[1].split(">")[0].strip().lower() for line in required}
    assert names == set(CORE)


def test_with_core_alone(clean: Path, tmp_path: Path) -> None:
    found = run(clean, "python", "-c", "import riprap; print(riprap.Monitor)", cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    quick_start = (ROOT / "README.md").read_text(encoding="utf-8").split("<!-- quick start -->")[1]
    code = quick_start.split("```python\n")[1].split("```")[0]
    found = run(clean, "python", "-c", code, cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    assert "critical" in found.stdout
    for command in (["--help"], ["demo"], ["doctor"]):
        found = run(clean, "riprap", *command, cwd=tmp_path)
        assert found.returncode == 1
        assert "pip install 'riprap[cli]'" in found.stderr
        assert "Traceback" not in found.stderr


def test_with_the_command_line(clean: Path, tmp_path: Path) -> None:
    install(clean, "typer", "rich")
    found = run(clean, "riprap", "--help", cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    found = run(clean, "riprap", "doctor", cwd=tmp_path)
    assert found.returncode == 0, found.stdout + found.stderr
    for command, extra in ((["demo"], "hf"), (["report", "runs"], "report")):
        found = run(clean, "riprap", *command, cwd=tmp_path)
        assert found.returncode == 1
        assert f"pip install 'riprap[{extra}]'" in found.stderr
        assert "Traceback" not in found.stderr
