"""Scores in the YAML header of a model card: only their own lines are written or removed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from riprap._text import first_line
from riprap._warnings import warn
from riprap.errors import ConfigError

KIND = "riprap"  # type of the data sets in the card's `model-index`
INDEX = "model-index"
MADE = "# this entry is by Riprap"  # at the results of an entry that may be removed whole
_BREAKS = "\n\r\x85\u2028\u2029"  # of lines, as YAML knows them
_LINES = re.compile(f"[^{_BREAKS}]*(?:\r\n|[{_BREAKS}])|[^{_BREAKS}]+$")


def set_scores(
    header: str,
    results: list[dict[str, Any]],
    model_name: str | None,
    file: Path,
    line_break: str = "\n",
) -> str:
    """Return a header with these results in its `model-index`, in place of earlier ones.

    Args:
        header: lines between the marks, each with its end; empty: there are none.
        model_name: name of the model; None: that of the `model-index`. Without either nothing is
            written, and a warning says so.
        file: the card, for messages.
        line_break: end of the lines that are written.

    Raises:
        ConfigError: the header is no mapping in YAML, or its `model-index` is written in one line.
    """
    lines = _LINES.findall(header)
    name = model_name or _model_name(_index(lines, file))
    _remove_own(lines, file)
    if not results:
        return "".join(lines)
    if not name:
        warn(
            f"no scores are written into the {INDEX} of {file}: the card does not name its model; "
            "give model_name (--model-name)"
        )
        return "".join(lines)
    place = _place_in_entry(lines, name, file, line_break)
    entry: list[dict[str, Any]] = results
    if place is None:
        place, entry = (
            _place_of_entry(lines, file, line_break),
            [{"name": name, "results": results}],
        )
    at, indent = place
    text = yaml.safe_dump(entry, sort_keys=False, allow_unicode=True).rstrip()
    text = text if entry is results else text.replace("\n  results:\n", f"\n  results: {MADE}\n", 1)
    lines[at:at] = [f"{indent}{line}{line_break}" for line in text.split("\n")]
    return "".join(lines)


def _place_in_entry(
    lines: list[str], name: str, file: Path, line_break: str
) -> tuple[int, str] | None:
    """Return the line for more results of the model's entry, and their indent; None: there is none.

    An entry without results gets the key; an empty value in one line, such as `results: []`, is
    opened.
    """
    index = _index(lines, file)
    for item in _items(None if index is None else index[1]):
        own, results = _value(item, "name"), _value(item, "results")
        if own is None or own.value != name:
            continue
        if isinstance(item, yaml.CollectionNode) and item.flow_style:
            raise ConfigError(
                f"the entry of {name} in {file} is written in one line: write one key a line"
            )
        indent = " " * item.start_mark.column
        if results is None:
            at = _last_line(item) + 1
            lines.insert(at, f"{indent}results:{line_break}")
            return at + 1, indent
        if isinstance(results, yaml.CollectionNode) and not results.flow_style:
            return _last_line(results) + 1, " " * results.start_mark.column
        if results.value not in ([], "", "null", "~"):
            raise ConfigError(f"results of {file} are written in one line: write one a line")
        start, end = results.start_mark, results.end_mark
        if start.line == end.line:
            line = lines[start.line]
            lines[start.line] = line[: start.column].rstrip() + line[end.column :]
            return start.line + 1, indent
    return None


def _place_of_entry(lines: list[str], file: Path, line_break: str) -> tuple[int, str]:
    """Return the line for a new entry of the `model-index`, and its indent; make the index."""
    found = _index(lines, file)
    if found is None:
        lines.append(f"{INDEX}:{line_break}")
        return len(lines), ""
    key, index = found
    if isinstance(index, yaml.SequenceNode) and index.value:
        return _last_line(index) + 1, lines[index.start_mark.line][: index.start_mark.column]
    return key.end_mark.line + 1, ""


_Index = tuple[yaml.Node, yaml.Node] | None


def _index(lines: list[str], file: Path) -> _Index:
    """Return key and value of the `model-index`, with their places; None: there is none."""
    try:
        root = yaml.compose("".join(lines), yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise ConfigError(
            f"cannot read the model card {file}: its header is no YAML: "
            f"{first_line(error, 'unknown error')}"
        ) from error
    if root is None:
        return None
    if not isinstance(root, yaml.MappingNode):
        raise ConfigError(f"cannot read the model card {file}: its header holds no keys")
    found = next(((key, value) for key, value in root.value if key.value == INDEX), None)
    if found is not None and isinstance(found[1], yaml.CollectionNode) and found[1].flow_style:
        raise ConfigError(f"the {INDEX} of {file} is written in one line: write one entry a line")
    return found


def _model_name(index: _Index) -> str | None:
    for item in _items(None if index is None else index[1]):
        name = _value(item, "name")
        if name is not None and name.value:
            return str(name.value)
    return None


def _remove_own(lines: list[str], file: Path) -> None:
    """Remove what an earlier run wrote: its results, and an entry that Riprap has made for them.

    An entry of the user's stays, if need be with `results: []`.
    """
    index, spans = _index(lines, file), []
    for item in _items(None if index is None else index[1]):
        results = _value(item, "results")
        own = [one for one in _items(results) if _is_own(one)]
        if not own:
            continue
        if isinstance(results, yaml.CollectionNode) and results.flow_style:
            raise ConfigError(f"results of {file} are written in one line: write one a line")
        spans += [(one.start_mark.line, _last_line(one)) for one in own]
        if len(own) < len(_items(results)):
            continue
        keys = {key.value: key.end_mark for key, _ in item.value}
        at = keys["results"].line
        if MADE in lines[at] and keys.keys() == {"name", "results"}:
            spans[-len(own) :] = [(item.start_mark.line, _last_line(item))]
        else:
            end = lines[at].index(":", keys["results"].column) + 1
            lines[at] = f"{lines[at][:end]} []{lines[at][end:]}"
    for first, last in sorted(spans, reverse=True):
        del lines[first : last + 1]


def _is_own(result: yaml.Node) -> bool:
    kind = _value(_value(result, "dataset"), "type")
    return kind is not None and kind.value == KIND


def _items(node: yaml.Node | None) -> list[yaml.Node]:
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


def _value(node: yaml.Node | None, name: str) -> yaml.Node | None:
    pairs = node.value if isinstance(node, yaml.MappingNode) else []
    return next((value for key, value in pairs if key.value == name), None)


def _last_line(node: yaml.Node) -> int:
    """Return the last line of a node; YAML ends a block only where the next thing begins."""
    if isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        last = node.value[-1]
        return _last_line(last[1] if isinstance(node, yaml.MappingNode) else last)
    mark = node.end_mark
    return int(
        mark.line - 1 if mark.column == 0 and mark.line > node.start_mark.line else mark.line
    )
