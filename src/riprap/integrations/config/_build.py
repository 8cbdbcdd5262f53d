"""Build a monitor and its guard as a configuration describes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from riprap.behaviors import Behavior
from riprap.detectors import AlertPolicy
from riprap.guards import Guard
from riprap.integrations.config._behaviors import check_behaviors, load_policy
from riprap.integrations.config._interventions import build_guard, check_guard
from riprap.integrations.config._schema import MonitorConfig
from riprap.monitor import Monitor


def check_monitor_config(config: MonitorConfig) -> AlertPolicy:
    """Check all names of a configuration, without a model, and return the alert policy.

    Raises:
        RiprapError: a name or a value that the run would refuse.
    """
    policy, names = load_policy(config.policy), check_behaviors(config)
    if config.guard is not None:
        check_guard(config.guard, names)
    return policy


def build_monitor(
    config: MonitorConfig,
    behaviors: list[Behavior],
    policy: AlertPolicy,
    run_dir: Path,
    metadata: dict[str, Any],
    resume: bool = False,
) -> tuple[Monitor, Guard | None, list[Behavior]]:
    """Build the monitor, its guard and the monitored behaviors: half of the probes may be replayed.

    Args:
        behaviors: those of the configuration, as `build_behaviors` returns them.
        run_dir: folder of the record, as `MonitorConfig.expanded_run_dir` returns it.
    """
    protection = build_guard(config, behaviors)
    options: dict[str, Any] = {} if config.stop_on is None else {"stop_on": config.stop_on}
    if "budget" in config.model_fields_set:
        options["budget"] = config.budget
    monitor = Monitor(
        protection.behaviors,
        policy=policy,
        probe_every=config.probe_every,
        run_dir=run_dir,
        feature_layer=config.feature_layer,
        metadata=metadata,
        resume=resume,
        texts=config.texts,
        **options,
    )
    return monitor, protection.guard, protection.behaviors
