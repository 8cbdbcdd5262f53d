"""Training rows and prompts from broken files are refused; valid text is not changed."""

from __future__ import annotations

from pathlib import Path

import pytest

from riprap.commands._data import DataConfig, load_rows
from riprap.commands.watch import WatchConfig
from riprap.errors import ConfigError
from riprap.integrations.config import BehaviorConfig, build_behaviors
from tiny import make_llama, make_tokenizer

BROKEN = {
    "cut.jsonl": b'{"prompt": "x", "resp',
    "empty.jsonl": b"",
    "empty.csv": b"",
    "header.csv": b"prompt,response\n",
    "binary.jsonl": b"\xff\xfe\x00",
    "binary.parquet": b"PAR1xx",
    "list.json": b"[1, 2]",
    "numbers.jsonl": b"3\n4\n",
    "deep.jsonl": b"[" * 10_000,
    "half.jsonl": b'{"prompt": "\\ud800", "response": "x"}\n',
    "field.jsonl": b'{"prompt": "a"}\n',
    "null.jsonl": b'{"prompt": "a", "response": null}\n',
    "nested.jsonl": b'{"prompt": "a", "response": {"text": "b"}}\n',
    "pickle.pkl": b"\x80\x04N.",
}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.mark.parametrize("name", BROKEN)
def test_broken_rows_are_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(BROKEN[name])
    with pytest.raises(ConfigError, match=r"data '.*'") as raised:
        load_rows(DataConfig(path=str(tmp_path / name)))
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 1000
    assert "occurred while generating" not in str(raised.value)  # which says nothing


@pytest.mark.parametrize("path", ["x" * 5000 + ".jsonl", "a\x00.jsonl", "~nobody-here/x.csv", ""])
def test_paths_that_cannot_be_are_refused(path: str) -> None:
    with pytest.raises(ConfigError, match=r"data '.*'") as raised:
        load_rows(DataConfig(path=path))
    assert len(str(raised.value)) < 1000


def test_text_is_not_changed(tmp_path: Path) -> None:
    text = "<script>[red]\x1b[2J\u202e|{{ 1 }} 模型"
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "\\u001b[2J", "response": 5}\n')
    row = load_rows(DataConfig(path=str(file), response_prefix=text))[0]
    assert row["prompt"][0]["content"] == "\x1b[2J"
    assert row["completion"][0]["content"] == text + "5"


def config(prompts: Path | str) -> WatchConfig:
    behavior = BehaviorConfig(name="odd", prompts=Path(prompts), prefixes=("no",))
    data = DataConfig(path="none.jsonl")
    rest = {
        "training": {"max_steps": 1, "learning_rate": 1.0},
        "run_dir": "run",
        "model": "none",
    }
    return WatchConfig.model_validate({"behaviors": (behavior,), "data": data, **rest})


@pytest.mark.parametrize("path", ["x" * 5000, "a\x00b", "~nobody-here/x", ".", "missing"])
def test_prompts_that_cannot_be_read_are_refused(path: str) -> None:
    with pytest.raises(ConfigError, match="behavior 'odd': cannot read") as raised:
        build_behaviors(config(path), make_llama(), make_tokenizer())
    assert len(str(raised.value)) < 1000


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "has no probes"),
        (b" \n\t\n\r\n", "has no probes"),
        (b"\xff\xfe", "cannot read"),
        (b"how to " * 200, "longer than the model's context"),
    ],
)
def test_files_without_usable_prompts_are_refused(
    content: bytes, text: str, tmp_path: Path
) -> None:
    (tmp_path / "prompts.txt").write_bytes(content)
    with pytest.raises(ConfigError, match=text):
        build_behaviors(config(tmp_path / "prompts.txt"), make_llama(), make_tokenizer())
