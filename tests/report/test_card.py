"""The section of a model card: merged between markers, with scores that Hugging Face reads back."""

from __future__ import annotations

import difflib
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from report.synthetic import typical
from riprap.errors import ConfigError
from riprap.report import write_card
from riprap.report._card import BEGIN, END
from riprap.report._card_header import set_scores

WRITTEN = """---
license: mit
model-index:
- name: mine
  results:
  - task: {type: text-generation}
    dataset: {type: gsm8k, name: GSM8K}
    metrics:
    - {type: acc, value: 0.5}
---
# My model

It was tuned.
"""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    scene = typical(tmp_path / "run")
    scene.writer.add_event(120, "ended", ended="2026-11-30T00:00:00")
    scene.writer.close()
    return tmp_path / "run"


def test_a_new_card_has_a_row_and_an_entry_for_each_behavior(run: Path, tmp_path: Path) -> None:
    card = ModelCard.load(write_card(run, tmp_path / "README.md", "mine"))
    rows = [line for line in card.text.splitlines() if line.startswith("| ")][1:]
    assert [row.split(" | ")[0] for row in rows] == [
        "| refusal",
        "| arithmetic",
        "| general knowledge",
    ]
    assert "broken at step 15" in rows[0]
    scores = {own.dataset_name: own.metric_value for own in card.data.eval_results}
    assert list(scores) == ["refusal", "arithmetic", "general knowledge"]
    assert f"| {scores['arithmetic']:.2f} |" in rows[1]
    assert card.data.model_name == "mine"


@pytest.mark.parametrize(
    "old",
    [
        "  results: []  # none yet",
        "  results:\n  - task: {type: t}\n    metrics: []",
        "  results:",
        "  results: null",
        "  note: mine",
    ],
)
def test_scores_go_into_the_entry_of_the_same_name(run: Path, tmp_path: Path, old: str) -> None:
    file = tmp_path / "README.md"
    file.write_text(f"---\nmodel-index:\n- name: mine\n{old}\n- name: other\n  results: []\n---\n")
    for _ in range(2):
        write_card(run, file)
        header = yaml.safe_load(file.read_text().split("---\n")[1])
        mine, other = sorted(header["model-index"], key=lambda entry: entry["name"])
        assert [mine["name"], other["name"]] == ["mine", "other"]
        assert len(mine["results"]) == 3 + ("task" in old)
        assert other["results"] == []
        assert ("note" in mine) == ("note" in old)


def test_an_entry_of_the_same_name_in_one_line_is_refused(run: Path, tmp_path: Path) -> None:
    file = tmp_path / "README.md"
    file.write_text(before := "---\nmodel-index:\n- {name: mine}\n---\n")
    with pytest.raises(ConfigError, match=r"entry of mine in .* is written in one line"):
        write_card(run, file)
    assert file.read_text() == before


def test_a_mistyped_name_makes_no_new_card(run: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "README.md").write_text("---\nlicense: mit\n---\nhi\n")
    for folder, says in ((tmp_path, "new ones are named"), (tmp_path / "there", "did you mean")):
        with pytest.raises(ConfigError, match=f"there is no model card .*MODEL.md.*{says}"):
            write_card(run, folder / "MODEL.md")
        assert not (folder / "MODEL.md").exists()


def test_the_command_shows_its_warning_as_a_sentence(run: Path, tmp_path: Path) -> None:
    file = tmp_path / "README.md"
    file.write_text("---\nlicense: mit\n---\nhi\n")
    command = [sys.executable, "-m", "riprap", "report", str(run), "--card", str(file)]
    command += ["--out", str(tmp_path / "report.html")]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    told = [line for line in ran.stderr.splitlines() if "does not name its model" in line]
    assert len(told) == 1 and told[0].startswith("riprap: no scores are written")
    assert ".py" not in ran.stderr


def test_a_folder_that_is_not_there_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no folder"):
        write_card(run, tmp_path / "absent" / "README.md")
    assert not (tmp_path / "absent").exists()


def test_what_the_card_had_stays_and_an_earlier_section_is_replaced(
    run: Path, tmp_path: Path
) -> None:
    file = tmp_path / "README.md"
    file.write_text(WRITTEN)
    write_card(run, file)
    once = file.read_text()
    write_card(run, file)
    assert file.read_text() == once
    card = ModelCard.load(file)
    assert card.data.license == "mit"
    assert card.data.model_name == "mine"
    assert next(own.dataset_name for own in card.data.eval_results) == "GSM8K"
    assert len(card.data.eval_results) == 4
    assert "It was tuned." in card.text
    assert once.count(BEGIN) == once.count(END) == 1
    edited = once.replace("It was tuned.", "It was tuned twice.") + "\nAfter.\n"
    file.write_text(edited)
    write_card(run, file)
    assert "It was tuned twice." in file.read_text()
    assert file.read_text().rstrip().endswith("After.")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("---\na: [\n---\nhi", "cannot read the model card"),
        (f"# hi\n{BEGIN}\nno end", "not once each"),
        (f"# hi\n{END}\n{BEGIN}", "not once each"),
        (f"{BEGIN}{END}{BEGIN}{END}", "not once each"),
    ],
)
def test_a_broken_card_is_refused_and_left_as_it_is(
    run: Path, tmp_path: Path, text: str, says: str
) -> None:
    file = tmp_path / "README.md"
    file.write_text(text)
    with pytest.raises(ConfigError, match=says):
        write_card(run, file)
    assert file.read_text() == text


def test_a_run_in_progress_has_no_card(tmp_path: Path) -> None:
    typical(tmp_path / "run").writer.close()
    with pytest.raises(ConfigError, match="has not ended"):
        write_card(tmp_path / "run", tmp_path / "README.md")
    assert not (tmp_path / "README.md").exists()


OWN_STYLE = """---
# who may use it
license:   'mit'   # as the base
tags: [a,  "b"]
model-index:
  - name: "mine"   # the published one
    results:
      - task: {type: text-generation}
        dataset: {type: gsm8k,   name: GSM8K}
        metrics: [{type: acc, value: 0.50}]
  # an end
base_model: some/base
---
# My model
"""


@pytest.mark.parametrize("line_break", ["\n", "\r\n"])
def test_the_header_stays_to_the_letter(run: Path, tmp_path: Path, line_break: str) -> None:
    file = tmp_path / "README.md"
    given = OWN_STYLE.replace("\n", line_break).encode()
    file.write_bytes(given)
    write_card(run, file)
    once = file.read_bytes()
    lines = (text.decode().splitlines(keepends=True) for text in (given, once))
    assert not [line for line in difflib.ndiff(*lines) if line.startswith("- ")]
    assert all(line.endswith(line_break.encode()) for line in once.splitlines(keepends=True))
    data = ModelCard.load(file).data
    assert (data.model_name, data.license, data.base_model) == ("mine", "mit", "some/base")
    assert len(data.eval_results) == 4
    write_card(run, file)
    assert file.read_bytes() == once


def test_results_among_those_of_others_are_replaced(run: Path, tmp_path: Path) -> None:
    file = tmp_path / "README.md"
    old = (
        "      - task: {type: text-generation}\n"
        "        dataset: {type: riprap, name: gone}\n"
        "        metrics: [{type: score, value: 0.1}]\n"
    )
    file.write_text(OWN_STYLE.replace("  # an end\n", f"{old}  # an end\n"))
    write_card(run, file)
    names = [own.dataset_name for own in ModelCard.load(file).data.eval_results]
    assert names == ["GSM8K", "refusal", "arithmetic", "general knowledge"]
    assert "0.50" in file.read_text() and "# an end" in file.read_text()


def test_a_model_without_a_name_is_given_none(run: Path, tmp_path: Path) -> None:
    file = tmp_path / "README.md"
    file.write_text("---\nlicense: mit\n---\nhi\n")
    with pytest.warns(UserWarning, match="does not name its model"):
        write_card(run, file)
    text = file.read_text()
    assert "model-index" not in text and text.startswith("---\nlicense: mit\n---\nhi\n")
    write_card(run, file, "some/name")
    assert ModelCard.load(file).data.model_name == "some/name"


@pytest.mark.parametrize("index", ["[{name: a, results: []}]", "[]"])
def test_a_model_index_in_one_line_is_refused(run: Path, tmp_path: Path, index: str) -> None:
    file = tmp_path / "README.md"
    file.write_text(f"---\nmodel-index: {index}\n---\n")
    with pytest.raises(ConfigError, match="in one line"):
        write_card(run, file)


@pytest.mark.parametrize(
    "given",
    [
        "\ufeff---\nlicense: mit\n---\n# Mine\n",
        "---\nlicense: mit\r\ntags: [a]\n---\r\n# Mine\r\ntext\n",
        "---\nlicense: mit\n---\n# Mine\n\ntext  \n\n\n\n",
        "---\nlicense: mit\n---",
        "---\n---\n# Mine\n\n---\nnot a header\n---\n",
        "\ufeff# Mine",
        "\n\n---\nlicense: 'a\u2028b'\n---\ntext",
    ],
)
def test_a_card_of_any_form_stays_to_the_letter(run: Path, tmp_path: Path, given: str) -> None:
    """Lines are added to the header and at the end; all characters that were there stay."""
    file = tmp_path / "README.md"
    file.write_bytes(given.encode())
    write_card(run, file, "mine")
    once = file.read_bytes().decode()
    write_card(run, file, "mine")
    assert file.read_bytes().decode() == once
    mark, _, header = once.removeprefix("\ufeff").lstrip().partition("---")
    header = header.partition("\n---")[0]
    assert mark == "" and yaml.safe_load(header)["model-index"][0]["name"] == "mine"
    assert ("license" in header) == ("license" in given)
    own = re.sub(r"model-index:\s+- name: mine\r?\n(?: .*\n)*", "", once)
    own = re.sub(rf"(\r?\n)*{BEGIN}[\s\S]*{END}\r?\n$", "", own)
    if "---" not in given:  # the header is new
        own = re.sub(r"---\r?\n---\r?\n", "", own)
    assert own.rstrip() == given.rstrip()
    before = once[: once.index(BEGIN)]
    trailing = given[len(given.rstrip()) :]
    assert before[len(before.rstrip()) :].startswith(trailing)


def test_a_given_name_goes_before_that_of_the_card(run: Path, tmp_path: Path) -> None:
    file = tmp_path / "README.md"
    file.write_text(WRITTEN)
    for name in ("first", "second"):
        write_card(run, file, name)
        index = yaml.safe_load(file.read_text().split("---")[1])["model-index"]
        assert [own["name"] for own in index] == ["mine", name]
        assert [len(own["results"]) for own in index] == [1, 3]


def test_names_of_folders_are_text_in_a_card(run: Path, tmp_path: Path) -> None:
    name = "<img src=x onerror=alert(1)> <!-- riprap: end -->"
    (run / name).mkdir()
    (run / name / "diagnosis.json").write_text("{")
    file = write_card(run, tmp_path / "README.md", "mine")
    once = file.read_text()
    assert "could not be read" in once and "onerror" in once
    assert "<img" not in once and once.count(END) == 1
    write_card(run, file)
    assert file.read_text() == once


@pytest.mark.parametrize("own", ["  results: # todo\n", "  results: []  # todo\n", "  # todo\n"])
def test_an_entry_of_the_users_stays_when_there_are_no_scores_any_more(
    run: Path, tmp_path: Path, own: str
) -> None:
    header = f"model-index:\n- name: mine  # my model\n{own}license: mit\n"
    file = tmp_path / "README.md"
    file.write_text(f"---\n{header}---\n")
    write_card(run, file)
    with_scores = file.read_text().split("---\n")[1]
    assert len(yaml.safe_load(with_scores)["model-index"][0]["results"]) == 3
    without = set_scores(with_scores, [], None, file)
    assert yaml.safe_load(without) == {
        "model-index": [{"name": "mine", "results": []}],
        "license": "mit",
    }
    assert "# my model" in without and "# todo" in without
    write_card(run, file)
    assert file.read_text().split("---\n")[1] == with_scores


def test_an_entry_that_riprap_made_goes_with_its_scores(run: Path, tmp_path: Path) -> None:
    file = write_card(run, tmp_path / "README.md", "a name: of # two\nlines " + 40 * "x ")
    header = file.read_text().split("---\n")[1]
    assert yaml.safe_load(header)["model-index"][0]["name"].startswith("a name: of # two\nlines")
    assert yaml.safe_load(set_scores(header, [], None, file)) == {"model-index": None}
