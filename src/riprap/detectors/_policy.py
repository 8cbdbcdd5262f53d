"""Alert policies: detectors with their thresholds, frozen under a content hash."""

from __future__ import annotations

import datetime
import hashlib
import json
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

import yaml
from pydantic import Field

from riprap._config import StrictModel, read_yaml
from riprap.detectors._base import Detector
from riprap.detectors._betting_test import BettingTest
from riprap.detectors._cumulative import CUSUM, PageHinkley
from riprap.detectors._deviation import Deviation
from riprap.detectors._forecast import ForecastDetector
from riprap.detectors._probe_trend import ProbeTrend
from riprap.detectors._slope import SlopeDetector
from riprap.detectors._threshold import Threshold
from riprap.errors import PolicyError, RiprapError

AnyDetector = Annotated[
    ProbeTrend
    | ForecastDetector
    | SlopeDetector
    | BettingTest
    | CUSUM
    | PageHinkley
    | Deviation
    | Threshold,
    Field(discriminator="kind"),
]


class Amendment(StrictModel):
    """A dated change of a frozen document, with its reason and the hash it had before.

    Attributes:
        sealed: the amendment is a part of the document's hash, so that it cannot be struck out.
            False for those of documents that were amended before this was so.
    """

    date: datetime.date
    reason: str = Field(min_length=1)
    old_hash: str
    sealed: bool = Field(default=False, exclude_if=lambda value: not value)


class AlertPolicy(StrictModel):
    """Detectors with their thresholds, frozen under a content hash.

    Attributes:
        name: name in records and tables.
        detectors: in the order in which they are evaluated.
        hash: content hash of name and detectors; None while the policy is not frozen.
        amendments: changes after freezing, oldest first.
    """

    name: str = Field(min_length=1)
    detectors: tuple[AnyDetector, ...] = Field(min_length=1)
    hash: str | None = None
    amendments: tuple[Amendment, ...] = ()

    noun: ClassVar[str] = "policy"
    folder: ClassVar[Traversable] = resources.files("riprap.detectors") / "policies"
    error: ClassVar[type[RiprapError]] = PolicyError

    @classmethod
    def default(cls) -> Self:
        """Load the frozen default policy."""
        return cls.named("default")

    @classmethod
    def named(cls, name: str) -> Self:
        """Load a policy that Riprap ships.

        Raises:
            PolicyError: unknown name, or its hash does not verify.
        """
        files = [file.name for file in cls.folder.iterdir()]
        known = sorted(file.removesuffix(".yaml") for file in files if file.endswith(".yaml"))
        if name not in known:
            raise cls.error(f"no {cls.noun} {name!r}; available: {', '.join(known)}")
        return cls.load(str(cls.folder / f"{name}.yaml"))

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a YAML file; a frozen one is verified.

        Raises:
            PolicyError: not readable, malformed, or its hash does not verify.
        """
        document = read_yaml(path, cls.error)
        if isinstance(document, dict) and "study" in set(document) - set(cls.model_fields):
            raise cls.error(
                f"{path} is the preregistration of an experiment, not an alert policy: "
                "see `python -m experiments list` in a checkout"
            )
        policy = cls.parse(document, str(path), cls.error)
        if policy.hash is not None:
            policy.verify()
        return policy

    def save(self, path: str | Path) -> None:
        """Write the policy to a YAML file."""
        document = self.model_dump(mode="json", exclude_none=True)
        text = yaml.safe_dump(document, sort_keys=False, allow_unicode=True)
        Path(path).write_text(text, encoding="utf-8")

    def content_hash(self) -> str:
        """Compute SHA-256 over name, detectors with all thresholds, a study's terms if there are
        any, and the amendments."""
        sealed = [a.model_dump(mode="json") for a in self.amendments if a.sealed]
        return self._hash({"amendments": sealed} if sealed else {})

    def terms_hash(self) -> str:
        """Compute the hash without amendments: equal for what says the same."""
        return self._hash({})

    def _hash(self, more: dict[str, Any]) -> str:
        content = {"study": None} | more
        content |= self.model_dump(mode="json", include={"name", "detectors", "study"})
        canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    def freeze(self) -> Self:
        """Return a copy that carries its content hash.

        Raises:
            PolicyError: frozen already, and its content differs from its hash.
        """
        if self.hash is not None:
            self.verify()
        return self.model_copy(update={"hash": self.content_hash()})

    def verify(self) -> None:
        """Check that the content has not changed since freezing.

        Raises:
            PolicyError: never frozen, or changed since.
        """
        if self.hash is None:
            raise self.error(f"{self.noun} {self.name!r} is not frozen: freeze it first")
        current = self.content_hash()
        if current != self.hash:
            raise self.error(
                f"{self.noun} {self.name!r} was changed after it was frozen: its content hashes to "
                f"{current[:12]}…, it says {self.hash[:12]}…; amend it instead, with a reason"
            )

    def amend(self, reason: str, date: datetime.date | None = None, **changes: Any) -> Self:
        """Return a changed copy under a new hash; it keeps the old hash with date and reason.

        Args:
            changes: new values of fields, such as `detectors`.

        Raises:
            PolicyError: not frozen, no reason, or malformed changes.
        """
        self.verify()
        if not reason.strip():
            raise self.error(f"an amendment of {self.noun} {self.name!r} needs a reason")
        amendment = Amendment(
            date=date or datetime.datetime.now(datetime.UTC).date(),
            reason=reason,
            old_hash=str(self.hash),
            sealed=True,
        )
        document = self.model_dump(mode="json") | _to_documents(changes)
        document["hash"] = None
        document["amendments"] = [a.model_dump(mode="json") for a in (*self.amendments, amendment)]
        where = f"amendment of {self.name!r}"
        return type(self).parse(document, where, self.error).freeze()

    def detector(self, kind: str) -> Detector:
        """Return the first detector of a kind.

        Raises:
            PolicyError: there is none.
        """
        for detector in self.detectors:
            if detector.kind == kind:
                return detector
        raise self.error(f"{self.noun} {self.name!r} has no detector of kind {kind!r}")


def _to_documents(changes: dict[str, Any]) -> dict[str, Any]:
    """Return changes with detector objects converted to plain documents."""
    if "detectors" not in changes:
        return changes
    documents = [
        d.model_dump(mode="json") if isinstance(d, Detector) else d for d in changes["detectors"]
    ]
    return changes | {"detectors": documents}
