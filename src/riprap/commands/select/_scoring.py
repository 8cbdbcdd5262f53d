"""Numbers of each row: loss, norm of its gradient, what it is predicted to do to behaviours."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from peft import get_peft_model
from torch import Tensor, nn

from riprap import evaluation as probing
from riprap.behaviors import Behavior
from riprap.behaviors import probe_sets
from riprap.commands.select._choose import HARM
from riprap.commands.select._config import SelectConfig
from riprap.commands.select._jsonl import Row, rows
from riprap.commands.select._store import Store
from riprap.commands.select._tokens import Encoder
from riprap.commands.watch import LoraConfig, WatchConfig, lora_config, keep_passing
from riprap.errors import ConfigError
from riprap.selection import IGNORE_INDEX, forward_args, compute_grad_samples, error_norms, row_losses, without_labels

SEED = 0  # of the adapter's random half
PATIENCE, MOST = 20.0, 8192  # seconds, rows that a kill may cost

Columns = dict[str, list[Any]]


def fingerprint(model: nn.Module, tokenizer: Any) -> str:
    """A hash of weights and chat template, which does not depend on the order of a sum."""
    digest = hashlib.sha256(str(getattr(tokenizer, "chat_template", "")).encode())
    digest.update(str(len(tokenizer)).encode())
    for name, parameter in model.named_parameters():
        words = parameter.detach().contiguous().view(torch.int32)
        digest.update(f"{name} {tuple(parameter.shape)} {int(words.sum())}".encode())
    return digest.hexdigest()[:16]


class Scorer:
    """Scores rows as training would meet them first: with a fresh adapter, and without dropout.

    The adapter's B is 0, so that the model is the base model, gradients of A are 0 and those of B
    are the base weights' gradients projected by A: what the first step of training goes by.

    Args:
        model: the base model; it is given the adapter.

    Attributes:
        behaviors: those whose harm is predicted, on the probes that the model passes.
    """

    def __init__(self, config: SelectConfig, model: Any, tokenizer: Any) -> None:
        self.encoder = Encoder(tokenizer, config.max_length)
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        model.to(self._device)
        self.names = config.behaviors
        self.behaviors = [_behavior(config, name, model, tokenizer) for name in self.names]
        self.model = _adapted(config, model)
        parameters: list[Tensor] = [p for p in self.model.parameters() if p.requires_grad]
        self._harms = []
        for behavior in self.behaviors:
            gradient = probing.evaluate(behavior, self.model, parameters).gradient
            if gradient is None:
                raise ConfigError(f"behaviour {behavior.name!r} has no gradient in what is trained")
            self._harms.append(gradient)

    def score(self, rows: Sequence[Row]) -> Columns:
        """Columns of the store, for one batch of rows.

        Raises:
            ConfigError: a row that the chat template refuses, by its line.
        """
        encoded = [self.encoder.encode(row) for row in rows]
        batch = {k: v.to(self._device) for k, v in self.encoder.batch(encoded).items()}
        proxies: list[Tensor] = []

        def losses(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
            args, named = without_labels(forward_args(batch))
            output = model(*args, **named)
            with torch.no_grad():
                proxies.append(error_norms(model, output, batch)[1])
            return row_losses(output, batch).values

        values, catch = compute_grad_samples(self.model, batch, losses, directions=self._harms)
        # −⟨h_b, Δθ_i⟩, with Δθ_i = −∇L_i the update of plain descent at rate 1
        harms = torch.as_tensor(catch.dot_products).tolist() if self._harms else []
        norms = torch.as_tensor(catch.squared_norms).double().clamp(min=0).sqrt()
        columns: Columns = {
            "row": [row.number for row in rows],
            "id": [row.id for row in rows],
            "category": [row.category for row in rows],
            "tokens": [sum(label != IGNORE_INDEX for label in one.labels[1:]) for one in encoded],
            "cut": [one.cut for one in encoded],
            "loss": values.tolist(),
            "norm": norms.tolist(),
            "proxy": proxies[0].tolist(),
        }
        for name, harm in zip(self.names, harms, strict=True):
            columns[HARM + name] = harm
        return columns


def _behavior(config: SelectConfig, name: str, model: Any, tokenizer: Any) -> Behavior:
    openers = config.openers or probe_sets.REFUSAL_PREFIXES
    return keep_passing(probe_sets.load(name, tokenizer, prefixes=openers), model)


def _adapted(config: SelectConfig, model: Any) -> Any:
    if config.lora_rank == 0:
        return model
    asked = lora_config(WatchConfig.model_construct(lora=LoraConfig(rank=config.lora_rank)))
    assert asked is not None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        return get_peft_model(model, asked)


def score_rows(config: SelectConfig, scorer: Scorer, store: Store) -> Iterator[int]:
    """Score what is not scored yet; yields how many rows are done, batch after batch.

    Rows are read a batch at a time. Batches are those of an unbroken run, since only whole ones
    are kept.
    """
    held: Columns = {}
    began = time.monotonic()
    source = rows(config, store.done)
    for batch in iter(lambda: list(islice(source, config.batch)), []):
        for name, values in scorer.score(batch).items():
            held.setdefault(name, []).extend(values)
        count = len(held["row"])
        if count >= MOST or time.monotonic() - began >= PATIENCE:
            store.append(held)
            held, began, count = {}, time.monotonic(), 0
        yield store.done + count
    if held:
        store.append(held)
        yield store.done
