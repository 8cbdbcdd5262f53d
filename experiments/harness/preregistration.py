"""Preregistrations: the terms of an experiment, frozen under a hash before it is run."""

from __future__ import annotations

from importlib import resources
from importlib.resources.abc import Traversable
from typing import Any, ClassVar

from riprap.detectors import AlertPolicy
from riprap.errors import RiprapError


class PreregistrationError(RiprapError):
    """A preregistration that is malformed, or whose hash does not verify."""


class Preregistration(AlertPolicy):
    """An alert policy together with the terms of an experiment.

    Attributes:
        study: what is fixed before the confirmatory seeds are run; free-form.
    """

    study: dict[str, Any] | None = None

    @property
    def terms(self) -> str:
        """Return the hash of the terms, which names cached runs."""
        return self.terms_hash()

    noun: ClassVar[str] = "preregistration"
    folder: ClassVar[Traversable] = resources.files("experiments") / "preregistrations"
    error: ClassVar[type[RiprapError]] = PreregistrationError
