"""Inputs of `riprap diagnose --run`: checkpoints of the run, and rows of its data."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from launching import config
from riprap.commands.diagnose._config import DiagnoseConfig
from riprap.commands.diagnose._loading import load_pair
from riprap.commands.diagnose._probes import TASK_ROWS, load_task
from riprap.commands.diagnose._run import _checkpoints
from riprap.commands.watch import run_watch
from riprap.diagnosis._weight_sources import matching_names


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of nine steps with checkpoints of the sixth and the ninth."""
    home = tmp_path_factory.mktemp("watched")
    run_watch(config(home, training={"save_steps": 3}), quiet=True)
    return home


def test_its_other_checkpoints_are_tried(folder: Path) -> None:
    run, last = folder / "run", folder / "run" / "trainer" / "checkpoint-9"
    pair = load_pair(str(folder / "model"), str(last))
    (last.parent / "checkpoint-odd").mkdir(exist_ok=True)
    given = {"base": str(folder / "model"), "tuned": str(last), "out": folder / "out", "run": run}
    given |= {"repairs": True}
    (name,) = found = _checkpoints(DiagnoseConfig.parse(given, "test"), pair)
    assert name == "checkpoint-6"
    names = matching_names(pair.model, found[name])
    apart = [n for n in names if not torch.equal(found[name][n], pair.tuned[n])]
    assert apart and all("proj" in n for n in apart)


def test_its_data_are_the_task(folder: Path) -> None:
    pair = load_pair(str(folder / "model"), str(folder / "run" / "trainer" / "checkpoint-9"))
    task = load_task(folder / "run", pair.tokenizer)
    assert task.responses is not None and len(task.prompts) == TASK_ROWS == len(task.responses)
    losses = []
    model = pair.model.double()
    for prompt, response in zip(task.prompts, task.responses, strict=True):
        ids = torch.tensor([prompt + response], device=model.device)
        with torch.no_grad():
            logits = model(ids).logits[0, len(prompt) - 1 : -1].cpu()
        wanted = torch.tensor(response)
        losses.append(float(torch.nn.functional.cross_entropy(logits, wanted)))
    assert task.score(model) == pytest.approx(-sum(losses) / len(losses), abs=1e-6)
    assert task.examples is not None
    learned = {tuple(row) for row in task.examples.probes.rows()}
    measured = {tuple(p + r) for p, r in zip(task.prompts, task.responses, strict=True)}
    assert not learned & measured


def test_without_a_run_it_is_harmless_requests(folder: Path) -> None:
    pair = load_pair(str(folder / "model"), str(folder / "run" / "trainer" / "checkpoint-9"))
    task = load_task(None, pair.tokenizer)
    assert task.responses is None and task.test_rows is None and len(task.prompts) == TASK_ROWS
