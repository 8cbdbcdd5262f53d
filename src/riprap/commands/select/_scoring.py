"""Score rows: loss, gradient norm, and predicted harm to behaviors."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from peft import get_peft_model
from torch import Tensor, nn

from riprap.behaviors import probe_sets
from riprap.commands._data import Row, RowReader
from riprap.commands._encoding import Encoder, require_rows_of_tokens
from riprap.commands.select._choose import HARM
from riprap.commands.select._config import SelectConfig
from riprap.commands.select._store import Store
from riprap.commands.watch import LoraConfig, lora_config
from riprap.errors import ConfigError
from riprap.evaluation import evaluate
from riprap.monitor import keep_passing
from riprap.selection import (
    IGNORE_INDEX,
    compute_grad_samples,
    error_norms,
    forward_args,
    row_losses,
    without_labels,
)

ADAPTER_SEED = 0  # of the adapter's A matrices
WRITE_SECONDS, WRITE_ROWS = 20.0, 8192  # at most this much is lost by a kill

Columns = dict[str, list[Any]]


def model_fingerprint(model: nn.Module, tokenizer: Any) -> str:
    """Hash weights and chat template; the hash does not depend on the order of a sum."""
    digest = hashlib.sha256(str(getattr(tokenizer, "chat_template", "")).encode())
    digest.update(str(len(tokenizer)).encode())
    for name, parameter in model.named_parameters():
        words = parameter.detach().contiguous().view(torch.int32)
        digest.update(f"{name} {tuple(parameter.shape)} {int(words.sum())}".encode())
    return digest.hexdigest()[:16]


class Scorer:
    """Scores of rows at the first step of training: with a new adapter, and without dropout.

    The new adapter has B = 0. So the model is the base model, the gradient of A is 0, and that of B
    is the gradient of the base weight, projected by A.

    Args:
        model: the base model; the adapter is added to it.

    Attributes:
        behaviors: behaviors whose harm is predicted, with the probes that the model passes.
    """

    def __init__(self, config: SelectConfig, model: Any, tokenizer: Any) -> None:
        self.encoder = Encoder(tokenizer, config.max_length, config.data.chat_template_kwargs)
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        model.to(self._device)
        self.names = config.behaviors
        prefixes = config.refusal_prefixes or probe_sets.REFUSAL_PREFIXES
        loaded = [probe_sets.load(name, tokenizer, prefixes=prefixes) for name in self.names]
        self.behaviors = [keep_passing(behavior, model) for behavior in loaded]
        self.model = _with_adapter(config, model)
        parameters: list[Tensor] = [p for p in self.model.parameters() if p.requires_grad]
        self._gradients = []
        for behavior in self.behaviors:
            gradient = evaluate(behavior, self.model, parameters).gradient
            if gradient is None:
                raise ConfigError(
                    f"behavior {behavior.name!r} has no gradient in the trainable parameters"
                )
            self._gradients.append(gradient)

    def score(self, rows: Sequence[Row]) -> Columns:
        """Compute the columns of the store for a batch of rows."""
        encoded = [self.encoder.encode(row) for row in rows]
        require_rows_of_tokens(encoded, self.model)
        batch = {k: v.to(self._device) for k, v in self.encoder.batch(encoded).items()}
        proxies: list[Tensor] = []

        def losses(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
            args, named = without_labels(forward_args(batch))
            output = model(*args, **named)
            with torch.no_grad():
                proxies.append(error_norms(model, output, batch)[1])
            return row_losses(output, batch).values

        values, result = compute_grad_samples(self.model, batch, losses, directions=self._gradients)
        # −⟨h_b, Δθ_i⟩, with Δθ_i = −∇L_i the update of plain gradient descent at rate 1
        harms = torch.as_tensor(result.dot_products).tolist() if self._gradients else []
        norms = torch.as_tensor(result.squared_norms).double().clamp(min=0).sqrt()
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
        return columns | {HARM + n: harm for n, harm in zip(self.names, harms, strict=True)}


def _with_adapter(config: SelectConfig, model: Any) -> Any:
    if config.lora_rank == 0:
        return model
    adapter = lora_config(LoraConfig(rank=config.lora_rank))
    assert adapter is not None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(ADAPTER_SEED)
        return get_peft_model(model, adapter)


def score_rows(reader: RowReader, batch_size: int, scorer: Scorer, store: Store) -> Iterator[int]:
    """Score the rows that are not scored yet; yield the number of scored rows after each batch.

    Rows are read one batch at a time. Only whole batches are stored, so a resumed run has the
    batches of an uninterrupted one.
    """
    columns: Columns = {}
    last_write = time.monotonic()
    rows = reader.rows(store.done)
    for batch in iter(lambda: list(islice(rows, batch_size)), []):
        for name, values in scorer.score(batch).items():
            columns.setdefault(name, []).extend(values)
        count = len(columns["row"])
        if count >= WRITE_ROWS or time.monotonic() - last_write >= WRITE_SECONDS:
            store.append(columns)
            columns, last_write, count = {}, time.monotonic(), 0
        yield store.done + count
    if columns:
        store.append(columns)
        yield store.done
