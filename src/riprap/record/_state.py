"""States on disk: nested dicts and lists of plain values and tensors, in one safetensors file."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from riprap.errors import RecordError

_STATE_ERRORS = (LookupError, RuntimeError, TypeError, ValueError)  # RecursionError is a RuntimeError
_TENSOR, _TUPLE, _PAIRS = "__tensor__", "__tuple__", "__pairs__"


def save_state(path: str | Path, state: dict[str, Any]) -> None:
    """Write a state, such as `Monitor.state_dict()`; all of it or nothing.

    Raises:
        RecordError: the file cannot be written, or the state holds something else than plain
            values and dense tensors.
    """
    file, partial = Path(path), Path(f"{path}.partial")
    tensors: dict[str, Tensor] = {}
    try:
        text = json.dumps(_extract_tensors(state, tensors))
        own = {name: part.detach().cpu().contiguous().clone() for name, part in tensors.items()}
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file(own, partial, metadata={"riprap": text})
        partial.replace(file)
    except (OSError, SafetensorError, *_STATE_ERRORS) as error:
        with suppress(OSError, ValueError):
            partial.unlink()
        raise RecordError(f"cannot write the monitor's state to {file}: {error}") from error


def load_state(path: str | Path) -> dict[str, Any]:
    """Read what `save_state` wrote; tensors come back on the CPU.

    Raises:
        RecordError: there is no such file, or it is not a state.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            text = (file.metadata() or {}).get("riprap")
            # Clones lie in aligned memory: sums come out to the last bit as they would have.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        found = None if text is None else _restore_tensors(json.loads(text), tensors)
    except (OSError, SafetensorError, *_STATE_ERRORS) as error:
        raise RecordError(f"cannot read a monitor's state from {path}: {error}") from error
    if not isinstance(found, dict):
        raise RecordError(f"{path} does not hold a monitor's state")
    return found


def _extract_tensors(value: Any, tensors: dict[str, Tensor]) -> Any:
    """`value` with each tensor replaced by its name in `tensors`."""
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
