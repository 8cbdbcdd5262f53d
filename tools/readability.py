"""Measure how code and README read: `python tools/readability.py`.

Compares this checkout with the commit before its second edition (`--before REV`) and with installed
libraries, and writes a Markdown table to results/readability/README.md.
"""

from __future__ import annotations

import argparse
import ast
import importlib.metadata
import importlib.util
import io
import re
import statistics
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
BEFORE = "d5639a4"
LIBRARIES = ("torchjd", "opacus", "peft")
QUESTION_WORDS = "what whether how who whose which where when"
PRONOUNS = "that those all it one"
OPENINGS = set(re.findall(r"\w+", f"{QUESTION_WORDS} {PRONOUNS}"))
VAGUE = set(
    re.findall(
        r"\w+",
        "found made said one ones those kept left given asked told there ways way taken back seen "
        "held thing things stuff tmp foo look looks come went goes put say saw",
    )
)
Function = ast.FunctionDef | ast.AsyncFunctionDef


def trees(folder: Path) -> list[ast.Module]:
    """Syntax trees of the Python files of a folder."""
    files = sorted(folder.rglob("*.py"))
    return [ast.parse(file.read_text(encoding="utf-8")) for file in files]


def functions(parsed: list[ast.Module]) -> list[Function]:
    """All functions and methods."""
    return [n for tree in parsed for n in ast.walk(tree) if isinstance(n, Function)]


def docstrings(parsed: list[ast.Module]) -> Iterator[str]:
    """Docstrings of modules, classes and functions."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for tree in parsed:
        for node in ast.walk(tree):
            if isinstance(node, kinds) and (text := ast.get_docstring(node)):
                yield text


def opens_privately(text: str) -> bool:
    """Return True if a docstring opens with a question word or a pronoun."""
    words = re.findall(r"[A-Za-z]+", text)
    return bool(words) and words[0].lower() in OPENINGS


def local_names(function: Function) -> set[str]:
    """Names that a function assigns, its parameters aside."""
    names = set()
    for node in ast.walk(function):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return names


def public(function: Function) -> bool:
    """Return True if the name does not begin with an underscore."""
    return not function.name.startswith("_")


def sentence_length(readme: str) -> float:
    """Mean words per sentence of the prose of a README: no code, tables, headings or links."""
    text = re.sub(r"^---\n.*?^---\n", "", readme, flags=re.M | re.S)
    text = re.sub(r"^\s*```.*?^\s*```", "", text, flags=re.M | re.S)
    text = re.sub(r"<[^>]+>|!\[[^\]]*\]\([^)]*\)", " ", text)
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"`[^`]*`", "code", text)
    lines = [
        line
        for line in text.split("\n")
        if not re.match(r"\s*(\||#|=+$|-{3,}$|\.\.|\[!|\d+\.\s*$|:)", line)
    ]
    paragraphs = re.split(r"\n\s*\n|\n\s*[-*+] |\n\s*\d+\. ", "\n".join(lines))
    lengths = []
    for paragraph in paragraphs:
        for sentence in re.split(r"(?<=[.!?])\s+", " ".join(paragraph.split())):
            words = re.findall(r"[\w'’-]+", sentence)
            if len(words) >= 3:
                lengths.append(len(words))
    return statistics.mean(lengths) if lengths else float("nan")


def measures(code: list[Path], readme: str) -> dict[str, str]:
    """All rows of one column."""
    parsed = [tree for folder in code for tree in trees(folder)]
    texts = list(docstrings(parsed))
    everything = functions(parsed)
    named = [f for f in everything if not f.name.startswith("__")]
    visible = [f for f in named if public(f)]
    one_word = [f for f in named if "_" not in f.name.strip("_")]
    vague = [f for f in everything if local_names(f) & VAGUE]
    documented = sum(bool(ast.get_docstring(f)) for f in visible)
    lengths = [(f.end_lineno or f.lineno) - f.lineno + 1 for f in everything]
    return {
        "lines of code": f"{sum(len(ast.unparse(t).splitlines()) for t in parsed):,}",
        "docstrings that open with a question word or pronoun": _share(
            sum(map(opens_privately, texts)), len(texts)
        ),
        "words per README sentence (mean)": f"{sentence_length(readme):.1f}",
        "functions with a vague local name": _share(len(vague), len(everything)),
        "functions with a one-word name": _share(len(one_word), len(named)),
        "public functions with a docstring": _share(documented, len(visible)),
        "lines per function (median)": f"{statistics.median(lengths):.0f}",
    }


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%} ({part:,} of {whole:,})" if whole else "–"


def column_of_checkout(folder: Path) -> dict[str, str]:
    """Measures of a checkout of this project, experiments included."""
    code = [path for path in (folder / "src", folder / "experiments") if path.exists()]
    return measures(code, (folder / "README.md").read_text(encoding="utf-8"))


def column_of_revision(revision: str) -> dict[str, str]:
    """Measures of a commit of this project."""
    command = ["git", "-C", str(ROOT), "archive", revision, "src", "README.md"]
    archive = subprocess.run(command, capture_output=True, check=True).stdout
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            tar.extractall(folder, filter="data")
        return column_of_checkout(Path(folder))


def column_of_library(name: str) -> dict[str, str] | None:
    """Measures of an installed library; None if it is not installed."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        return None
    metadata = importlib.metadata.metadata(name)
    readme = str(metadata.get_payload() or metadata.get("Description") or "")
    return measures([Path(spec.submodule_search_locations[0])], readme)


def main() -> None:
    """Print the table and write it to results/readability/README.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--before", default=BEFORE, help="commit to compare with")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "readability")
    arguments = parser.parse_args()
    columns = {f"before ({arguments.before})": column_of_revision(arguments.before)}
    columns["now"] = column_of_checkout(ROOT)
    for name in LIBRARIES:
        if column := column_of_library(name):
            columns[f"{name} {importlib.metadata.version(name)}"] = column
    rows = ["| measure | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for row in columns["now"]:
        rows.append(f"| {row} | " + " | ".join(column[row] for column in columns.values()) + " |")
    text = "\n".join(
        [
            "# Readability\n",
            f"Made by `python tools/readability.py --before {arguments.before}`. Library and "
            "experiments, without tests. A vague local name is one of: "
            f"{', '.join(sorted(VAGUE))}. In READMEs "
            "code, tables and headings do not count.\n",
            *rows,
            "",
        ]
    )
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "README.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
