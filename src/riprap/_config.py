"""Configuration files: YAML loaded safely, validated by pydantic, refused in one sentence."""

from __future__ import annotations

import difflib
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from riprap.errors import ConfigError, RiprapError

MAX_BYTES, MAX_NODES = 1_000_000, 100_000
MAX_QUOTED = 200  # characters of a user's text that an error repeats


if TYPE_CHECKING:
    from pydantic._internal._model_construction import ModelMetaclass
else:
    ModelMetaclass = type(BaseModel)


class _OneSentence(ModelMetaclass):
    """Metaclass of models: values that a call gives are refused in one sentence."""

    def __call__(self, *args: Any, **values: Any) -> Any:
        """Make an instance of the model `self`."""
        model: Any = self
        if args:
            keys = ", ".join(f"{key}=" for key in model.model_fields)
            raise model.error(f"{model.__name__}: give values by name ({keys}), not {args[0]!r}")
        try:
            return super().__call__(**values)
        except ValidationError as problem:
            raise model.error(f"{model.__name__}: {_one_line_error(problem, model)}") from problem


class StrictModel(BaseModel, metaclass=_OneSentence):
    """A pydantic model that refuses unknown keys and names the nearest known one."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    renamed: ClassVar[dict[str, str]] = {}  # old key -> new key
    error: ClassVar[type[RiprapError]] = ConfigError

    @classmethod
    def parse(cls, document: Any, where: str, error: type[RiprapError] = ConfigError) -> Self:
        """Validate a document that was read from `where`; raise `error` with its first problem."""
        if not isinstance(document, dict):
            raise error(f"{where}: expected a mapping, got {type(document).__name__}")
        try:
            return cls.model_validate(document)
        except ValidationError as problem:
            raise error(f"{where}: {_one_line_error(problem, cls)}") from problem

    def config_hash(self) -> str:
        """Return a hash of all values, twelve hexadecimal digits."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:12]


def read_yaml(path: str | Path, error: type[RiprapError] = ConfigError) -> Any:
    """Load a YAML file; raise `error` if it cannot be read, is not YAML, or is too large."""
    file = Path(path)
    try:
        if file.stat().st_size > MAX_BYTES:
            raise error(f"{file} is larger than {MAX_BYTES:,} bytes, too large for a configuration")
        document = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:  # ValueError: not UTF-8, or NUL in the path
        text = f"cannot read {str(file)[:MAX_QUOTED]!r}: {problem}"
        raise error(text[: 3 * MAX_QUOTED]) from problem
    except yaml.YAMLError as problem:
        line = str(problem).replace("\n", " ")
        raise error(f"{file} is not valid YAML: {line}") from problem
    except RecursionError as problem:
        raise error(f"{file} is nested too deeply") from problem
    if _too_large(document):
        raise error(f"{file} has more than {MAX_NODES:,} values after its aliases are expanded")
    return document


def _too_large(document: Any) -> bool:
    """Return whether a document is endless, or has more than `MAX_NODES` values."""
    remaining, todo = MAX_NODES, [document]
    while todo and remaining:
        node, remaining = todo.pop(), remaining - 1
        if isinstance(node, dict):
            todo += [*node.keys(), *node.values()]
        elif isinstance(node, (list, tuple, set)):
            todo += node
    return bool(todo)


def _one_line_error(problem: ValidationError, model: type[BaseModel]) -> str:
    # A misspelled key also makes the right one missing; the misspelling is the useful message.
    errors = problem.errors()
    first = next((error for error in errors if error["type"] == "extra_forbidden"), errors[0])
    path = [str(part) for part in first["loc"]]
    place = ".".join(path)
    if first["type"] == "extra_forbidden":
        models = _nested_models(model)
        for nested in models:
            if path[-1] in getattr(nested, "renamed", {}):
                return f"key {place!r} is now {nested.renamed[path[-1]]!r}"
        keys = _keys_at(model, path[:-1])
        known = {key for nested in models for key in nested.model_fields}
        near = difflib.get_close_matches(path[-1], sorted(keys), n=1, cutoff=0.5)
        near = near or difflib.get_close_matches(path[-1], sorted(known), n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]!r}?" if near else f"; the keys here are {', '.join(keys)}"
        return f"unknown key {place!r}{hint}"
    if first["type"] == "union_tag_invalid":
        given, tags = first["ctx"]["tag"], first["ctx"]["expected_tags"]
        return f"{place!r}: there is no kind {given!r}; choose one of {tags}"
    if first["type"] == "missing":
        return f"key {place!r} is missing"
    message = first["msg"].removeprefix("Value error, ")
    message = f"{place!r}: {message}" if place else message
    if first["type"] == "value_error" and isinstance(first.get("input"), dict):
        return message  # about several values, which are not repeated
    got = repr(first.get("input"))
    return f"{message}, got {got if len(got) <= MAX_QUOTED else got[:MAX_QUOTED] + '…'}"


def _keys_at(model: type[BaseModel], place: list[str]) -> list[str]:
    """Return the keys of the model that stands at a place, or of all that may stand there.

    Args:
        place: keys, positions in lists, and the kinds of models.
    """
    models: list[Any] = [model]
    for part in place:
        kinds = [own for own in models if _default(own, "kind") == part]
        fields = [own.model_fields[part] for own in models if part in own.model_fields]
        if kinds or not fields:
            models = kinds or models
        else:
            models = [one for own in fields for one in _models_in(own.annotation)]
    return list(dict.fromkeys(key for own in models for key in own.model_fields))


def _default(model: type[BaseModel], key: str) -> Any:
    return model.model_fields[key].default if key in model.model_fields else None


def _models_in(annotation: Any) -> list[Any]:
    """Return the models in an annotation, without those inside of them."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [one for part in getattr(annotation, "__args__", ()) for one in _models_in(part)]


def _nested_models(model: type[BaseModel]) -> list[Any]:
    """List a model and all models in the annotations of its fields."""
    annotations: dict[Any, bool] = {}  # annotation -> whether it is a model
    todo: list[Any] = [model]
    while todo:
        part = todo.pop()
        if part not in annotations:
            annotations[part] = isinstance(part, type) and issubclass(part, BaseModel)
            fields = part.model_fields.values() if annotations[part] else ()
            todo += [*(field.annotation for field in fields), *getattr(part, "__args__", ())]
    return [part for part, is_model in annotations.items() if is_model]
