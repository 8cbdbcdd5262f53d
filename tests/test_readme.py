"""The README: its code runs as it stands, in the order of the page, and does what it says."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from diagnosing import lessons, make_model, make_tokenizer, teach
from riprap import probe_sets
from riprap.diagnosis import Verdict
from test_docs import ROOT, blocks

README = ROOT / "README.md"
BLOCKS = blocks(README, "python")


def test_its_length() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 160


def test_the_quick_start_prints_its_alerts_before_the_break() -> None:
    (block,) = (block for block in BLOCKS if block.mark == "quick start")
    printed, names = io.StringIO(), {"__name__": "quick_start"}
    with contextlib.redirect_stdout(printed), torch.random.fork_rng():
        exec(compile(block.text, block.where, "exec", dont_inherit=True), names)
    said = re.findall(r"step +(\d+)  (\w+) ", printed.getvalue())
    first = {level: int(step) for step, level in reversed(said)}
    broke = names["monitor"].broken()["adding"]
    assert broke is not None
    assert f"{{'adding': {broke}}}" in printed.getvalue()
    assert first["warning"] <= first["critical"] < broke


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Names after the other blocks were run, on a tiny model that was taught to refuse."""
    folder = tmp_path_factory.mktemp("readme")
    tokenizer = make_tokenizer()
    model = make_model(tokenizer)
    teach(model, lessons(tokenizer, refuses=True)[:2], steps=90)
    start = make_model(tokenizer)
    start.load_state_dict(model.state_dict())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    refused = [row["prompt"] for row in probe_sets.rows("refusal")]

    batch = tokenizer(
        [f"{prompt} Sure" for prompt in refused[:8]], return_tensors="pt", padding=True
    )

    def train() -> None:
        for _ in range(4):
            optimizer.zero_grad()
            model(**batch, labels=batch["input_ids"]).loss.backward()
            optimizer.step()

    rows = [{"prompt": prompt, "completion": " Sure"} for prompt in refused[:8]]
    names: dict[str, Any] = {
        "tokenizer": tokenizer,
        "model": model,
        "start": start,
        "optimizer": optimizer,
        "train": train,
        "SFTTrainer": SFTTrainer,
        "rows": Dataset.from_list(rows),
        "args": SFTConfig(
            output_dir=str(folder / "trainer"),
            max_steps=2,
            per_device_train_batch_size=2,
            bf16=False,
            use_cpu=True,
            report_to=[],
        ),
        "refusal": probe_sets.load("refusal", tokenizer, prefixes=["Sorry"]),
    }
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng():
        patch.chdir(folder)
        for block in BLOCKS:
            if block.mark == "quick start":
                continue
            names["examples"] = names["refusal"].probes
            exec(compile(block.text, block.where, "exec", dont_inherit=True), names)
            if "trainer" in names and "guard" not in names:
                names["trainer"].train()
                model.load_state_dict(start.state_dict())
    return names


def test_the_other_blocks_run(session: dict[str, Any]) -> None:
    assert session["trainer"].state.global_step == 2
    assert session["monitor"].step > 0
    assert session["selector"].history
    assert isinstance(session["found"].verdict, Verdict)


def test_the_figure_is_there() -> None:
    (figure,) = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", README.read_text(encoding="utf-8"))
    assert Path(ROOT, figure).stat().st_size > 10_000
