"""Keep finished runs on disk, so that an experiment resumes and its pages can be made again."""

from __future__ import annotations

import functools
import inspect
import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, Generic, ParamSpec, TypeVar, cast, get_args, get_origin, get_type_hints

import numpy as np
import torch

RUNS = Path("runs")  # relative to the working directory; not committed
Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class CachedRun(Generic[Arguments, Result]):
    """A function whose result is written once for each set of arguments, and then read back.

    A file is written completely or not at all. A result is computed with one thread, so that it
    does not depend on the machine's load.
    """

    def __init__(self, function: Callable[Arguments, Result], name: str, own_folder: bool) -> None:
        self.function, self.name, self.own_folder = function, name, own_folder
        functools.update_wrapper(self, function)

    def __reduce__(self) -> str:
        """Pickle the function by its name, as a plain function."""
        return self.function.__qualname__

    def path(self, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Path:
        """Return the file of a result; with `own_folder`, all of its folder belongs to the run."""
        bound = inspect.signature(self.function).bind(*args, **kwargs)
        name = self.name.format_map(bound.arguments)
        return RUNS / name.replace(",", "").replace(" ", "_")

    def __call__(self, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        """Return the result, computed now or in an earlier session."""
        path = self.path(*args, **kwargs)
        if not path.exists():
            torch.set_num_threads(1)
            if self.own_folder:  # an interrupted run leaves its record behind
                shutil.rmtree(path.parent, ignore_errors=True)
            result = self.function(*args, **kwargs)
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_name(f"{path.stem}.{os.getpid()}.partial{path.suffix}")
            if path.suffix == ".npz":
                np.savez_compressed(partial, **cast(Any, result))
            else:
                partial.write_text(json.dumps(result, default=asdict))
            partial.rename(path)
        if path.suffix == ".npz":
            with np.load(path) as arrays:
                return cast(Result, dict(arrays))
        kind = get_type_hints(self.function)["return"]
        return cast(Result, rebuild(kind, json.loads(path.read_text())))

    def pack(self, *args: Arguments.args, **kwargs: Arguments.kwargs) -> bytes:
        """Return the files of a finished run as an archive, for another machine."""
        path, buffer = self.path(*args, **kwargs), io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
            archive.add(path.parent if self.own_folder else path, ".")
        return buffer.getvalue()

    def unpack(self, data: bytes, *args: Arguments.args, **kwargs: Arguments.kwargs) -> None:
        """Store an archive of `pack` as the finished run of these arguments."""
        path = self.path(*args, **kwargs)
        target = path.parent if self.own_folder else path
        if path.exists():
            return
        shutil.rmtree(target, ignore_errors=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            if self.own_folder:
                archive.extractall(target, filter="data")
            else:
                content = archive.extractfile(".")
                assert content is not None
                target.write_bytes(content.read())


def cached(
    name: str, own_folder: bool = False
) -> Callable[[Callable[Arguments, Result]], CachedRun[Arguments, Result]]:
    """Make a function read its result from `runs/` where an earlier call has written it.

    Args:
        name: path below `runs/`, with the arguments of a call in braces; `.json` stores
            dataclasses and plain data, `.npz` a dictionary of arrays.
        own_folder: the run writes other files beside the result; all of the folder is removed
            before an interrupted run starts again.
    """
    return lambda function: CachedRun(function, name, own_folder)


def rebuild(kind: Any, value: Any) -> Any:
    """Rebuild dataclasses, tuples and integer keys from JSON, by their annotations."""
    origin, args = get_origin(kind), get_args(kind)
    if is_dataclass(kind):
        hints = get_type_hints(kind)
        return cast(Any, kind)(**{name: rebuild(hints[name], own) for name, own in value.items()})
    if origin is list:
        return [rebuild(args[0], one) for one in value]
    if origin is tuple:
        kinds = args[:1] * len(value) if args[-1] is Ellipsis else args
        return tuple(rebuild(own, one) for own, one in zip(kinds, value, strict=True))
    if origin is dict:
        return {int(k) if args[0] is int else k: rebuild(args[1], v) for k, v in value.items()}
    return value
