"""Probes of one's own, in a file: what is measured, and what is said of a file that is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from diagnosing import make_model, make_tokenizer
from riprap import evaluation as probing
from riprap.behaviors import probe_sets as packs
from riprap.behaviors._tokenization import encode_continuations, encode_prompts
from riprap.errors import BehaviorError

ROWS = packs.rows("arithmetic")[:6]


def written(folder: Path, rows: list[Any], name: str = "facts.jsonl") -> str:
    file = folder / name
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(file)


def test_options_are_measured_as_those_of_a_pack(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    model = make_model(tokenizer)
    own = packs.load(written(tmp_path, packs.rows("arithmetic")), tokenizer)
    shipped = packs.load("arithmetic", tokenizer)
    assert (own.name, own.contrast) == ("facts", None)
    assert (probing.look(own, model).margins == probing.look(shipped, model).margins).all()


def test_a_completion_is_measured_by_its_first_token(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    model = make_model(tokenizer)
    rows = [{"prompt": row["prompt"], "completion": row["options"][row["answer"]]} for row in ROWS]
    found = probing.look(packs.load(written(tmp_path, rows), tokenizer), model).margins
    asked = encode_prompts(tokenizer, [row["prompt"] for row in rows])
    said = encode_continuations(tokenizer, [row["completion"] for row in rows])
    for prompt, answer, margin in zip(asked, said, found, strict=True):
        logits = model(torch.tensor([prompt])).logits[0, -1].detach()
        others = torch.cat([logits[: answer[0]], logits[answer[0] + 1 :]])
        assert float(logits[answer[0]] - others.max()) == pytest.approx(float(margin), abs=1e-4)


def test_what_editors_write_is_read(tmp_path: Path) -> None:
    """A mark at the beginning, other line ends, and line ends of other scripts in a text."""
    rows = [{"prompt": f"a{mark}b", "completion": "c", "label": 1} for mark in "\u2028\x85"]
    lines = "\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (tmp_path / "facts.jsonl").write_bytes(b"\xef\xbb\xbf" + lines.encode())
    assert packs.rows(str(tmp_path / "facts.jsonl")) == rows


def test_prompts_alone_are_measured_by_how_the_response_opens(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    model = make_model(tokenizer)
    rows = packs.rows("refusal")
    for name in ("refusal", "over_refusal", "greets"):
        file = written(tmp_path, rows, f"{name}.jsonl")
        own = packs.load(file, tokenizer, 5, openers=["Sorry"], floor=0.5)
        assert own.name == name and own.floor == 0.5
        assert own.contrast == packs.CONTRASTS.get(name)
        sign = -1 if name == "over_refusal" else 1
        shipped = packs.load("refusal", tokenizer, 5, openers=["Sorry"])
        same = sign * probing.look(shipped, model).margins
        assert (probing.look(own, model).margins == same).all()


WRONG = {
    "no such file": (None, "cannot be read"),
    "empty": ("\n", "is empty"),
    "no JSON": ('{"prompt": "a"}\nprompt: b\n', "line 2 is not JSON"),
    "no row": ('["prompt"]\n', "line 1: a row has prompt [+] options [+] answer; or"),
    "no prompt": ('{"question": "a"}\n', "line 1: a row has prompt"),
    "a number for a text": ('{"prompt": "a", "completion": 7}\n', "'completion' is int"),
    "two kinds": (
        '{"prompt": "a", "completion": "b"}\n{"prompt": "c"}\n',
        "line 2 has prompt, and the first prompt [+] completion: one file holds one kind",
    ),
    "an answer without options": ('{"prompt": "a", "answer": "b"}\n', "line 1: a row has"),
    "options without an answer": (
        '{"prompt": "a", "options": ["b", "c"], "completion": "b"}\n',
        "line 1: a row has",
    ),
    "one option": ('{"prompt": "a", "options": ["b"], "answer": 0}\n', "two texts or more"),
    "no such option": (
        '\n{"prompt": "a", "options": ["b", "c"], "answer": 2}\n',
        "line 2: 'answer' is 2, .* from 0 to 1",
    ),
    "an empty completion": ('{"prompt": "a", "completion": " "}\n', "'completion' is empty"),
    "a prompt twice": ('{"prompt": "a"}\n{"prompt": "b"}\n{"prompt": "a"}\n', "of line 1 again"),
    "too deep": ("[" * 100_000 + "\n", "line 1 is not JSON"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_file_is_said_to_be_so(what: str, tmp_path: Path) -> None:
    text, says = WRONG[what]
    file = tmp_path / "facts.jsonl"
    if text is not None:
        file.write_text(text)
    with pytest.raises(BehaviorError, match=says) as found:
        packs.load(str(file), make_tokenizer())
    assert "facts.jsonl" in str(found.value)
