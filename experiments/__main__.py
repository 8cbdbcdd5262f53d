"""`python -m experiments`: run the experiments, and freeze, verify or amend their terms."""

from __future__ import annotations

import argparse
import ast
import json
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from experiments.harness.preregistration import Preregistration
from experiments.harness.study import DATA, FOLDER, Study, load_study, run_study, study_names
from riprap.errors import RiprapError

TERMS = Path(FOLDER, "preregistrations")
BENCHES = ("guards_bench",)  # with a command line of their own, in `command.py`


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code: 0, or 1 after an error."""
    options = sys.argv[1:] if arguments is None else list(arguments)
    try:
        if options and options[0] in BENCHES:
            bench_code: int = import_module(f"experiments.{options[0]}.command").main(options[1:])
            return bench_code
        if options and options[0] in study_names():
            return _run(load_study(options[0]), options[1:])
        parsed = _parser().parse_args(options)
        code: int = parsed.act(parsed)
    except RiprapError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m experiments", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="NAME | COMMAND")
    commands.add_parser("list", help="List the experiments.").set_defaults(act=_list)
    for act, text in (
        (_verify, "Check that preregistrations are as they were frozen."),
        (_freeze, "Write the content hash into a preregistration."),
        (_amend, "Change a frozen preregistration; the old hash is kept with the reason."),
    ):
        command = commands.add_parser(act.__name__[1:], help=text)
        command.set_defaults(act=act)
        command.add_argument("name", nargs="?" if act is _verify else None, help="experiment")
        if act is _amend:
            command.add_argument("--changed", type=Path, required=True, help="YAML of new terms")
            command.add_argument("--reason", required=True)
    for name in (*study_names(), *BENCHES):
        commands.add_parser(name, help=_question(name))
    return parser


def _question(name: str) -> str:
    """Return the question of an experiment, from its docstring, without importing it."""
    file = "__init__.py" if name in BENCHES else "study.py"
    source = (FOLDER / name / file).read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(source)) or "").splitlines()[0]


def _list(_: argparse.Namespace) -> int:
    names = [*study_names(), *BENCHES]
    for name in names:
        print(f"{name.ljust(max(map(len, names)))}  {_question(name)}")
    return 0


def _verify(options: argparse.Namespace) -> int:
    every = sorted(file.stem for file in TERMS.glob("*.yaml"))
    for name in every if options.name is None else [options.name]:
        terms = Preregistration.named(name)
        terms.verify()
        print(f"{name}: verified {terms.hash}")
    return 0


def _freeze(options: argparse.Namespace) -> int:
    return _save(options.name, Preregistration.named(options.name).freeze())


def _amend(options: argparse.Namespace) -> int:
    new = Preregistration.load(options.changed)
    old = Preregistration.named(options.name)
    return _save(options.name, old.amend(options.reason, detectors=new.detectors, study=new.study))


def _save(name: str, terms: Preregistration) -> int:
    terms.save(TERMS / f"{name}.yaml")
    print(f"{name}: {terms.hash}")
    return 0


def _run(study: Study[Any, Any], arguments: Sequence[str]) -> int:
    """Run an experiment, or one of its stages and actions."""
    parser = argparse.ArgumentParser(
        prog=f"python -m experiments {study.name}", description=_question(study.name)
    )
    parser.add_argument("--exploratory", action="store_true", help="use the exploratory seeds")
    parser.add_argument("--workers", type=int, default=2, help="processes, one thread each")
    parser.add_argument("--out", type=Path, help=f"default: results/{study.name}")
    text = "run on a Ray cluster: the one at ADDRESS, the running one, or a new local one"
    parser.add_argument("--ray", nargs="?", const="auto", metavar="ADDRESS", help=text)
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")
    parser.add_argument("--data", type=Path, default=DATA, help="folder of public data sets")
    titles = {name: f"make {stage.page}" for name, stage in study.stages.items()}
    titles |= {name: (act.__doc__ or "").splitlines()[0] for name, act in study.actions.items()}
    stages = parser.add_mutually_exclusive_group() if titles else parser
    for name, title in titles.items():
        stages.add_argument(f"--{name}", action="store_const", const=name, dest="stage", help=title)
    options = vars(parser.parse_args(arguments))
    stage_name = options.pop("stage", None)
    as_json = options.pop("json")
    if stage_name in study.actions:
        summary = study.actions[stage_name](options["data"])
    else:
        summary = run_study(study.stages.get(stage_name, study), **options)
    if as_json:
        print(json.dumps(summary, default=str))
    else:
        lines = summary.pop("claims", {}) | summary
        print("\n".join(f"{key}: {value}" for key, value in lines.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
