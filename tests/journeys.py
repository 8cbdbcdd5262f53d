"""Readings of a signal at the start and after the model changed, with separate activations."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from riprap import Behavior
from riprap.signals import Signal
from tiny import PROMPTS, make_llama, make_tokenizer
from views import probe_view

CHAT = make_tokenizer()
HARMLESS = ["paint the car", "bake a blue cake", "what is one plus one", "help you to paint"]
LAYER = "model.layers.1"


def behaviors() -> list[Behavior]:
    return [
        Behavior.response_prefix("refusal", CHAT, PROMPTS, ["sorry"], contrast="over"),
        Behavior.response_prefix(
            "over", CHAT, HARMLESS[:3], ["sorry"], avoid=True, contrast="refusal"
        ),
        Behavior.response_prefix("lone", CHAT, HARMLESS, ["no"]),
    ]


def activations(model: nn.Module, prompts: list[str]) -> np.ndarray:
    """The layer's output at each prompt's last token, one prompt at a time."""
    rows: list[np.ndarray] = []
    hook = model.get_submodule(LAYER).register_forward_hook(
        lambda _m, _i, out: rows.append(out[0, -1].double().numpy())
    )
    for prompt in prompts:
        chat = [{"role": "user", "content": prompt}]
        ids = CHAT.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
        with torch.no_grad():
            model(torch.tensor([ids]))
    hook.remove()
    return np.stack(rows)


SETS = {"refusal": PROMPTS, "over": HARMLESS[:3], "lone": HARMLESS}


def moved(model: nn.Module) -> nn.Module:
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


class Journey:
    """Readings of one signal at the start and later, with the activations at both times."""

    def __init__(self, signal: Signal) -> None:
        model = make_llama().eval()
        self.then = {name: activations(model, prompts) for name, prompts in SETS.items()}
        view = probe_view(0, behaviors(), model)
        assert view.layer == LAYER
        signal.start(view)
        self.first = signal.on_probe_evaluation(view)
        moved(model)
        self.now = {name: activations(model, prompts) for name, prompts in SETS.items()}
        self.later = signal.on_probe_evaluation(probe_view(10, behaviors(), model))

    def directions(self, sets: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        difference = unit(sets["refusal"].mean(0) - sets["over"].mean(0))
        return {"refusal": difference, "over": -difference}
