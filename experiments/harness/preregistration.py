"""Preregistrations: the terms of a study, frozen under a hash before its confirmatory seeds."""

from __future__ import annotations

from importlib import resources
from importlib.resources.abc import Traversable
from typing import Any, ClassVar

from riprap.detectors import AlertPolicy
from riprap.errors import RiprapError


class PreregistrationError(RiprapError):
    """A preregistration that is malformed, or whose hash does not verify."""


class Preregistration(AlertPolicy):
    """An alert policy together with the terms of a study.

    Attributes:
        study: what the study fixes before its confirmatory seeds are run; free-form.
    """

    study: dict[str, Any] | None = None

    noun: ClassVar[str] = "preregistration"
    folder: ClassVar[Traversable] = resources.files("experiments") / "preregistrations"
    error: ClassVar[type[RiprapError]] = PreregistrationError
