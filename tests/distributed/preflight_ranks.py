"""Script of two ranks: each predicts with its share of the batches; rank 0 prints the result."""

from __future__ import annotations

import json

import torch
import torch.distributed as dist
from torch import Tensor, nn

import riprap
from riprap.behaviors import Behavior
from tiny import PlainLM


def predict() -> dict[str, list[float]]:
    torch.manual_seed(0)
    model = PlainLM()
    ids = torch.randint(5, 40, (60, 4))
    probes = torch.randint(5, 40, (12, 4))
    with torch.no_grad():
        answers = model(probes)[:, -1].argmax(-1)
    behavior = Behavior.next_token("kept", probes, answers)

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        logits = model(batch[:, :-1])[:, -1]
        return nn.functional.cross_entropy(logits, batch[:, -1], reduction="none")

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    found = riprap.preflight(
        model, ids.split(8), [behavior], optimizer=optimizer, loss=loss, warm_steps=4, steps=40
    )
    own = found.behaviors["kept"]
    return {"harm": own.harm.tolist(), "slopes": own.slopes.tolist(), "rows": found.rows.tolist()}


if __name__ == "__main__":
    dist.init_process_group("gloo")
    result = predict()
    if dist.get_rank() == 0:
        print(json.dumps(result))
    dist.destroy_process_group()
