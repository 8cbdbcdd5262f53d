"""Scores are of the gradients that SFTTrainer would take of each row, in `riprap watch`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from launching import config
from riprap.commands._data import DataConfig, RowReader
from riprap.commands._models import load_model
from riprap.commands.select import SelectConfig
from riprap.commands.select._scoring import Scorer
from riprap.commands.watch import prepare

pytestmark = pytest.mark.filterwarnings("ignore")
LONGEST = 11
ROWS = [
    ("what is one plus two", "three"),
    ("what is one plus two", "sure three yes yes yes yes yes yes"),  # cut
    ("how to bake a cake with the red paint and the blue car", "yes"),  # nothing left to learn
    ("help", "no"),
    ("unknown words", ""),
]


@pytest.mark.parametrize("rank", [2, 0])
def test_each_row_is_as_in_the_trainer(rank: int, tmp_path: Path) -> None:
    file = tmp_path / "some.jsonl"
    file.write_text("".join(json.dumps({"prompt": p, "response": r}) + "\n" for p, r in ROWS))
    lora = {"rank": rank, "alpha": 64} if rank else None
    training = {"max_length": LONGEST}
    watched = config(tmp_path, data={"path": str(file)}, lora=lora, training=training)
    asked = SelectConfig(
        data=DataConfig(path=str(file)),
        model=watched.model,
        out=tmp_path,
        behaviors=("over_refusal",),
        refusal_prefixes=("sorry",),
        lora_rank=rank,
        max_length=LONGEST,
    )
    scorer = Scorer(asked, *load_model(asked.model))
    found = scorer.score(list(RowReader(asked.data).rows()))
    assert found["tokens"][2] == found["norm"][2] == found["loss"][2] == 0
    assert found["cut"] == [False, True, True, False, False]

    trainer = prepare(watched).make_trainer()
    model = trainer.model.eval()
    ours = {n: p for n, p in scorer.model.named_parameters() if p.requires_grad}
    theirs = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert list(ours) == list(theirs)
    with torch.no_grad():  # their adapter is drawn with another seed
        for name, parameter in theirs.items():
            parameter.copy_(ours[name])
    held = gradient(model, lambda: scorer.behaviors[0].margins(model, scorer.behaviors[0].probes))
    left = [0, 1, 3, 4]  # the trainer drops what has no response tokens
    assert len(trainer.train_dataset) == len(left)
    for at, row in zip(left, trainer.train_dataset, strict=True):
        batch = trainer.data_collator([row])
        own = gradient(model, lambda: model(**batch).loss)  # noqa: B023
        assert found["tokens"][at] == int((batch["labels"][:, 1:] != -100).sum())
        assert found["loss"][at] == pytest.approx(float(model(**batch).loss), rel=1e-5)
        assert found["norm"][at] == pytest.approx(float(own.norm()), rel=1e-4)
        reach = float(own.norm() * held.norm())
        assert found["harm/over_refusal"][at] == pytest.approx(float(own @ held), abs=1e-4 * reach)


def gradient(model: Any, value: Any) -> torch.Tensor:
    trained = [p for p in model.parameters() if p.requires_grad]
    found = torch.autograd.grad(value().mean(), trained, allow_unused=True)
    pairs = zip(found, trained, strict=True)
    return torch.cat([torch.zeros(p.numel()) if g is None else g.flatten() for g, p in pairs])
