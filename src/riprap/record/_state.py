"""States on disk: nested dicts and lists of plain values and tensors, in a safetensors file."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from riprap.errors import RecordError

_STATE_ERRORS = (LookupError, RuntimeError, TypeError, ValueError)  # covers RecursionError
_TENSOR, _TUPLE, _PAIRS = "__tensor__", "__tuple__", "__pairs__"


def save_state(path: str | Path, state: dict[str, Any]) -> None:
    """Write a state, such as `Monitor.state_dict()`, completely or not at all.

    Raises:
        RecordError: the file cannot be written, or the state holds something other than plain
            values and dense tensors.
    """
    file, partial = Path(path), Path(f"{path}.partial")
    tensors: dict[str, Tensor] = {}
    try:
        text = json.dumps(_extract_tensors(state, tensors))
        copies = {name: part.detach().cpu().contiguous().clone() for name, part in tensors.items()}
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file(copies, partial, metadata={"riprap": text})
        partial.replace(file)
    except (OSError, SafetensorError, *_STATE_ERRORS) as error:
        with suppress(OSError, ValueError):
            partial.unlink()
        raise RecordError(f"cannot write the monitor's state to {file}: {error}") from error


def load_state(path: str | Path) -> dict[str, Any]:
    """Read a state that `save_state` wrote, with its tensors on the CPU.

    Raises:
        RecordError: there is no such file, or it is not a state.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            text = (file.metadata() or {}).get("riprap")
            # Clones lie in aligned memory, so that sums are bit-identical to those before saving.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        state = None if text is None else _restore_tensors(json.loads(text), tensors)
    except (OSError, SafetensorError, *_STATE_ERRORS) as error:
        raise RecordError(f"cannot read a monitor's state from {path}: {error}") from error
    if not isinstance(state, dict):
        raise RecordError(f"{path} does not hold a monitor's state")
    return state


def check_fields(state: Any, /, **types: Any) -> None:
    """Check that a state is a dict with exactly these keys and types of values.

    Args:
        types: by key, as `isinstance` takes them; True and False are not integers here.

    Raises:
        ValueError: the first difference.
    """
    if not isinstance(state, dict):
        raise ValueError(f"expected a dict, got {type(state).__name__}")
    if missing := [key for key in types if key not in state]:
        raise ValueError(f"key {missing[0]!r} is missing")
    for key, value in state.items():
        if key not in types:
            raise ValueError(f"unknown key {key!r}")
        if not isinstance(value, types[key]) or isinstance(value, bool) != (types[key] is bool):
            raise ValueError(f"{key!r} has the type {type(value).__name__}")


def _extract_tensors(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Return `value` with each tensor replaced by its name in `tensors`."""
    if isinstance(value, Tensor):
        name = f"t{len(tensors)}"
        tensors[name] = value
        return {_TENSOR: name}
    if isinstance(value, dict) and not all(isinstance(key, str) for key in value):
        return {_PAIRS: [[key, _extract_tensors(part, tensors)] for key, part in value.items()]}
    if isinstance(value, dict):
        return {key: _extract_tensors(part, tensors) for key, part in value.items()}
    if isinstance(value, tuple):
        return {_TUPLE: [_extract_tensors(part, tensors) for part in value]}
    if isinstance(value, list):
        return [_extract_tensors(part, tensors) for part in value]
    return value


def _restore_tensors(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Invert `_extract_tensors`."""
    if isinstance(value, dict) and set(value) == {_TENSOR}:
        return tensors[value[_TENSOR]]
    if isinstance(value, dict) and set(value) == {_TUPLE}:
        return tuple(_restore_tensors(part, tensors) for part in value[_TUPLE])
    if isinstance(value, dict) and set(value) == {_PAIRS}:
        return {key: _restore_tensors(part, tensors) for key, part in value[_PAIRS]}
    if isinstance(value, dict):
        return {key: _restore_tensors(part, tensors) for key, part in value.items()}
    if isinstance(value, list):
        return [_restore_tensors(part, tensors) for part in value]
    return value
