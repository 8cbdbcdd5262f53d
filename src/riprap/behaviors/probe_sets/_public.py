"""Public probe sets, which are not shipped: read from a file, or from a Hugging Face dataset."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from riprap._extras import require
from riprap._text import shorten
from riprap.errors import BehaviorError

FOLDER_VARIABLE = "RIPRAP_DATA"
DEFAULT_FOLDER = "../shared/data"


@dataclass(frozen=True, slots=True)
class PublicSet:
    """A public data set, or the part of it that makes one behavior."""

    file: str
    hub_id: str
    category: str  # the field that rows are ordered by
    unsafe: bool | None = None  # which rows of a set that has both; None: all

    def holds(self, row: dict[str, Any]) -> bool:
        """Return whether a row is one of this part."""
        if self.unsafe is None:
            return True
        label = row.get("label") or ("unsafe" if _is_contrast(row) else "safe")
        return (label == "unsafe") is self.unsafe


PUBLIC = {
    "xstest_safe": PublicSet("xstest.jsonl", "Paul/XSTest", "type", unsafe=False),
    "xstest_unsafe": PublicSet("xstest.jsonl", "Paul/XSTest", "type", unsafe=True),
    "strongreject": PublicSet("strongreject.jsonl", "walledai/StrongREJECT", "category"),
}


def read_public(name: str, path: str | Path | None) -> list[dict[str, Any]]:
    """Return the rows of a public set with `id`, `category` and `prompt`, ordered by category.

    A prompt that occurs twice is taken once.

    Raises:
        BehaviorError: there is no such file, or it has other fields.
    """
    public = PUBLIC[name]
    where = _locate(name, public) if path is None else str(path)
    found: dict[str, dict[str, Any]] = {}
    for number, row in enumerate(_read(where, name), 1):
        prompt = row.get("prompt") or row.get("forbidden_prompt")
        category = row.get(public.category)
        if not prompt or not category or not isinstance(prompt, str):
            raise BehaviorError(
                f"probe set {name!r}: row {number} of {where!r} needs a prompt and a "
                f"{public.category!r}; it has {', '.join(map(str, row))}"
            )
        if public.holds(row):
            at = str(row.get("id") or number)
            found.setdefault(prompt, {"id": f"{name}-{at}", "category": category, "prompt": prompt})
    if not found:
        raise BehaviorError(f"probe set {name!r}: {where!r} has no rows of it")
    categories = list(dict.fromkeys(row["category"] for row in found.values()))
    return sorted(found.values(), key=lambda row: categories.index(row["category"]))


def _is_contrast(row: dict[str, Any]) -> bool:
    return str(row["type"]).startswith("contrast_")


def data_folder() -> Path:
    """Return the folder of public data: the one that RIPRAP_DATA names, or ../shared/data."""
    return Path(os.environ.get(FOLDER_VARIABLE, DEFAULT_FOLDER))


def _locate(name: str, public: PublicSet) -> str:
    file = data_folder() / public.file
    if not file.is_file():
        raise BehaviorError(
            f"probe set {name!r} is not shipped, and {str(file)!r} is missing: give `path`, a file "
            f"or a Hugging Face dataset id such as {public.hub_id!r}, or set {FOLDER_VARIABLE} to "
            f"the folder that holds {public.file}"
        )
    return str(file)


def _read(where: str, name: str) -> Iterable[dict[str, Any]]:
    file = Path(where).expanduser()
    if file.suffix not in (".jsonl", ".csv") and not file.exists():
        return _read_hub(where, name)
    try:
        text = file.read_text(encoding="utf-8-sig")
        if file.suffix == ".csv":
            return list(csv.DictReader(text.splitlines(keepends=True)))
        rows = [json.loads(line) for line in text.split("\n") if line.strip()]
    except (OSError, ValueError) as error:
        raise BehaviorError(f"probe set {name!r}: {where!r} cannot be read: {error}") from error
    if not all(isinstance(row, dict) for row in rows):
        raise BehaviorError(f"probe set {name!r}: each line of {where!r} must be a JSON object")
    return rows


def _read_hub(hub_id: str, name: str) -> list[dict[str, Any]]:
    require("hf", "datasets")
    from datasets import load_dataset

    try:
        splits = load_dataset(hub_id)
    except (OSError, ValueError) as error:  # what `datasets` raises for a wrong id or no network
        raise BehaviorError(
            f"probe set {name!r}: there is no file {hub_id!r}, and a dataset of that id cannot be "
            f"loaded: {shorten(str(error))}"
        ) from error
    return [dict(row) for split in splits.values() for row in split]
