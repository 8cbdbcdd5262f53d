"""`riprap select`: chosen lines as they stood, a kill that costs nothing, refusals by line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from launching import write_config
from riprap.cli._app import app
from riprap.commands._data import DataConfig, Row, RowReader, load_rows, read_rows
from riprap.commands.select import SelectConfig, select_rows
from riprap.commands.select import _scoring as scoring
from riprap.commands.select import _store as store
from riprap.errors import ConfigError

pytestmark = pytest.mark.filterwarnings("ignore")
LINES = [
    b'{"prompt": "what is one plus two", "response": "sure three",  "kind":"sums", "id": 7}\n',
    b'\n{"kind": "talk", "id": "b\\u001b[2J", "prompt": "help", "response": "yes \\u001b[31m"}\r\n',
    *(
        json.dumps(
            {"prompt": f"what is {a} plus {b}", "response": f"{c} " * n, "kind": "sums", "id": n}
        ).encode()
        + b"\n"
        for a, b, c, n in [
            *(("one", "two", "three", 1), ("six", "one", "seven", 2), ("two", "two", "four", 3)),
            *(("red", "blue", "green", 4), ("five", "one", "six", 5), ("car", "cake", "bomb", 6)),
        ]
    ),
    b'{"prompt": "how to bake a cake", "response": "no", "kind": "talk", "id": null2}\n',
]
LINES[-1] = LINES[-1].replace(b"null2", b"9")[:-1]  # no end of line


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    write_config(folder)
    return folder / "model"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b"".join(LINES))
    return file


def asked(model: Path, data: Path, out: Path, **changes: Any) -> SelectConfig:
    base: dict[str, Any] = {"model": str(model), "out": out, "lora_rank": 2, "batch_size": 2}
    base |= {"id": "id", "category": "kind", "behaviors": ("over_refusal",), "ratio": 0.34}
    return SelectConfig(
        data=DataConfig(path=str(data)), **base | {"refusal_prefixes": ("sorry",)} | changes
    )


def test_chosen_lines_are_copied_and_the_rest_is_said(model: Path, data: Path) -> None:
    out = data.parent / "out"
    result = CliRunner().invoke(
        app,
        [
            *("select", str(data), "--model", str(model), "--out", str(out), "--json"),
            *("--lora-rank", "2", "--behaviors", "over_refusal", "--refusal-prefixes", "sorry"),
            *("--category", "kind", "--id", "id", "--ratio", "0.34", "--strategy", "high"),
        ],
    )
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    scores = pd.read_parquet(out / "scores.parquet")
    assert scores["row"].tolist() == [1, 3, *range(4, 11)]  # the blank line counts
    assert scores["id"].tolist() == ["7", "b\x1b[2J", "1", "2", "3", "4", "5", "6", "9"]
    assert {"loss", "norm", "proxy", "tokens", "harm/over_refusal", "category"} <= set(scores)
    assert found["rows"] == 9 and found["chosen"] == scores["chosen"].sum() == 3
    largest = np.argsort(-scores["norm"])[:3]
    assert sorted(largest) == np.flatnonzero(scores["chosen"]).tolist()
    whole = b"".join(LINES).splitlines(keepends=True)
    kept = [whole[row - 1] for row in scores["row"][scores["chosen"]]]
    assert (out / "chosen.jsonl").read_bytes() == b"".join(
        line if line.endswith(b"\n") else line + b"\n" for line in kept
    )
    groups = {group["name"]: group for group in found["groups"]}
    assert groups["high"] == groups["chosen"] | {"name": "high"}
    assert groups["all"]["categories"] == {"sums": 7, "talk": 2}
    assert groups["all"]["norm"] == pytest.approx(scores["norm"].mean())
    harms = [row["harm"] for row in found["worst"]]
    assert harms == sorted(scores["harm/over_refusal"], reverse=True)
    page = (out / "audit.html").read_text()
    assert "\x1b" not in page and r"yes \x1b[31m" in page
    assert (out / "audit.png").stat().st_size > 5000
    assert not (out / "parts").exists()
    stored = json.loads((out / "audit.json").read_text())
    assert stored["worst"] == found["worst"]
    assert stored["model"] == str(model)
    for name, file in (("rows_digest", data), ("chosen_digest", out / "chosen.jsonl")):
        _, summary = read_rows(DataConfig(path=str(file)))  # as `riprap watch` reads them
        assert stored[name] == summary.digest


def cut_off(
    monkeypatch: pytest.MonkeyPatch, config: SelectConfig, batches: int, patience: float = 0
) -> None:
    """A run whose process ends while it is at a batch, with what a kill leaves behind."""

    class KilledError(BaseException):
        pass

    original, seen = scoring.Scorer.score, []

    def score(self: Any, rows: list[Row]) -> Any:
        seen.append(rows)
        if len(seen) > batches:
            raise KilledError
        return original(self, rows)

    with monkeypatch.context() as patch:
        patch.setattr(scoring, "WRITE_SECONDS", patience)
        patch.setattr(scoring.Scorer, "score", score)
        with pytest.raises(KilledError):
            select_rows(config, quiet=True)
    (config.out / "parts" / "000000000099.partial").write_bytes(b"half")


def test_a_run_that_was_killed_goes_on_as_if_it_had_not_been(
    model: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, broken = data.parent / "whole", data.parent / "broken"
    select_rows(asked(model, data, whole), quiet=True)
    cut_off(monkeypatch, asked(model, data, broken), batches=2)
    cut_off(monkeypatch, asked(model, data, broken), batches=1)
    scored = []
    original = scoring.Scorer.score
    monkeypatch.setattr(
        scoring.Scorer, "score", lambda self, rows: scored.append(len(rows)) or original(self, rows)
    )
    select_rows(asked(model, data, broken), quiet=True)
    assert scored == [2, 1]  # of nine rows, six were kept
    for name in ("chosen.jsonl", "scores.parquet", "audit.html"):
        assert (whole / name).read_bytes() == (broken / name).read_bytes()
    # Another choice from the same scores needs no scoring, and is that of a fresh run.
    again = select_rows(asked(model, data, broken, strategy="least_harm", ratio=0.6), quiet=True)
    assert scored == [2, 1]
    fresh = data.parent / "fresh"
    select_rows(asked(model, data, fresh, strategy="least_harm", ratio=0.6), quiet=True)
    assert again["chosen"] == 5
    assert (fresh / "chosen.jsonl").read_bytes() == (broken / "chosen.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"batch_size": 3}, "begun with batch_size 2, and now it is 3"),
        ({"behaviors": ("arithmetic",), "refusal_prefixes": ()}, "begun with behaviors"),
        ({"max_length": 16}, "begun with max_length 1024, and now it is 16"),
        ({"data": "other"}, "begun with data"),
        ({"model": "other"}, "begun with weights"),
    ],
)
def test_scores_of_something_else_are_not_gone_on_with(
    changes: dict[str, Any], text: str, model: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = data.parent / "out"
    cut_off(monkeypatch, asked(model, data, out), batches=1)
    if changes == {"data": "other"}:
        data.write_bytes(b"".join(LINES[1:]))
        changes = {}
    if changes == {"model": "other"}:
        other = data.parent / "model"
        shutil.copytree(model, other)
        from safetensors.torch import load_file, save_file

        weights = load_file(other / "model.safetensors")
        weights["lm_head.weight"][3, 3] += 1e-4
        save_file(weights, other / "model.safetensors", {"format": "pt"})
        changes, model = {}, other
    before = sorted((out / "parts").iterdir())
    with pytest.raises(ConfigError, match=text):
        select_rows(asked(model, data, out, **changes), quiet=True)
    assert sorted((out / "parts").iterdir()) == before


@pytest.mark.parametrize("content", [b"PAR1", None])
def test_a_damaged_part_is_named(
    content: bytes | None, model: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = asked(model, data, data.parent / "out")
    cut_off(monkeypatch, config, batches=3)
    second = config.out / "parts" / "000000000002.parquet"
    if content is None:
        second.unlink()
    else:
        second.write_bytes(content)
    named = "000000000004" if content is None else "000000000002"
    with pytest.raises(ConfigError, match=rf"{named}\.parquet .* remove it and the parts after"):
        select_rows(config, quiet=True)


def test_a_folder_of_something_else_is_left_alone(model: Path, data: Path) -> None:
    with pytest.raises(ConfigError, match="is not empty: name another folder by --out"):
        select_rows(asked(model, data, data.parent), quiet=True)


GOOD = b'{"prompt": "a", "response": "b"}\n'
BROKEN = {
    "cut": (b'{"prompt": "x", "resp', "line 2 of data '.*' is not JSON"),
    "number": (b"3", "line 2 of data '.*' is int; an object with fields is needed"),
    "deep": (b"[" * 10_000, "line 2 of data '.*' is not JSON"),
    "binary": (b"\xff\xfe\x00", "line 2 of data '.*' is not UTF-8"),
    "field": (b'{"prompt": "a"}', "line 2 of data '.*' has no field 'response'"),
    "null": (
        b'{"prompt": "a", "response": null}',
        "line 2 of data '.*': field 'response' is missing",
    ),
    "nested": (
        b'{"prompt": "a", "response": {"b": "c"}}',
        "line 2 of data '.*': field 'response' is dict; give a text",
    ),
    "half": (
        b'{"prompt": "\\ud800", "response": "x"}',
        "contains half of a surrogate",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_line_is_refused_by_its_number(name: str, tmp_path: Path) -> None:
    line, text = BROKEN[name]
    (tmp_path / "x.jsonl").write_bytes(GOOD + line + b"\n" + GOOD)
    config = asked(tmp_path, tmp_path / "x.jsonl", tmp_path / "out", id=None, category=None)
    with pytest.raises(ConfigError, match=text) as raised:
        select_rows(config, quiet=True)  # before the model is loaded, which is not there
    assert len(str(raised.value)) < 1000 and "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "name", "text"),
    [
        (b"", "a.jsonl", "has no rows"),
        (b"\n  \n", "a.jsonl", "has no rows"),
        (b"", "a.csv", "cannot be loaded"),
        (b"prompt,response\n", "a.csv", "has no rows"),
        (None, "a.csv", "cannot be read: No such file"),
        (None, "a.jsonl", "cannot be read: No such file"),
        (None, "~nobody-here/a.jsonl", "cannot be read"),
        (None, "x\x00.jsonl", "cannot be read"),
    ],
)
def test_files_without_rows_are_refused(
    content: bytes | None, name: str, text: str, tmp_path: Path
) -> None:
    path = str(tmp_path / name) if not name.startswith("~") else name
    if content is not None:
        Path(path).write_bytes(content)
    with pytest.raises(ConfigError, match=text):
        RowReader(DataConfig(path=path)).check()


def test_what_cannot_be_asked_for_is_one_sentence(data: Path, tmp_path: Path) -> None:
    def run(*more: str) -> str:
        arguments = ["select", str(data), "--model", "none", "--out", str(tmp_path / "o"), *more]
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 1
        return result.stderr

    assert "'ratio'" in run("--ratio", "1.5")
    assert "choose one of random" in run("--strategy", "taylor")
    assert "needs behaviors" in run("--strategy", "least_harm")
    assert "--refusal-prefixes needs --behaviors" in run("--refusal-prefixes", "Sorry")


def test_rows_are_read_as_they_are_scored(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One batch at a time: texts of rows that are read ahead would fill the memory."""
    n_read = 0
    original = RowReader.parse

    def counted(*arguments: Any) -> Row:
        nonlocal n_read
        n_read += 1
        return original(*arguments)

    class ConstantScorer:
        def score(self, rows: list[Row]) -> dict[str, list[Any]]:
            nonlocal read_ahead
            read_ahead = max(read_ahead, n_read - n_scored[0])
            n_scored[0] += len(rows)
            plain = {"id": None, "category": None, "tokens": 1, "cut": False}
            numbers = dict.fromkeys(("loss", "norm", "proxy", "harm/over_refusal"), 1.0)
            columns = {name: [value] * len(rows) for name, value in (plain | numbers).items()}
            return columns | {"row": [row.number for row in rows]}

    read_ahead, n_scored = 0, [0]
    monkeypatch.setattr(RowReader, "parse", counted)
    monkeypatch.setattr(scoring, "WRITE_ROWS", 4)
    config = asked(tmp_path, data, tmp_path / "out")
    scores = store.Store(config.out, {}, config.behaviors)
    reader = RowReader(config.data)
    done = scoring.score_rows(reader, 2, ConstantScorer(), scores)  # type: ignore[arg-type]
    assert list(done) == [2, 4, 6, 8, 9, 9]
    assert read_ahead == 2
    assert len(list((config.out / "parts").iterdir())) == 3


@pytest.mark.parametrize("suffix", ["csv", "parquet", "json"])
def test_rows_of_other_formats_are_selected(
    suffix: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same rows as from JSON Lines; the chosen ones are written as JSON Lines."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    records = [
        {"prompt": f"what is {a} plus {b}", "response": "three " * n, "kind": "sums", "id": f"r{n}"}
        for n, (a, b) in enumerate([("one", "two"), ("six", "one"), ("two", "two")], 1)
    ]
    frame, file = pd.DataFrame(records), tmp_path / f"rows.{suffix}"
    if suffix == "csv":
        frame.to_csv(file, index=False)
    elif suffix == "parquet":
        frame.to_parquet(file)
    else:
        file.write_text(json.dumps(records))
    plain = tmp_path / "rows.jsonl"
    plain.write_text("".join(json.dumps(record) + "\n" for record in records))
    found = []
    for source in (plain, file):
        out = tmp_path / f"out-{source.suffix}"
        select_rows(asked(model, source, out), quiet=True)
        chosen = [json.loads(line) for line in (out / "chosen.jsonl").read_text().splitlines()]
        found.append((chosen, pd.read_parquet(out / "scores.parquet").to_dict()))
    assert found[0] == found[1]
    assert len(found[0][0]) == 1


def test_limit_and_response_prefix_apply_to_both_commands(data: Path) -> None:
    config = DataConfig(path=str(data), limit=2, response_prefix="> ")
    rows = [*RowReader(config).rows()]
    assert [row.response for row in rows] == ["> sure three", "> yes \x1b[31m"]
    assert [row["completion"][0]["content"] for row in load_rows(config)] == [
        row.response for row in rows
    ]
