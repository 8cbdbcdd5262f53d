"""Protocols: detectors with their thresholds, frozen under a content hash, amended in the open."""

from __future__ import annotations

import datetime
import hashlib
import json
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Self

import yaml
from pydantic import Field

from riprap.detectors.base import Detector
from riprap.detectors.betting import Betting
from riprap.detectors.cumulative import CUSUM, PageHinkley
from riprap.detectors.deviation import Deviation
from riprap.detectors.forecast import ForecastDetector
from riprap.detectors.slope import SlopeDetector
from riprap.detectors.threshold import Threshold
from riprap.evidence import ProtocolError
from riprap.schema import Strict, read_yaml

AnyDetector = Annotated[
    ForecastDetector | SlopeDetector | Betting | CUSUM | PageHinkley | Deviation | Threshold,
    Field(discriminator="kind"),
]
FROZEN = resources.files("riprap") / "protocols"


class Amendment(Strict):
    """A dated change of a frozen protocol, with its reason and the hash it had before."""

    date: datetime.date
    reason: str = Field(min_length=1)
    old_hash: str


class Protocol(Strict):
    """The list of detectors with their thresholds, and for a study how it is run.

    Attributes:
        name: what records and tables call it.
        detectors: in the order in which they are asked.
        study: what else a study fixes before its confirmatory seeds are run; free-form.
        hash: content hash of all of the above; None while it is not frozen.
        amendments: what was changed after freezing.
    """

    name: str = Field(min_length=1)
    detectors: tuple[AnyDetector, ...] = Field(min_length=1)
    study: dict[str, Any] | None = None
    hash: str | None = None
    amendments: tuple[Amendment, ...] = ()

    @classmethod
    def default(cls) -> Self:
        """The frozen default."""
        return cls.named("default")

    @classmethod
    def named(cls, name: str) -> Self:
        """A protocol that Riprap ships.

        Raises:
            ProtocolError: no such protocol, or its hash does not verify.
        """
        known = sorted(file.name[:-5] for file in FROZEN.iterdir() if file.name.endswith(".yaml"))
        if name not in known:
            raise ProtocolError(f"no protocol {name!r}; Riprap ships {', '.join(known)}")
        return cls.load(str(FROZEN / f"{name}.yaml"))

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a protocol; a frozen one is verified.

        Raises:
            ProtocolError: not readable, malformed, or its hash does not verify.
        """
        protocol = cls.parse(read_yaml(path, ProtocolError), str(path), ProtocolError)
        if protocol.hash is not None:
            protocol.verify()
        return protocol

    def save(self, path: str | Path) -> None:
        """Write it as YAML."""
        document = self.model_dump(mode="json", exclude_none=True)
        text = yaml.safe_dump(document, sort_keys=False, allow_unicode=True)
        Path(path).write_text(text, encoding="utf-8")

    def content_hash(self) -> str:
        """SHA-256 over name, detectors with all their thresholds, and the study's terms."""
        content = self.model_dump(mode="json", include={"name", "detectors", "study"})
        canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    def freeze(self) -> Self:
        """The same protocol under its hash.

        Raises:
            ProtocolError: it is frozen already, and its content differs from its hash.
        """
        if self.hash is not None:
            self.verify()
        return self.model_copy(update={"hash": self.content_hash()})

    def verify(self) -> None:
        """Check that the content is what was frozen.

        Raises:
            ProtocolError: it was never frozen, or was changed since.
        """
        if self.hash is None:
            raise ProtocolError(f"protocol {self.name!r} is not frozen: freeze it first")
        found = self.content_hash()
        if found != self.hash:
            raise ProtocolError(
                f"protocol {self.name!r} was changed after it was frozen: its content hashes to "
                f"{found[:12]}…, it says {self.hash[:12]}…; amend it instead, with a reason"
            )

    def amend(self, reason: str, date: datetime.date | None = None, **changes: Any) -> Self:
        """A changed protocol under a new hash; the old hash stays, with date and reason.

        Args:
            changes: new values of `detectors` or `study`.

        Raises:
            ProtocolError: not frozen, no reason, or changes that are malformed.
        """
        self.verify()
        if not reason.strip():
            raise ProtocolError(f"an amendment of protocol {self.name!r} needs a reason")
        amendment = Amendment(
            date=date or datetime.datetime.now(datetime.UTC).date(),
            reason=reason,
            old_hash=str(self.hash),
        )
        document = self.model_dump(mode="json") | _dumped(changes)
        document["hash"] = None
        document["amendments"] = [a.model_dump(mode="json") for a in (*self.amendments, amendment)]
        where = f"amendment of {self.name!r}"
        return type(self).parse(document, where, ProtocolError).freeze()

    def detector(self, kind: str) -> Detector:
        """The first detector of a kind.

        Raises:
            ProtocolError: there is none.
        """
        for detector in self.detectors:
            if detector.kind == kind:
                return detector
        raise ProtocolError(f"protocol {self.name!r} has no detector of kind {kind!r}")


def _dumped(changes: dict[str, Any]) -> dict[str, Any]:
    """Detectors given as objects, as plain documents."""
    if "detectors" not in changes:
        return changes
    plain = [
        d.model_dump(mode="json") if isinstance(d, Detector) else d for d in changes["detectors"]
    ]
    return changes | {"detectors": plain}
