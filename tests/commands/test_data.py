"""Rows of every form and file format are read as the texts that stand in them, or refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pytest

from riprap.commands._data import DataConfig, DataSummary, Row, RowReader, read_rows
from riprap.errors import ConfigError

Turns = list[tuple[str, str]]
FORMATS = Path(__file__).parents[3] / "shared" / "data" / "formats"


def written(folder: Path, name: str, content: Any) -> str:
    """Write rows as JSON Lines or as a JSON array, or a text or bytes as they are."""
    file = folder / name
    if isinstance(content, list):
        lines = "".join(json.dumps(row) + "\n" for row in content)
        content = json.dumps(content, indent=1) if name.endswith(".json") else lines
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(file)


def read(path: str, **keys: Any) -> tuple[list[Row], DataSummary]:
    return read_rows(DataConfig(path=path, **keys))


def turns(row: Row) -> Turns:
    return [(turn["role"], turn["content"]) for turn in row.turns]


def one(folder: Path, record: dict[str, Any], **keys: Any) -> tuple[Turns, tuple[bool, ...]]:
    (row,), _ = read(written(folder, "one.jsonl", [record]), **keys)
    return turns(row), row.learned


QUESTION, ANSWER = ("user", "2+2?"), ("assistant", "4")
MESSAGES = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]
PARTS = [{"role": m["role"], "content": [{"type": "text", "text": m["content"]}]} for m in MESSAGES]
VALUES = [
    {"role": m["role"], "content": [{"type": "text", "value": m["content"]}]} for m in MESSAGES
]
SHAREGPT = [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}]


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": "2+2?", "response": "4"},
        {"prompt": "2+2?", "completion": "4"},
        {"question": "2+2?", "answer": "4"},
        {"instruction": "2+2?", "input": "", "output": "4"},
        {"instruction": "2+2?", "output": "4", "input": None},
        {"input": "2+2?", "output": "4"},
        {"user": "2+2?", "assistant": "4", "id": 7},
        {"messages": MESSAGES},
        {"messages": PARTS},
        {"messages": VALUES},
        {"messages": json.dumps(MESSAGES)},
        {"conversations": SHAREGPT},
        {"conversations": MESSAGES},
        {"prompt": MESSAGES[:1], "completion": MESSAGES[1:]},
    ],
    ids=str,
)
def test_fields_are_recognized(record: dict[str, Any], tmp_path: Path) -> None:
    assert one(tmp_path, record) == ([QUESTION, ANSWER], (False, True))


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"instruction": "Add", "input": "2, 2", "output": "4"}, "Add\n\n2, 2"),
        ({"instruction": "Add", "context": "2, 2", "response": "4"}, "Add\n\n2, 2"),
        ({"question": "Is it?", "passage": "It is.", "answer": "4"}, "Is it?\n\nIt is."),
    ],
)
def test_an_input_follows_its_instruction(
    record: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    assert one(tmp_path, record)[0] == [("user", expected), ANSWER]


def test_a_system_prompt_stands_first(tmp_path: Path) -> None:
    record = {"conversations": SHAREGPT, "system": "Be brief."}
    expected = [("system", "Be brief."), QUESTION, ANSWER]
    assert one(tmp_path, record) == (expected, (False, False, True))
    assert one(tmp_path, {"messages": MESSAGES}, system="Be brief.")[0] == expected
    own = {"role": "system", "content": "Be kind."}
    assert one(tmp_path, {"messages": [own, *MESSAGES]}, system="x")[0][0] == ("system", "Be kind.")
    with pytest.raises(ConfigError, match="a field 'system' and a system turn: remove one"):
        one(tmp_path, {"messages": [own, *MESSAGES], "system": "x"})


def test_weights_say_what_is_learned(tmp_path: Path) -> None:
    turns_ = [
        *MESSAGES,
        {"role": "user", "content": "And 3?"},
        {"role": "assistant", "content": "5"},
    ]
    for name, value in (("weight", 0), ("loss_weight", 0.0), ("train", False)):
        weighted = [dict(turn) for turn in turns_]
        weighted[1][name] = value
        assert one(tmp_path, {"messages": weighted})[1] == (False, False, False, True)
    weighted[1] |= {"train": True}
    assert one(tmp_path, {"messages": weighted})[1] == (False, True, False, True)


def test_an_earlier_answer_of_a_prompt_is_not_learned(tmp_path: Path) -> None:
    later = [{"role": "user", "content": "And 3?"}]
    record = {"prompt": [*MESSAGES, *later], "completion": [{"role": "assistant", "content": "5"}]}
    assert one(tmp_path, record)[1] == (False, False, False, True)


def test_the_history_of_a_row_comes_first(tmp_path: Path) -> None:
    record = {"instruction": "And 3?", "output": "5", "history": [["2+2?", "4"]]}
    expected = [QUESTION, ANSWER, ("user", "And 3?"), ("assistant", "5")]
    assert one(tmp_path, record) == (expected, (False, True, False, True))


def test_calls_of_tools_are_objects(tmp_path: Path) -> None:
    """Templates write arguments as JSON, so a text would be quoted twice."""
    call = {"type": "function", "function": {"name": "add", "arguments": '{"a": 2, "b": 2}'}}
    asked = {"role": "assistant", "content": None, "tool_calls": [call]}
    said = {"role": "tool", "content": "4"}
    record = {
        "messages": [MESSAGES[0], asked, said, MESSAGES[1]],
        "tools": '[{"type": "function"}]',
    }
    file = written(tmp_path, "tools.jsonl", [record])
    (row,), summary = read(file)
    assert row.turns[1]["tool_calls"][0]["function"]["arguments"] == {"a": 2, "b": 2}
    assert row.turns[1]["content"] == "" and row.learned == (False, True, False, True)
    assert row.tools == [{"type": "function"}]
    assert summary.notes["with calls of tools"] == 1
    called = {"from": "function_call", "value": '{"name": "add", "arguments": {"a": 2}}'}
    seen = {"from": "observation", "value": "4"}
    (row,), _ = read(
        written(tmp_path, "s.jsonl", [{"conversations": [SHAREGPT[0], called, seen, SHAREGPT[1]]}])
    )
    assert row.turns[1]["tool_calls"][0]["function"] == {"name": "add", "arguments": {"a": 2}}
    assert turns(row)[2:] == [("tool", "4"), ANSWER]


def test_what_is_unusual_is_counted(tmp_path: Path) -> None:
    """Rows without anything to learn are left out, and said."""
    empty = {"role": "assistant", "content": ""}
    rows = [
        {"messages": MESSAGES},
        {"messages": MESSAGES[:1]},
        {"messages": [*MESSAGES, {"role": "user", "content": "Thanks"}]},
        {"messages": [MESSAGES[0], empty]},
        {"messages": [{**turn, "weight": 0} for turn in MESSAGES]},
        {"messages": MESSAGES[1:]},
        {"messages": [MESSAGES[0], {"role": "assistant", "content": "I am {{name}}."}]},
    ]
    found, summary = read(written(tmp_path, "rows.jsonl", rows))
    assert [row.number for row in found] == [1, 3, 4, 6, 7]
    assert turns(found[1]) == [QUESTION, ANSWER]
    assert summary.rows == 7
    assert summary.notes == {
        "without a turn of the assistant, left out": 1,
        "with a turn after the last answer, which is cut off": 1,
        "with an empty answer: the model learns to end its turn at once": 1,
        "with weight 0 on every answer, left out": 1,
        "without a turn of the user": 1,
        "with an open placeholder in an answer, such as {{name}}": 1,
    }
    assert summary.lines()[0] == "7 rows, read as messages ('messages')"
    assert RowReader(DataConfig(path=str(tmp_path / "rows.jsonl"))).check().notes == summary.notes


@pytest.mark.parametrize(
    ("record", "keys", "sentence"),
    [
        ({"text": "a"}, {}, "no field 'prompt', nor one that is read as such"),
        ({"prompt": "a", "answer": "b", "response": "c"}, {}, "'response' and 'answer': set `resp"),
        ({"question": "a", "choices": ["b"], "answer": 0}, {}, "a multiple choice"),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, {}, "a preference"),
        ({"messages": MESSAGES[:1]}, {}, "none of its 1 rows has a turn of the assistant"),
        (
            {"messages": [{"role": "narrator", "content": "x"}]},
            {},
            "turn 1 has the role 'narrator'",
        ),
        ({"messages": [{"content": "x"}]}, {}, "turn 1 has the role 'None'"),
        ({"messages": ["hi"]}, {}, "turn 1 is str; give an object with role and content"),
        ({"messages": [MESSAGES[0], {"role": "assistant"}]}, {}, "'content' is missing"),
        ({"messages": [{**MESSAGES[1], "weight": 0.5}]}, {}, "weight 0.5; a turn counts 0 or 1"),
        ({"messages": [{**MESSAGES[0], "weight": 1}]}, {}, "only the turns of the assistant"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "url": "x"}]}]},
            {},
            "a part of type 'image_url'; only texts are trained",
        ),
        ({"a": "x"}, {"messages": "b"}, "has no field 'b'; it has a"),
        ({"messages": MESSAGES}, {"messages": "messages", "prompt": "a"}, "remove `prompt`"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    record: dict[str, Any], keys: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as raised:
        one(tmp_path, record, **keys)
    assert sentence in str(raised.value)
    assert "\n" not in str(raised.value)


def test_turns_of_another_role_are_said(tmp_path: Path) -> None:
    turns = [{"role": "system", "content": "s"}, *MESSAGES]
    written(tmp_path, "rows.jsonl", [{"messages": turns}])
    data = DataConfig(
        path=str(tmp_path / "rows.jsonl"),
        prompt="messages.0.content",
        response="messages.1.content",
    )
    reader = RowReader(data)
    notes = list(reader.check().notes)
    assert notes[0].startswith(
        "with a turn of the role 'system' as the prompt (messages.0.content)"
    )
    assert notes[1].startswith("with a turn of the role 'user' learned as the answer")
    assert [(row.prompt, row.response) for row in reader.rows()] == [("s", turns[1]["content"])]


TEXTS = ["00501", "18.50", "None", "NA", "null", "2024-05-01", "1e5", "7", "True", "+49", " x "]


@pytest.mark.parametrize("suffix", ["csv", "tsv", "parquet", "json", "jsonl"])
def test_texts_are_read_as_texts(suffix: str, tmp_path: Path) -> None:
    frame = pd.DataFrame({"prompt": TEXTS, "response": TEXTS})
    file = tmp_path / f"rows.{suffix}"
    if suffix in ("csv", "tsv"):
        frame.to_csv(file, index=False, sep="," if suffix == "csv" else "\t")
    elif suffix == "parquet":
        frame.to_parquet(file)
    else:
        written(tmp_path, file.name, frame.to_dict("records"))
    found, _ = read(str(file))
    assert [(row.prompt, row.response) for row in found] == [(text, text) for text in TEXTS]


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
def test_numbers_keep_their_written_form(name: str, tmp_path: Path) -> None:
    values = ["18.50", "1e5", "7", "7.0", "true", "12345678901234567890123", "-0"]
    lines = [f'{{"prompt": "n", "score": NaN, "response": {value}}}' for value in values]
    content = "[" + ",\n ".join(lines) + "]" if name.endswith("json") else "\n".join(lines)
    found, _ = read(written(tmp_path, name, content))
    assert [row.response for row in found] == values
    with pytest.raises(ConfigError, match=r"1 of .* field 'response' is not a number"):
        read(written(tmp_path, "nan.jsonl", '{"prompt": "n", "response": NaN}'))


@pytest.mark.parametrize("name", ["data[1]", "what?", "da*ta", "v{1,2}", "a::b", ".hidden", "ä b"])
@pytest.mark.parametrize("suffix", ["csv", "json", "jsonl", "parquet"])
def test_a_name_is_no_pattern(name: str, suffix: str, tmp_path: Path) -> None:
    for file, text in (("data1", "other"), ("whatX", "other"), ("daXta", "other"), (name, "meant")):
        frame = pd.DataFrame([{"prompt": "q", "response": text}])
        path = tmp_path / f"{file}.{suffix}"
        if suffix == "csv":
            frame.to_csv(path, index=False)
        elif suffix == "parquet":
            frame.to_parquet(path)
        else:
            written(tmp_path, path.name, frame.to_dict("records"))
    found, _ = read(str(tmp_path / f"{name}.{suffix}"))
    assert [row.response for row in found] == ["meant"]


ROW = '{"prompt": "café", "response": "x"}\n'


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.jsonl", ROW.encode("latin-1"), "line 1 of .* is not UTF-8: save the file as UTF-8"),
        ("a.json", f"[{ROW}]".encode("latin-1"), "is not UTF-8"),
        ("a.csv", "prompt,response\ncafé,x\n".encode("latin-1"), "is not UTF-8"),
        ("a.jsonl", ROW.encode("utf-16"), "is not UTF-8"),
        ("a.jsonl.gz", b"\x1f\x8b", r"is packed \(.gz\): unpack it first"),
        ("a.xlsx", b"PK", "is a .xlsx file: save it as JSON Lines"),
        ("a.json", b"", "has no rows"),
        ("a.json", b"[]", "has no rows"),
        ("a.json", b'[{"prompt": "a", "response": "b"} {}]', "there is no comma after row 1"),
        ("a.json", b'[{"prompt": "a", "response": "b"}] x', "text after its list"),
        ("a.json", b'[{"prompt": "a", "response": "b"}', "no comma after row 1"),
        ("a.json", b'{"data": [{"prompt": "a", "response": "b"}]}', r"it has 'data'"),
        ("a.tsv", b"prompt\tresponse\na\n", "row 1 of .* has 1 cells, and the header has 2"),
        ("a.csv", b"prompt;response\na;b\n", "has one column, 'prompt;response': separate cells"),
        ("a.csv", b"prompt,prompt\na,b\n", "has two columns named 'prompt'"),
        ("a.csv", b"prompt,response\na,b\nc,\n", "row 2 of .* 'response' is missing"),
        ("a.csv", b'prompt,response\na,"b\n', "row 1 of .* cannot be read"),
        ("a.jsonl", b'{"prompt": "a", "prompt": "b", "response": "c"}', "'prompt' stands twice"),
        ("a.parquet", b"PAR1", "cannot be read"),
    ],
)
def test_files_that_cannot_be_read_are_one_sentence(
    name: str, content: bytes, sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=sentence) as raised:
        read(written(tmp_path, name, content))
    assert "\n" not in str(raised.value)


def test_a_mark_of_the_byte_order_is_no_text(tmp_path: Path) -> None:
    for name in ("a.jsonl", "a.json"):
        found, _ = read(written(tmp_path, name, b"\xef\xbb\xbf" + ROW.encode()))
        assert found[0].prompt == "café"
    table = "prompt,response\ncafé,x\n".encode("utf-8-sig")
    assert read(written(tmp_path, "a.csv", table))[0][0].prompt == "café"


def test_a_saved_data_set_is_read(tmp_path: Path) -> None:
    rows = datasets.Dataset.from_list([{"messages": MESSAGES}] * 3)
    rows.save_to_disk(tmp_path / "one")
    assert [turns(row) for row in read(str(tmp_path / "one"))[0]] == [[QUESTION, ANSWER]] * 3
    splits = datasets.DatasetDict({"train": rows, "test": rows.select([0])})
    splits.save_to_disk(tmp_path / "two")
    assert len(read(str(tmp_path / "two"))[0]) == 3
    assert len(read(str(tmp_path / "two"), split="test")[0]) == 1
    with pytest.raises(ConfigError, match="no split 'dev': set `split` to 'train', 'test'"):
        read(str(tmp_path / "two"), split="dev")
    with pytest.raises(ConfigError, match="remove `split`, which has no effect"):
        read(str(tmp_path / "one"), split="train")
    (tmp_path / "files").mkdir()
    written(tmp_path / "files", "rows.jsonl", [{"messages": MESSAGES}])
    with pytest.raises(ConfigError, match=r"did not write: name a file, such as 'rows\.jsonl'"):
        read(str(tmp_path / "files"))


def test_a_hub_id_is_loaded_with_its_name_and_split(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load(*arguments: Any, **options: Any) -> datasets.Dataset:
        asked.append((*arguments, options))
        return datasets.Dataset.from_list([{"question": "2+2?", "answer": "4"}])

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert turns(read("openai/gsm8k", name="main", split="test")[0][0]) == [QUESTION, ANSWER]
    assert asked == [("openai/gsm8k", "main", {"split": "test"})]


@pytest.mark.parametrize(
    ("file", "kind", "rows", "learned"),
    [
        ("alpaca_identity.json", "Alpaca ('instruction', 'input', 'output')", 91, 91),
        ("messages_parts.jsonl", "messages ('messages')", 30, 30),
        ("openai_messages_toy.jsonl", "messages ('messages')", 4, 7),
        ("sharegpt_dummy.json", "ShareGPT ('conversations')", 60, 124),
    ],
)
def test_forms_of_users(file: str, kind: str, rows: int, learned: int) -> None:
    if not (FORMATS / file).is_file():
        pytest.skip("needs ../shared/data")
    found, summary = read(str(FORMATS / file))
    assert (summary.kind, summary.rows, len(found)) == (kind, rows, rows)
    assert sum(sum(row.learned) for row in found) == learned
