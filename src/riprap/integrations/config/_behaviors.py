"""Build the alert policy and the behaviors of a configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from riprap.behaviors import Behavior, probe_sets
from riprap.detectors import AlertPolicy
from riprap.errors import ConfigError
from riprap.integrations.config._schema import BehaviorConfig, MonitorConfig
from riprap.monitor import keep_passing

SHOWN = 300  # characters of a name or an error that a message repeats


def load_policy(name: str) -> AlertPolicy:
    """Load a shipped alert policy by name, or a policy from a YAML file."""
    is_file = name.endswith((".yaml", ".yml"))
    return AlertPolicy.load(Path(name).expanduser()) if is_file else AlertPolicy.named(name)


def build_behaviors(config: MonitorConfig, model: nn.Module, tokenizer: Any) -> list[Behavior]:
    """Build the behaviors to monitor, and check their length against the model's context."""
    limit = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    behaviors = []
    for behavior_config in config.behaviors:
        behavior = build_behavior(behavior_config, tokenizer)
        longest = behavior.probes.max_length
        if limit is not None and longest > limit:
            raise ConfigError(
                f"behavior {behavior.name!r}: a probe of {longest} tokens is longer than the "
                f"model's context of {limit}"
            )
        if behavior_config.keep_passing:
            behavior = keep_passing(behavior, model)
        behaviors.append(behavior)
    return behaviors


def check_behaviors(config: MonitorConfig) -> list[str]:
    """Check the behaviors before the model is loaded, and return their names."""
    names = [check_behavior(behavior) for behavior in config.behaviors]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f"two behaviors are named {twice!r}: give one of them another name")
    return names


def check_behavior(config: BehaviorConfig) -> str:
    """Return the name of a behavior.

    A missing key, one without effect on this kind, an unknown probe set and a missing file are
    refused.
    """
    if (config.probe_set is None) == (config.prompts is None):
        raise ConfigError("a behavior needs either `probe_set` or `prompts`, not both")
    if config.probe_set is not None:
        probe_sets.evenly_spaced(config.probe_set, config.n_probes)
        _refuse_ignored_keys(config, config.probe_set)
        return probe_sets.behavior_name(config.probe_set)
    if config.name is None:
        raise ConfigError(f"the behavior with prompts {str(config.prompts)!r} needs a `name`")
    _prompt_lines(config)
    return config.name


def build_behavior(config: BehaviorConfig, tokenizer: Any) -> Behavior:
    """Build a behavior; see `check_behavior`."""
    name = check_behavior(config)
    chat = {"system": config.system, "chat_template_kwargs": config.chat_template_kwargs}
    options: dict[str, Any] = {key: value for key, value in chat.items() if value is not None}
    options["floor"] = config.floor
    if config.probe_set is not None:
        options |= {} if config.prefixes is None else {"prefixes": config.prefixes}
        return probe_sets.load(config.probe_set, tokenizer, config.n_probes, **options)
    prompts = _prompt_lines(config)
    return Behavior.response_prefix(
        name, tokenizer, prompts, config.prefixes, config.avoid, **options
    )


def _refuse_ignored_keys(config: BehaviorConfig, probe_set: str) -> None:
    ignored = [key for key in ("name", "avoid") if getattr(config, key)]
    if config.prefixes is not None:
        first = probe_sets.rows(probe_set)[0]
        ignored += [] if probe_sets.is_prefix_probe(first) else ["prefixes"]
    if ignored:
        raise ConfigError(
            f"behavior with probe_set {probe_set!r}: key {ignored[0]!r} has no effect; remove it"
        )


def _prompt_lines(config: BehaviorConfig) -> list[str]:
    assert config.prompts is not None
    try:
        text = config.prompts.expanduser().read_text(encoding="utf-8")
    except (OSError, RuntimeError, ValueError) as error:  # no such user; no UTF-8, NUL in the path
        shown = f"cannot read {str(config.prompts)[:SHOWN]!r}: {str(error)[:SHOWN]}"
        raise ConfigError(f"behavior {config.name!r}: {shown}") from error
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise ConfigError(f"behavior {config.name!r} has no probes: {config.prompts} is empty")
    return lines[: config.n_probes]
