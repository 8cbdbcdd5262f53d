"""Building what a configuration names: rows and behaviours. Every refusal comes from here."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import datasets
from torch import nn

from riprap import evaluation as probing
from riprap.behaviors import Behavior, TokenBatch
from riprap.behaviors import probe_sets as packs
from riprap.commands._models import SHOWN
from riprap.commands._models import load_model as load_model
from riprap.commands.watch._config import BehaviorConfig, DataConfig, WatchConfig
from riprap.detectors import AlertPolicy
from riprap.errors import ConfigError

_FORMATS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}


def load_rows(config: DataConfig) -> datasets.Dataset:
    """Rows as TRL's conversational prompt and completion.

    Raises:
        ConfigError: no such file or data set, a field that is not there, or no rows.
    """
    rows = _raw_rows(config)
    if config.limit is not None:
        rows = rows.select(range(min(config.limit, len(rows))))
    if len(rows) == 0:
        raise ConfigError(f"data {config.path!r} has no rows")
    pairs = [
        (_field(row, config.prompt, config), _field(row, config.response, config)) for row in rows
    ]
    return datasets.Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": prompt}],
                "completion": [{"role": "assistant", "content": config.response_prefix + response}],
            }
            for prompt, response in pairs
        ]
    )


def fingerprint(rows: Iterable[Any]) -> str:
    """A hash of the rows and their order, by which a resumed run knows its data again."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row, sort_keys=True).encode())
    return digest.hexdigest()[:16]


def _raw_rows(config: DataConfig) -> datasets.Dataset:
    shown = config.path[:SHOWN]
    try:
        file = Path(config.path).expanduser()
        kind = _FORMATS.get(file.suffix)
        if kind is not None and not file.is_file():
            raise ConfigError(f"data {shown!r}: no such file")
        if kind is not None:
            return datasets.load_dataset(kind, data_files=str(file), split="train")
        return datasets.load_dataset(config.path, split=config.split)
    except ConfigError:
        raise
    except Exception as error:
        cause = error.__cause__ or error  # of "an error occurred while generating the dataset"
        first = (str(cause).strip().splitlines() or ["it is empty"])[0][:SHOWN]
        raise ConfigError(f"data {shown!r} cannot be loaded: {first}") from error


def _field(row: dict[str, Any], path: str, config: DataConfig) -> str:
    value: Any = row
    for part in path.split("."):
        try:
            value = value[int(part)] if isinstance(value, list) else value[part]
        except (KeyError, IndexError, ValueError, TypeError) as error:
            raise ConfigError(
                f"data {config.path!r} has no field {path!r}; a row has {', '.join(row)}"
            ) from error
    if not isinstance(value, str | int | float):  # "None" would be learned as a word
        raise ConfigError(
            f"data {config.path!r}: field {path!r} of a row is {type(value).__name__}, and no text"
        )
    return str(value)


def load_policy(name: str) -> AlertPolicy:
    """A shipped protocol by name, or one from a file.

    Raises:
        ProtocolError: neither, or its hash does not verify.
    """
    if not name.endswith((".yaml", ".yml")):
        return AlertPolicy.named(name)
    return AlertPolicy.load(Path(name).expanduser())


def build_behaviors(config: WatchConfig, model: nn.Module, tokenizer: Any) -> list[Behavior]:
    """The behaviours to watch, checked against the model's context.

    Raises:
        ConfigError: a behaviour without probes, or a probe longer than the context.
    """
    limit = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    behaviors = []
    for own in config.behaviors:
        behavior = _build(own, tokenizer)
        batch = getattr(behavior.probes, "batch", behavior.probes)
        if limit is not None and isinstance(batch, TokenBatch):
            longest = batch.input_ids.shape[1]
            if longest > limit:
                raise ConfigError(
                    f"behaviour {behavior.name!r}: a probe of {longest} tokens is longer than "
                    f"the model's context of {limit}"
                )
        behaviors.append(keep_passing(behavior, model) if own.keep_passing else behavior)
    return behaviors


def _build(own: BehaviorConfig, tokenizer: Any) -> Behavior:
    if (own.pack is None) == (own.prompts is None):
        raise ConfigError("a behaviour needs either `pack` or `prompts`, and not both")
    if own.pack is not None:
        _refuse_idle(own, own.pack)
        given = {} if own.openers is None else {"openers": own.openers}
        return packs.load(own.pack, tokenizer, own.n, floor=own.floor, **given)
    if own.name is None:
        raise ConfigError(f"behaviour with prompts {str(own.prompts)!r} needs a `name`")
    lines = _prompt_lines(own)
    return Behavior.response_prefix(own.name, tokenizer, lines, own.openers, own.avoid, own.floor)


def _refuse_idle(own: BehaviorConfig, pack: str) -> None:
    """Keys that a pack would pass over in silence."""
    idle = [key for key in ("name", "avoid") if getattr(own, key)]
    if own.openers is not None and not packs.opens(packs.rows(pack)[0]):
        idle.append("openers")
    if idle:
        raise ConfigError(f"behaviour with pack {pack!r}: {idle[0]!r} has no effect on it; drop it")


def _prompt_lines(own: BehaviorConfig) -> list[str]:
    assert own.prompts is not None
    try:
        text = own.prompts.expanduser().read_text(encoding="utf-8")
    except (OSError, RuntimeError, ValueError) as error:  # no such user; no UTF-8, NUL in the path
        shown = f"cannot read {str(own.prompts)[:SHOWN]!r}: {str(error)[:SHOWN]}"
        raise ConfigError(f"behaviour {own.name!r}: {shown}") from error
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise ConfigError(f"behaviour {own.name!r} has no probes: {own.prompts} is empty")
    return lines[: own.n]


def keep_passing(behavior: Behavior, model: nn.Module) -> Behavior:
    """The same behaviour on the probes whose margin is above 0 now.

    Raises:
        ConfigError: the model passes none of them.
    """
    probing.start(behavior, model)
    passing = [i for i, m in enumerate(probing.look(behavior, model).margins) if m > 0]
    if not passing:
        raise ConfigError(
            f"behaviour {behavior.name!r}: the model passes none of its probes before training, "
            "so there is nothing to lose"
        )
    return behavior.subset(passing)
