"""Scores in the YAML header of a model card: only their own lines are written or removed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from riprap._text import first_line
from riprap._warnings import warn
from riprap.errors import ConfigError

KIND = "riprap"  # type of the data sets in the card's `model-index`
INDEX = "model-index"
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
    for first, last in sorted(_own_spans(_index(lines, file), file), reverse=True):
        del lines[first : last + 1]
    if not results:
        return "".join(lines)
    if not name:
        warn(
            f"no scores are written into the {INDEX} of {file}: the card does not name its model; "
            "give model_name (--model-name)"
        )
        return "".join(lines)
    item = yaml.safe_dump([{"name": name, "results": results}], sort_keys=False, allow_unicode=True)
    at = _index(lines, file)
    if at is None:
        lines.append(f"{INDEX}:{line_break}")
        place, index = len(lines) - 1, None
    else:
        key, index = at
        place = key.end_mark.line
    indent = ""
    if isinstance(index, yaml.SequenceNode) and index.value:
        place = _last_line(index)
        indent = lines[index.start_mark.line][: index.start_mark.column]
    added = [f"{indent}{line}{line_break}" for line in item.rstrip().split("\n")]
    lines[place + 1 : place + 1] = added
    return "".join(lines)


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


def _own_spans(index: _Index, file: Path) -> Iterator[tuple[int, int]]:
    """Yield first and last line of what an earlier run wrote."""
    for item in _items(None if index is None else index[1]):
        results = _value(item, "results")
        own = [one for one in _items(results) if _is_own(one)]
        if own and len(own) == len(_items(results)):
            yield item.start_mark.line, _last_line(item)
            continue
        if own and isinstance(results, yaml.CollectionNode) and results.flow_style:
            raise ConfigError(f"results of {file} are written in one line: write one a line")
        for one in own:
            yield one.start_mark.line, _last_line(one)


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
