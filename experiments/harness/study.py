"""The declarative description of an experiment, and the steps that all experiments share."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Generic, TypeVar

from experiments.harness.jobs import Job, Work, run_jobs
from experiments.harness.markdown import commit, fill
from experiments.harness.plan import StudyPlan
from experiments.harness.preregistration import Preregistration, PreregistrationError
from riprap.monitor import versions
from riprap.report import save_figure

PlanT = TypeVar("PlanT", bound=StudyPlan)
ResultsT = TypeVar("ResultsT")
FOLDER = Path(__file__).parents[1]
DATA = Path("../shared/data")


@dataclass(frozen=True)
class Session(Generic[PlanT]):
    """One call of an experiment: its verified plan and the options of the command line.

    Attributes:
        registered: the preregistration; None if the experiment has none.
        exploratory: use the exploratory seeds, whose results are never reported as the study's.
        workers, ray: see `run_jobs`.
        data: folder of the public data sets.
    """

    plan: PlanT
    registered: Preregistration | None
    exploratory: bool = False
    workers: int = 2
    ray: str | None = None
    data: Path = DATA

    @property
    def preregistration(self) -> Preregistration:
        """Return the preregistration of a preregistered experiment."""
        assert self.registered is not None
        return self.registered

    @property
    def kind(self) -> str:
        """Return `exploratory` or `confirmatory`."""
        return "exploratory" if self.exploratory else "confirmatory"

    @property
    def seeds(self) -> tuple[int, ...]:
        """Return the plan's seeds of this kind."""
        return self.plan.seeds(self.exploratory)

    def run_jobs(self, work: Work, jobs: Sequence[Job]) -> list[Any]:
        """Run jobs with the options of the command line."""
        return run_jobs(work, jobs, self.workers, self.ray)


@dataclass(frozen=True, kw_only=True)
class Study(Generic[PlanT, ResultsT]):
    """An experiment, or one of its stages; `run_study` does the rest.

    In names of figures and documents, `{kind}` stands for `confirmatory` or `exploratory`. The
    template of the page, a Markdown file in the experiment's folder, has the placeholders
    `{kind}`, `{Kind}`, `{made}` (how the page was made), `{plan.FIELD}` and those of `sections`.

    Attributes:
        name: folder under `experiments/`, and name of the preregistration.
        plan: class of the plan inside the preregistration.
        preregistered: false if the plan is made of its defaults instead.
        jobs: arguments of every call of `simulate`.
        simulate: one run; usually `cached`.
        sections: tables (lists of rows) and texts of the page, by placeholder.
        collect: results as the next functions take them, from what the runs returned.
        claims: conclusions by claim, for the summary.
        figures: charts by file name, without suffix.
        documents: JSON data by file name.
        template: file of the page's template.
        check: raises if the plan cannot be run.
        exploratory: the stage uses the exploratory seeds, and needs no frozen preregistration.
        page: file name of the page; with `--exploratory` `EXPLORED.md`, and for a page of another
            name than `README.md` that name with `_EXPLORED` at its end.
        seeds: the seeds that the page names, if they are not `plan.seeds`.
        stages: further stages by option, such as `search` for `--search`.
        actions: further commands by option, which make no page.
    """

    name: str
    plan: type[PlanT]
    preregistered: bool = True
    jobs: Callable[[Session[PlanT]], Sequence[Job]]
    simulate: Work
    sections: Callable[[ResultsT, PlanT], Mapping[str, Any]]
    collect: Callable[[list[Any], Session[PlanT]], ResultsT] = lambda runs, _: runs  # type: ignore[assignment, return-value]
    claims: Callable[[ResultsT, PlanT], Mapping[str, Any]] = lambda *_: {}
    figures: Mapping[str, Callable[[ResultsT, PlanT], Any]] = field(default_factory=dict)
    documents: Mapping[str, Callable[[ResultsT, PlanT], Any]] = field(default_factory=dict)
    template: str = "page.md"
    check: Callable[[Session[PlanT]], None] = lambda _: None
    exploratory: bool = False
    page: str = "README.md"
    seeds: Callable[[PlanT], Sequence[int]] | None = None
    stages: Mapping[str, Study[Any, Any]] = field(default_factory=dict)
    actions: Mapping[str, Callable[[Path], dict[str, Any]]] = field(default_factory=dict)

    def command(self, session: Session[PlanT]) -> str:
        """Return the command that makes the page."""
        stages = load_study(self.name).stages.items()
        options = [f"--{option}" for option, stage in stages if stage is self]
        options += ["--exploratory"] if session.exploratory and not self.exploratory else []
        return " ".join(["python -m experiments", self.name, *options])

    def page_name(self, session: Session[PlanT]) -> str:
        """Return the file name of the page; see `page`."""
        if not session.exploratory or self.exploratory:
            return self.page
        return "EXPLORED.md" if self.page == "README.md" else f"{Path(self.page).stem}_EXPLORED.md"

    def text(self, results: ResultsT, session: Session[PlanT]) -> str:
        """Return the page."""
        terms, plan = session.registered, session.plan
        registered = "not preregistered"
        if terms is not None:
            registered = f"preregistration `{self.name}` `{terms.hash or terms.content_hash()}`"
        seeds = ranges(self.seeds(plan) if self.seeds else session.seeds)
        made = (
            f"Made by `{self.command(session)}` at commit `{commit()}`, {registered}, seeds "
            f"{seeds}, {json.dumps(versions())}."
        )
        sections = self.sections(results, plan)
        template = FOLDER / self.name / self.template
        kinds = {"kind": session.kind, "Kind": session.kind.capitalize()}
        return fill(template, made=made, plan=plan, **kinds, **sections)


def run_study(
    study: Study[PlanT, ResultsT],
    out: Path | None = None,
    *,
    exploratory: bool = False,
    workers: int = 2,
    ray: str | None = None,
    data: Path = DATA,
) -> dict[str, Any]:
    """Compute the runs that are missing, and write the page, its figures and its documents.

    Args:
        out: folder of the results; `results/NAME` by default.

    Returns:
        the conclusions by claim, and the folder written.

    Raises:
        PreregistrationError: the preregistration was changed since it was frozen.
        JobError: a run failed.
    """
    exploratory = exploratory or study.exploratory
    terms = Preregistration.named(study.name) if study.preregistered else None
    if terms is not None and not exploratory:
        terms.verify()
    plan = study.plan.parse({}, study.name) if terms is None else study.plan.of(terms)
    session = Session(plan, terms, exploratory, workers, ray, data.absolute())
    study.check(session)
    results = study.collect(session.run_jobs(study.simulate, study.jobs(session)), session)
    out = out or Path("results", study.name)
    out.mkdir(parents=True, exist_ok=True)
    for name, chart in study.figures.items():
        save_figure(chart(results, plan), out / f"{name.format(kind=session.kind)}.png")
    for name, document in study.documents.items():
        text = json.dumps(document(results, plan), indent=0, default=asdict)
        (out / name.format(kind=session.kind)).write_text(text, encoding="utf-8")
    (out / study.page_name(session)).write_text(study.text(results, session), encoding="utf-8")
    return {"out": str(out), "claims": study.claims(results, plan)}


def load_study(name: str) -> Study[Any, Any]:
    """Return the experiment of a folder.

    Raises:
        PreregistrationError: there is no such experiment.
    """
    if name not in study_names():
        raise PreregistrationError(f"no experiment {name!r}; available: {', '.join(study_names())}")
    study: Study[Any, Any] = import_module(f"experiments.{name}.study").STUDY
    return study


def study_names() -> list[str]:
    """Return the names of all experiments: the folders that have a `study.py`."""
    return sorted(f.parent.name for f in FOLDER.glob("*/study.py") if f != Path(__file__))


def ranges(numbers: Sequence[int]) -> str:
    """Write whole numbers in order, consecutive ones as a range."""
    known = sorted(set(numbers))
    starts = [n for n in known if n - 1 not in known]
    ends = [n for n in known if n + 1 not in known]
    return ", ".join(
        f"{first} to {last}" if last > first + 1 else ", ".join(map(str, range(first, last + 1)))
        for first, last in zip(starts, ends, strict=True)
    )
