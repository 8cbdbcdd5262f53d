"""Metadata of a run in its record: behaviors, alert policy and versions."""

from __future__ import annotations

import datetime
import platform
import uuid
from collections.abc import Sequence
from importlib import metadata
from typing import Any

import torch

from riprap._text import shorten
from riprap.behaviors import Behavior
from riprap.detectors import AlertPolicy

_PACKAGES = ("riprap", "torch", "transformers", "trl", "peft", "accelerate")


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that affect a run's numbers."""
    installed = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            installed[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return installed


def now() -> str:
    """Return the current time, UTC, in ISO 8601."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def run_metadata(
    behaviors: Sequence[Behavior], policy: AlertPolicy, probe_every: int
) -> dict[str, Any]:
    """Return what a record tells about its run, without the user's own metadata."""
    return {
        "id": uuid.uuid4().hex,
        "behaviors": [_behavior_facts(behavior) for behavior in behaviors],
        "protocol": policy.model_dump(mode="json"),
        "protocol_hash": policy.hash or policy.content_hash(),
        "every": probe_every,
        "versions": versions(),
        "seeds": {"torch": torch.initial_seed()},
        "started": now(),
    }


def _behavior_facts(behavior: Behavior) -> dict[str, Any]:
    facts = {"name": behavior.name, "floor": behavior.floor, "contrast": behavior.contrast}
    if behavior.categories:
        facts["categories"] = [shorten(category) for category in behavior.categories]
    return facts
