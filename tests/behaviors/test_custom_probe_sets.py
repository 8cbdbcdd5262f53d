"""Users' probe files: what they measure, and errors for invalid files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from diagnosing import make_model, make_tokenizer
from riprap import evaluation
from riprap.behaviors import probe_sets
from riprap.behaviors._tokenization import encode_continuations, encode_prompts
from riprap.errors import BehaviorError

ROWS = probe_sets.rows("arithmetic")[:6]


def written(folder: Path, rows: list[Any], name: str = "facts.jsonl") -> str:
    file = folder / name
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(file)


def test_options_are_measured_as_those_of_a_shipped_probe_set(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    model = make_model(tokenizer)
    own = probe_sets.load(written(tmp_path, probe_sets.rows("arithmetic")), tokenizer)
    shipped = probe_sets.load("arithmetic", tokenizer)
    assert (own.name, own.contrast) == ("facts", None)
    assert (
        evaluation.evaluate(own, model).margins == evaluation.evaluate(shipped, model).margins
    ).all()


def test_a_completion_is_measured_by_its_first_token(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    model = make_model(tokenizer)
    rows = [{"prompt": row["prompt"], "completion": row["options"][row["answer"]]} for row in ROWS]
    found = evaluation.evaluate(probe_sets.load(written(tmp_path, rows), tokenizer), model).margins
    asked = encode_prompts(tokenizer, [row["prompt"] for row in rows])
    said = encode_continuations(tokenizer, [row["completion"] for row in rows])
    for prompt, answer, margin in zip(asked, said, found, strict=True):
        logits = model(torch.tensor([prompt])).logits[0, -1].detach()
        others = torch.cat([logits[: answer[0]], logits[answer[0] + 1 :]])
        assert float(logits[answer[0]] - others.max()) == pytest.approx(float(margin), abs=1e-4)


def test_files_of_different_editors_are_read(tmp_path: Path) -> None:
    """A byte order mark, CRLF line ends, and other line separators inside a text."""
    rows = [{"prompt": f"a{mark}b", "completion": "c", "label": 1} for mark in "\u2028\x85"]
    lines = "\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (tmp_path / "facts.jsonl").write_bytes(b"\xef\xbb\xbf" + lines.encode())
    assert probe_sets.rows(str(tmp_path / "facts.jsonl")) == rows


def test_prompts_alone_are_measured_by_how_the_response_starts(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    model = make_model(tokenizer)
    rows = probe_sets.rows("refusal")
    for name in ("refusal", "over_refusal", "greets"):
        file = written(tmp_path, rows, f"{name}.jsonl")
        own = probe_sets.load(file, tokenizer, 5, prefixes=["Sorry"], floor=0.5)
        assert own.name == name and own.floor == 0.5
        assert own.contrast == probe_sets.CONTRASTS.get(name)
        sign = -1 if name == "over_refusal" else 1
        shipped = probe_sets.load("refusal", tokenizer, 5, prefixes=["Sorry"])
        same = sign * evaluation.evaluate(shipped, model).margins
        assert (evaluation.evaluate(own, model).margins == same).all()


WRONG = {
    "no such file": (None, "cannot be read"),
    "empty": ("\n", "is empty"),
    "no JSON": ('{"prompt": "a"}\nprompt: b\n', "line 2 is not JSON"),
    "no row": ('["prompt"]\n', "line 1: a row needs the fields prompt [+] options [+] answer; or"),
    "no prompt": ('{"question": "a"}\n', "line 1: a row needs the fields prompt"),
    "a number for a text": (
        '{"prompt": "a", "completion": 7}\n',
        "'completion' must be str, got int",
    ),
    "two kinds": (
        '{"prompt": "a", "completion": "b"}\n{"prompt": "c"}\n',
        "line 2 has prompt, and the first line has prompt [+] completion; a file has rows of one",
    ),
    "an answer without options": ('{"prompt": "a", "answer": "b"}\n', "line 1: a row needs"),
    "options without an answer": (
        '{"prompt": "a", "options": ["b", "c"], "completion": "b"}\n',
        "line 1: a row needs",
    ),
    "one option": ('{"prompt": "a", "options": ["b"], "answer": 0}\n', "at least two texts"),
    "no such option": (
        '\n{"prompt": "a", "options": ["b", "c"], "answer": 2}\n',
        "line 2: 'answer' must be .* from 0 to 1, got 2",
    ),
    "an empty completion": ('{"prompt": "a", "completion": " "}\n', "'completion' is empty"),
    "a prompt twice": (
        '{"prompt": "a"}\n{"prompt": "b"}\n{"prompt": "a"}\n',
        "repeats the prompt of line 1",
    ),
    "too deep": ("[" * 100_000 + "\n", "line 1 is not JSON"),
}


@pytest.mark.parametrize("what", WRONG)
def test_an_invalid_file_is_refused(what: str, tmp_path: Path) -> None:
    text, says = WRONG[what]
    file = tmp_path / "facts.jsonl"
    if text is not None:
        file.write_text(text)
    with pytest.raises(BehaviorError, match=says) as found:
        probe_sets.load(str(file), make_tokenizer())
    assert "facts.jsonl" in str(found.value)
