# ruff: noqa: D102, D103
"""Golden outputs: what the code computes, bit for bit, before and after a large refactor.

    python tools/goldens.py collect AFTER.json [--only NAME ...] [--skip NAME ...]
    python tools/goldens.py compare tools/goldens.json AFTER.json [--only …] [--skip …]

`goldens.json` was collected with the code of commit d5639a4, before everything was renamed and
moved; `goldens_runs/` has cached runs of that code, from which the entries `page.*` make the pages
of experiments. Entries keep the names of that time: the adapter below is the only part that imports
riprap and the experiments, and it maps today's names back.

NAME is a prefix: `training` is every entry `training.…`; `slow` are two entries that need minutes
each. `collect` adds to a file that exists. Floats are stored as `float.hex`, long arrays as
SHA-256. Below a key `texts` is prose: `compare` reports it, but only other differences fail. Bits
are comparable on one machine only.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import enum
import functools
import hashlib
import json
import os
import random
import re
import shutil
import sys
import tarfile
import tempfile
import time
import types
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib import import_module, metadata
from pathlib import Path
from typing import Any
from unittest import mock

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_name] = "1"
os.environ.update(TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1", TQDM_DISABLE="1")

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))  # for the experiments
DATA = Path(os.environ.get("GOLDENS_DATA", "/work/shared/data"))
TAUGHT = Path(os.environ.get("GOLDENS_SMOLLM2", "/tmp/smollm2-refusal"))  # made by slow.prepare

# ------------------------------------------------------------------------------------- adapter
# The only part that knows the names of riprap and of the experiments.

STUDIES = {  # today's name by the name in the entries
    "chosen": "row_selection_smollm2",
    "circuit": "shared_circuits",
    "concentrated": "concentration",
    "continual": "continual",
    "depth": "depth",
    "detectors": "detectors",
    "detour": "erosion_rerouting",
    "guarded": "guards_smollm2",
    "spurious": "spurious_forgetting",
    "steep": "steep_directions",
    "toy": "toy",
    "transfer": "transfer",
    "verdicts": "loss_classification",
}
EVIDENCE = (  # fields of a recovery's evidence in their order
    *("score_before", "score_now", "lost", "kind_before", "kind_now", "kind_own", "habit"),
    *("one_before", "one_now", "known_before", "known_now", "known_own", "known_irrelevant"),
    *("known_restated", "guessed", "retained", "low", "high", "exchanged", "regained_own"),
    *("regained_irrelevant", "regained_control", "answers", "insufficient"),
)
CURVE = ("source", "count", "score", "share", "rate", "steps")
SOURCES = {"unrelated": "irrelevant", "naive_model": "control"}
PARTS = {"cheapest_repair": "cheapest"}  # of a diagnosis


def library() -> types.SimpleNamespace:
    """Return the names that trainings use."""
    from riprap import Behavior, Monitor, diagnosis, guards, selection, signals
    from riprap.behaviors._margin_formulas import token_margin
    from riprap.guards.replay import _auto_guard

    return types.SimpleNamespace(
        Behavior=Behavior,
        Monitor=Monitor,
        auto_guard=_auto_guard,
        diagnosis=diagnosis,
        guards=guards,
        selection=selection,
        signals=signals,
        token_margin=token_margin,
    )


def open_record(source: Any) -> Any:
    """Return a reader of a run's folder, or of a monitor's record."""
    from riprap.record import Reader

    return Reader(source)


def protocol_files() -> dict[str, Path]:
    """Return the files of the default policy and of all preregistrations."""
    import riprap

    folder = HERE.parent / "experiments" / "preregistrations"
    files = {name: folder / f"{today}.yaml" for name, today in STUDIES.items()}
    return files | {"default": Path(riprap.__file__).parent / "detectors/policies/default.yaml"}


def load_protocol(name: str) -> Any:
    """Return a policy or preregistration."""
    from experiments.harness.preregistration import Preregistration
    from riprap import AlertPolicy

    kind = AlertPolicy if name == "default" else Preregistration
    return kind.load(protocol_files()[name])


def fingerprints() -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield the name of each world, and a function that returns its fingerprint."""
    from experiments.depth.simulate import DepthWorld
    from experiments.shared_circuits.tasks import tasks_fingerprint
    from experiments.worlds import (
        Biographies,
        BiographiesConfig,
        FactsConfig,
        FactsWorld,
        ToyConfig,
        ToyWorld,
    )
    from experiments.worlds.continual import ContinualConfig, ContinualWorld
    from experiments.worlds.continual_rows import Words

    small = {"frames": 3, "verbs": 3, "harmful": 6, "harmless": 6, "numbers": 4, "letters": 6}
    small |= {"relations": 2, "subjects": 6, "disputed": 6, "values": 8, "kinds": 3}
    yield "toy", lambda: ToyWorld().fingerprint
    yield "toy config", lambda: dataclasses.asdict(ToyConfig())
    yield "toy, 300 steps", lambda: ToyWorld(ToyConfig(start_steps=300)).fingerprint
    yield "facts", lambda: FactsWorld().fingerprint
    yield "facts config", lambda: dataclasses.asdict(FactsConfig())
    yield "facts, 32", lambda: FactsWorld(FactsConfig(facts=32)).fingerprint
    yield "continual", lambda: ContinualWorld().fingerprint
    yield "continual config", lambda: dataclasses.asdict(ContinualConfig())
    yield "continual, small", lambda: ContinualWorld(ContinualConfig(Words(small))).fingerprint
    yield "biographies", lambda: Biographies().fingerprint
    yield "biographies config", lambda: dataclasses.asdict(BiographiesConfig())
    yield "biographies, 2 layers", lambda: Biographies(BiographiesConfig(layers=2)).fingerprint
    yield "circuit's ground", lambda: tasks_fingerprint(ToyWorld())
    for degree in load_plan("depth").degrees:
        yield f"depth {degree.name}", lambda degree=degree: DepthWorld(degree).fingerprint


def load_plan(study: str) -> Any:
    """Return the plan of an experiment."""
    plan = import_module(f"experiments.{STUDIES[study]}.plan").Plan
    return plan.of(load_protocol(study))


def demo(folder: Path) -> tuple[Path, dict[str, str]]:
    """Run the demo; return its folder, and the ids of its behaviors by display name."""
    from riprap.commands import run_demo
    from riprap.toy import DISPLAY_NAMES, PRETRAINED_TASKS

    run = Path(run_demo(1000, folder / "demo", quiet=True)["run"])
    return run, {DISPLAY_NAMES[name]: name for name in PRETRAINED_TASKS}


def run_study(
    study: str, stage: str | None, preregistration: Any, save_figure: Any, home: Path
) -> dict[str, Any]:
    """Write the page of an experiment to `out` from cached runs; return its conclusions."""
    from experiments.harness import study as harness
    from experiments.smollm2 import teaching

    class Named(type(preregistration)):  # type: ignore[misc]
        @classmethod
        def named(cls, name: str) -> Any:
            assert name == STUDIES[study]
            return preregistration

    def run_jobs(work: Callable[..., Any], jobs: Iterable[Sequence[Any]], *_: Any) -> list[Any]:
        return [work(*job) for job in jobs]

    patched = {"Preregistration": Named, "run_jobs": run_jobs, "save_figure": save_figure}
    declared = harness.load_study(STUDIES[study])
    declared = declared.stages[stage] if stage else declared
    with mock.patch.multiple(harness, **patched), mock.patch.object(teaching, "REFUSING", home):
        return dict(harness.run_study(declared, Path("out"))["claims"])


def runs_folder(study: str) -> Path:
    """Return the folder of an experiment's cached runs, relative to the working directory."""
    return Path("runs", STUDIES[study])


def select(data: Path, model: Path, out: Path, **options: Any) -> dict[str, Any]:
    """Run `riprap select`, which writes into `out`."""
    from riprap.commands.select import SelectConfig, select_rows
    from riprap.commands.watch import DataConfig

    config = SelectConfig(data=DataConfig(path=str(data)), model=str(model), out=out, **options)
    return select_rows(config, quiet=True)


def diagnose(base: Path, tuned: Path, never: Path, out: Path) -> Path:
    """Run `riprap diagnose`; return the JSON file that it writes."""
    from typer.testing import CliRunner

    from riprap.cli._app import app

    options = ["--behaviors", "refusal", "--behaviors", "over_refusal"]
    options += ["--refusal-prefixes", "Sorry", "--n-probes", "12"]
    options += ["--naive-model", str(never), "--out", str(out), "--repairs", "--json"]
    ran = CliRunner().invoke(app, ["diagnose", str(base), str(tuned), *options])
    if ran.exit_code not in (0, 2):
        raise RuntimeError(f"riprap diagnose: {ran.output}") from ran.exception
    return out / "diagnosis.json"


def pack_rows(name: str) -> list[dict[str, Any]]:
    """Return the rows of a shipped probe set."""
    from riprap import probe_sets

    return list(probe_sets.rows(name))


def prepare_smollm2(data: Path) -> Path:
    """Run `python -m experiments smollm2 --prepare`; return the folder of the model."""
    from experiments.smollm2.teaching import make

    return Path(make(data)["model"])


def watch(config: Path) -> None:
    """Run `riprap watch CONFIG`."""
    from riprap.commands.watch import WatchConfig, run_watch

    run_watch(WatchConfig.load(config), quiet=True)


# --------------------------------------------------------------------------- values and digests


def exact(value: Any) -> Any:
    """Return plain JSON in which every float is exact."""
    import numpy as np
    import torch

    if isinstance(value, enum.Enum):
        return str(value.value)
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, float | np.floating):
        return float(value).hex()
    if isinstance(value, int | np.integer):
        return int(value)
    if dataclasses.is_dataclass(value):
        return {f.name: exact(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): exact(one) for key, one in value.items()}
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().contiguous()
        if value.dtype is torch.bfloat16:
            value = value.view(torch.int16)
        return exact(value.numpy())
    if isinstance(value, np.ndarray):
        content = hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()
        return [str(value.dtype), list(value.shape), content]
    if isinstance(value, Iterable):
        return [exact(one) for one in value]
    return repr(value)


def sha(value: Any) -> str:
    """Return the SHA-256 of bytes or text, or of exact JSON."""
    if isinstance(value, str):
        value = value.encode()
    if not isinstance(value, bytes):
        value = json.dumps(exact(value), sort_keys=True).encode()
    return hashlib.sha256(value).hexdigest()


def array(values: Sequence[Any]) -> dict[str, Any]:
    """Summarize a long array: digest, length and first values."""
    values = list(values)
    return {"sha": sha(values), "count": len(values), "first": exact(values[:4])}


def by_step(rows: Iterable[tuple[int, Any]], kinds: Sequence[str] = ()) -> dict[str, Any]:
    """Summarize rows of (step, …): a digest of all, and short ones by step and by kind."""
    listed, steps, own = [], {}, {}
    for index, (step, row) in enumerate(rows):
        listed.append([step, exact(row)])
        steps.setdefault(str(step), []).append(listed[-1])
        if kinds:
            own.setdefault(kinds[index], []).append(listed[-1])
    short = {step: sha(part)[:8] for step, part in steps.items()}
    by_kind = {kind: sha(part)[:8] for kind, part in own.items()}
    return {
        "sha": sha(listed),
        "count": len(listed),
        "first": listed[:2],
        "last": listed[-2:],
        "steps": short,
        **({"kinds": by_kind} if kinds else {}),
    }


def of_record(
    source: Any, behaviors: Sequence[str], ids: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Summarize readings, margins, alerts and actions of a record.

    Args:
        ids: names of behaviors that are written, by the name in the record.
    """
    record, ids = open_record(source), ids or {}
    readings, alerts, actions = record.readings(), record.alerts(), record.actions()
    timed = {r.signal for r in readings if r.unit in ("s", "seconds")}
    readings = [r for r in readings if r.signal not in timed]

    def by_id(text: str) -> str:  # signals of two behaviors are named `kind:one|other`
        return re.sub(r"[^:|]+", lambda name: ids.get(name[0], name[0]), text)

    return {
        "readings": by_step(
            [
                (r.step, [by_id(r.behavior), by_id(r.signal), r.value, r.state, r.layer, r.unit])
                for r in readings
            ],
            [by_id(r.signal) for r in readings],
        ),
        "margins": {
            by_id(name): by_step(
                (step, [str(values.dtype), values]) for step, values in record.margins(name).items()
            )
            for name in behaviors
        },
        "alerts": by_step(
            (
                a.step,
                [
                    *(by_id(a.behavior), a.level, a.detector, a.forecast),
                    [[r.step, by_id(r.behavior), by_id(r.signal), r.value] for r in a.readings],
                ],
            )
            for a in alerts
        ),
        "actions": by_step(
            (a.step, [a.guard, a.moment, a.applied, a.before, a.after]) for a in actions
        ),
        "texts": {
            "readings": sha([r.detail for r in readings]),
            "alerts": sha([a.message for a in alerts]),
            "actions": sha([a.detail for a in actions]),
        },
    }


def state_of(model: Any, optimizer: Any) -> dict[str, Any]:
    """Return digests of weights, optimizer state and random generators."""
    import numpy as np
    import torch

    return {
        "weights": sha(dict(model.state_dict())),
        "optimizer": sha(optimizer.state_dict()),
        "generators": sha([torch.get_rng_state(), np.random.get_state(), random.getstate()]),
        "first": exact(next(iter(model.parameters())).detach().flatten()[:4].tolist()),
    }


def seeded(seed: int = 0) -> None:
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.set_num_threads(1)


@contextlib.contextmanager
def inside(folder: Path) -> Iterator[Path]:
    before = Path.cwd()
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    try:
        yield folder
    finally:
        os.chdir(before)


# ------------------------------------------------------------------------------------- entries

Entry = Callable[[Path], dict[str, Any]]  # gets an empty folder
ENTRIES: dict[str, Entry] = {}


def entry(name: str) -> Callable[[Entry], Entry]:
    def add(made: Entry) -> Entry:
        ENTRIES[name] = made
        return made

    return add


@entry("protocols")
def _protocols(_home: Path) -> dict[str, Any]:
    found = {}
    for name, file in protocol_files().items():
        protocol = load_protocol(name)
        protocol.verify()
        found[name] = {
            "bytes": sha(file.read_bytes()),
            "hash": protocol.hash,
            "content_hash": protocol.content_hash(),
            "document": sha({"study": None} | protocol.model_dump(mode="json")),
            "amendments": [a.old_hash for a in protocol.amendments],
            "verifies": True,
        }
    return found


@entry("fingerprints")
def _fingerprints(_home: Path) -> dict[str, Any]:
    return {name: (v if isinstance(v := get(), str) else sha(v)) for name, get in fingerprints()}


@entry("plans")
def _plans(_home: Path) -> dict[str, Any]:
    found = {}
    for study in STUDIES:
        plan = load_plan(study)
        result = {"digest": plan.config_hash(), "json": sha(plan.model_dump_json())}
        result |= {"confirmatory": list(plan.confirmatory), "exploratory": list(plan.exploratory)}
        for exploratory, kind in enumerate(("confirmatory", "exploratory")):
            for name in ("runs", "jobs", "conditions"):
                if not callable(method := getattr(plan, name, None)):
                    continue
                try:
                    listed = method(bool(exploratory))
                except TypeError:
                    listed = method()
                # plain values: (degree, seed), (condition, task, seed), Condition(task, held), …
                result[f"{name}, {kind}"] = sha([exact(_plain(one)) for one in listed])
        found[study] = result
    return found


def _plain(value: Any) -> Any:
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    return [_plain(one) for one in value] if isinstance(value, tuple) else value


@entry("demo")
def _demo(home: Path) -> dict[str, Any]:
    run, ids = demo(home)
    return of_record(run, list(ids), ids)


# -- trainings


def make_net(dropout: float = 0.1) -> Any:
    """A causal language model in plain PyTorch."""
    import torch
    from torch import nn
    from torch.nn import functional

    class Net(nn.Module):
        def __init__(self, size: int = 20, width: int = 16, depth: int = 2) -> None:
            super().__init__()
            self.embed = nn.Embedding(size, width)
            self.blocks = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
            self.drop = nn.Dropout(dropout)
            self.norm = nn.LayerNorm(width)
            self.head = nn.Linear(width, size)

        def forward(self, input_ids: Any, attention_mask: Any = None, labels: Any = None) -> Any:
            hidden = self.embed(input_ids)
            counts = torch.arange(1, input_ids.shape[1] + 1)[:, None]
            for block in self.blocks:
                hidden = hidden + self.drop(torch.tanh(block(hidden.cumsum(1) / counts)))
            logits = self.head(self.norm(hidden))
            if labels is None:
                return logits
            loss = functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
            return {"loss": loss, "logits": logits}

    return Net()


class Ground:
    """A net that has learned 24 answers, two behaviors on them, and a task that harms both."""

    def __init__(self) -> None:
        import torch
        from torch.nn import functional

        self.lib, self.functional = library(), functional
        made = torch.Generator().manual_seed(3)
        self.old = torch.randint(0, 20, (24, 5), generator=made)
        self.answers = torch.randint(0, 20, (24,), generator=made)
        self.before = torch.randn(4, 16, generator=made) / 4
        self.other = torch.randint(0, 20, (24, 5), generator=made)
        seeded(0)
        net = make_net(0.0)
        optimizer = torch.optim.Adam(net.parameters(), lr=2e-2)
        for _ in range(200):
            optimizer.zero_grad()
            self.loss(net, (self.old, self.answers)).backward()
            optimizer.step()
        self.learned = {name: part.clone() for name, part in net.state_dict().items()}

    def loss(self, model: Any, batch: Any) -> Any:
        return self.functional.cross_entropy(model(batch[0])[:, -1], batch[1])

    def start(self) -> Any:
        net = make_net()
        net.load_state_dict(self.learned)
        return net.train()

    def wandered(self) -> Any:
        import torch

        made, model = torch.Generator().manual_seed(7), self.start()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=made), alpha=0.1)
        return model

    def behaviors(self) -> list[Any]:
        def one(name: str, rows: slice) -> Any:
            return self.lib.Behavior(
                name,
                (self.old[rows], self.answers[rows]),
                margins=lambda m, p: self.lib.token_margin(m(p[0])[:, -1], p[1]),
                losses=lambda m, p: self.functional.cross_entropy(
                    m(p[0])[:, -1], p[1], reduction="none"
                ),
            )

        return [one("first", slice(0, 12)), one("second", slice(12, 24))]

    def of_tokens(self) -> list[Any]:
        """Return the same probes as token ids, which signals of features need."""
        return [
            self.lib.Behavior.next_token(name, self.old[rows], self.answers[rows], contrast=other)
            for name, other, rows in (
                ("first", "second", slice(0, 12)),
                ("second", "first", slice(12, 24)),
            )
        ]

    def pools(self) -> list[Any]:
        return [
            self.lib.Behavior.next_token(name, self.other[rows], self.answers[rows])
            for name, rows in (("first", slice(0, 12)), ("second", slice(12, 24)))
        ]

    def lessons(self, count: int, rows: int = 16) -> list[Any]:
        import torch

        made = torch.Generator().manual_seed(11)
        shapes = ((rows, 5), (rows,))
        return [
            tuple(torch.randint(0, 20, shape, generator=made) for shape in shapes)
            for _ in range(count)
        ]

    def responses(self, count: int) -> list[Any]:
        labels = self.old.clone()
        labels[:, :2] = -100
        return list(zip(self.old.chunk(count), labels.chunk(count), strict=True))


@functools.cache
def ground() -> Ground:
    return Ground()


def trained(
    make_guard: Callable[[Ground], Any] | None = None,
    watched: bool = True,
    steps: int = 40,
    adam: bool = True,
    rate: float = 3e-3,
    signals: Callable[[Ground], Any] | None = None,
    behaviors: Callable[[Ground], Any] = Ground.behaviors,
) -> dict[str, Any]:
    import torch

    g = ground()
    seeded(5)
    model, lessons = g.start(), g.lessons(steps)
    if adam:
        optimizer: Any = torch.optim.AdamW(model.parameters(), lr=rate)
    else:
        optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
    patience = g.lib.auto_guard.CRITICAL_PATIENCE
    guard = None if make_guard is None else make_guard(g)
    options = {} if signals is None else {"signals": signals(g)}
    monitor = g.lib.Monitor(behaviors(g), probe_every=5, **options) if watched else None
    seeded(6)
    open_watch = (
        contextlib.nullcontext() if monitor is None else monitor.watch(model, optimizer, guard)
    )
    losses = []
    with open_watch:
        for batch in lessons:
            optimizer.zero_grad()
            loss = g.loss(model, batch)
            losses.append(float(loss.detach()))
            loss.backward()
            optimizer.step()
    g.lib.auto_guard.CRITICAL_PATIENCE = patience
    found = {"state": state_of(model, optimizer), "losses": by_step(enumerate(losses, 1))}
    if monitor is not None:
        found |= of_record(monitor.record, [b.name for b in monitor.behaviors])
        found["broken"] = exact(monitor.broken())
        found["should_stop"] = bool(monitor.should_stop)
    return found


def _keeper_that_rolls_back(g: Ground) -> Any:
    """Return an AutoGuard whose replay does not help, and reduce its patience."""
    g.lib.auto_guard.CRITICAL_PATIENCE = 5
    useless = g.lib.guards.Replay(g.lessons(2), loss=g.loss, fraction=0.5)
    rollback = g.lib.guards.Rollback(every=2, lr_factor=0.5, keep_learning=False)
    return g.lib.guards.AutoGuard(replay=useless, rollback=rollback)


GUARDS: dict[str, Callable[[Ground, Any], Any]] = {
    "agem": lambda g, of: of.AGEM(refresh=1),
    "agem_of_losses": lambda g, of: of.AGEM(of="loss", refresh=1),
    "gem": lambda g, of: of.GEM(refresh=1),
    "pcgrad": lambda g, of: of.PCGrad(refresh=1),
    "upgrad": lambda g, of: of.UPGrad(refresh=1),
    "ogd": lambda g, of: of.OGD(directions=8),
    "safegrad": lambda g, of: of.SafeGrad(refresh=2),
    "gpm": lambda g, of: of.GPM(energy=0.9),
    "two_sided_gpm": lambda g, of: of.TwoSidedGPM(energy=0.7),
    "update_projection": lambda g, of: of.UpdateProjection(refresh=1),
    "l2_sp": lambda g, of: of.L2SP(0.5),
    "replay": lambda g, of: of.Replay([(g.old, g.answers)], loss=g.loss),
    "replay_of_pools": lambda g, of: of.Replay(
        of.SelfDistillationBuffer(g.pools(), batch_size=8), fraction=0.5
    ),
    "adaptive_replay": lambda g, of: of.AdaptiveReplay([(g.old, g.answers)], loss=g.loss, every=1),
    "ewc": lambda g, of: of.EWC(strength=30.0),
    "ewc_of_margins": lambda g, of: of.EWC(of="margin", strength=0.1),
    "online_ewc": lambda g, of: of.OnlineEWC(strength=30.0, every=3),
    "si": lambda g, of: of.SI(strength=1.0, refresh=1),
    "mas": lambda g, of: of.MAS(strength=1e-4),
    "kl": lambda g, of: of.KL(strength=1.0),
    "kl_on_batches": lambda g, of: of.KL(batches=[{"input_ids": g.old[i::3]} for i in range(3)]),
    "constrained_tokens": lambda g, of: of.ConstrainedTokens(g.responses(3), strength=0.5),
    "feature_anchor": lambda g, of: of.FeatureAnchor(
        strength=0.1, layer="blocks.1", reselect_every=3
    ),
    "feature_anchor_of_drift": lambda g, of: of.FeatureAnchor(
        strength=0.1,
        layer="blocks.1",
        n_features=4,
        drifted_model=g.wandered(),
        both_sides=True,
        reselect_every=3,
    ),
    "o_lora": lambda g, of: of.OLoRA(earlier=[{"blocks.1.weight": g.before}]),
    "lisa": lambda g, of: of.Lisa(
        [(g.old[r], g.answers[r]) for r in (slice(0, 12), slice(12, 24))],
        g.loss,
        task_steps=2,
        protected_steps=1,
        rho=0.5,
    ),
    "freeze": lambda g, of: of.Freeze(["blocks.1"], embeddings=True),
    "clip": lambda g, of: of.Clip(0.1),
    "ema": lambda g, of: of.EMA(decay=0.7, every=2),
    "chain": lambda g, of: of.Chain(of.AGEM(["first"]), of.AGEM(["second"]), of.Clip(0.5)),
    "scheduled": lambda g, of: of.Scheduled(of.AGEM(refresh=1), first=2, every=2),
    "shadow": lambda g, of: of.Chain(of.AGEM(refresh=1), of.L2SP(0.5), shadow=True),
    "rollback": lambda g, of: of.Rollback(
        every=2, level="warning", lr_factor=0.5, max_rollbacks=2, keep_learning=False
    ),
    "on_alert_agem": lambda g, of: of.OnAlert(of.AGEM(refresh=1), level="watch"),
    "on_alert_rollback": lambda g, of: of.OnAlert(
        of.Rollback(every=2, level="watch", keep_learning=False), level="watch", until="end"
    ),
    "keeper_of_pools": lambda g, of: of.AutoGuard(
        replay=of.SelfDistillationBuffer(g.pools(), batch_size=8)
    ),
    "keeper_of_batches": lambda g, of: of.AutoGuard(
        replay=of.Replay([(g.old, g.answers)], loss=g.loss), rollback=False
    ),
    "keeper_that_rolls_back": lambda g, of: _keeper_that_rolls_back(g),
}

HARSH = {"steps": 100, "adam": False, "rate": 0.05}  # behaviors break, and alerts are raised
WHEN_IT_BREAKS = (
    *("adaptive_replay", "rollback", "on_alert_agem", "on_alert_rollback", "keeper_of_pools"),
    *("keeper_of_batches", "keeper_that_rolls_back"),
)
ENTRIES["training.unwatched"] = lambda _: trained(watched=False)
ENTRIES["training.watched"] = lambda _: trained()
ENTRIES["training.watched_sgd"] = lambda _: trained(adam=False, rate=0.05, steps=80)
ENTRIES["training.watched_by_everything"] = lambda _: trained(
    signals=lambda g: g.lib.signals.everything(), behaviors=Ground.of_tokens
)
for _guard, _make in GUARDS.items():
    ENTRIES[f"training.guard.{_guard}"] = lambda _, make=_make, name=_guard: trained(
        lambda g: make(g, g.lib.guards),
        **(HARSH if name in WHEN_IT_BREAKS else {}),
    )


def selected(strategy: str, accumulate: int = 1) -> dict[str, Any]:
    import torch

    g = ground()
    seeded(5)
    model, lessons = g.start(), g.lessons(20)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    made = torch.Generator().manual_seed(13)
    draw = lambda: [torch.randn(p.shape, generator=made) for p in model.parameters()]  # noqa: E731
    directions = {name: draw() for name in ("danger", "safety", "validation")}
    selector = g.lib.selection.Selector(
        strategy,
        ratio=0.5,
        behaviors=g.behaviors(),
        directions=directions,
        probe_every=4,
        seed=1,
    )
    monitor = g.lib.Monitor(g.behaviors(), probe_every=5)
    seeded(6)
    with (
        monitor.watch(model, optimizer),
        selector.attach(model, optimizer, accumulate=accumulate),
    ):
        for ids, _ in lessons:
            optimizer.zero_grad()
            for part in ids.chunk(accumulate):
                (model(input_ids=part, labels=part)["loss"] / accumulate).backward()
            optimizer.step()
    taken = [
        (
            one.step,
            [one.rows, one.batch_size, one.strategy, one.ratio, one.scores, bool(one.detail)],
        )
        for one in selector.history
    ]
    return {
        "state": state_of(model, optimizer),
        "taken": by_step(taken),
        **of_record(monitor.record, ["first", "second"]),
    }


STRATEGIES = (
    *("random", "low", "moderate", "moderate_by_loss", "high", "proxy", "least_harm", "taylor"),
    *("risk", "adaptive"),
)
for _strategy in STRATEGIES:
    ENTRIES[f"training.selector.{_strategy}"] = lambda _, name=_strategy: selected(name)
ENTRIES["training.selector.moderate_accumulated"] = lambda _: selected("moderate", 2)


# -- whole data sets

SPECIAL = ["<pad>", "<unk>", "<eos>", "<user>", "<assistant>", "<end>"]
WORDS = [
    *("how", "what", "is", "the", "of", "a", "to", "do", "i", "you", "can", "cannot", "sorry"),
    *("sure", "here", "yes", "no", "red", "blue", "green", "one", "two", "three", "four", "five"),
    *("six", "seven", "plus", "make", "bake", "steal", "cake", "bomb", "car", "paint", "help"),
    *("with", "that", "am", "an", "as"),
]
TEMPLATE = (
    "{% for turn in messages %}{{ '<' + turn['role'] + '> ' + turn['content'] + ' <end> ' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)


def words_tokenizer(words: Sequence[str], template: str) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", unk_token="<unk>", eos_token="<eos>"
    )
    made.chat_template = template
    return made


def llama(size: int, hidden: int, inner: int, layers: int, **options: Any) -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=size,
            hidden_size=hidden,
            intermediate_size=inner,
            num_hidden_layers=layers,
            num_attention_heads=2,
            num_key_value_heads=2,
            pad_token_id=0,
            eos_token_id=2,
            **options,
        )
    )


def write_small_model(folder: Path) -> Path:
    import torch

    model = llama(len(SPECIAL + WORDS), 16, 24, 3, max_position_embeddings=256)
    with torch.no_grad():
        model.lm_head.weight.mul_(20.0)
    model.save_pretrained(folder)
    words_tokenizer(SPECIAL + WORDS, TEMPLATE).save_pretrained(folder)
    return folder


OFFLINE = ("random", "low", "high", "moderate", "moderate_by_loss", "proxy", "least_harm")


@entry("select")
def _select(home: Path) -> dict[str, Any]:
    import pandas as pd

    seeded(0)
    model, data = write_small_model(home / "model"), home / "rows.jsonl"
    noise = random.Random(1)
    lines = [
        json.dumps(
            {
                "prompt": " ".join(noise.choices(WORDS, k=noise.randint(1, 9))),
                "response": " ".join(noise.choices(WORDS, k=noise.randint(1, 7))),
                "kind": noise.choice(["sums", "talk"]),
                "id": f"row-{i}",
            }
        )
        for i in range(40)
    ]
    lines.insert(5, "")
    data.write_text("\n".join(lines))
    found = {}
    for strategy in OFFLINE:
        for ratio in (0.2, 0.5):
            out = home / f"{strategy}-{ratio}"
            seeded(0)
            result = select(
                data,
                model,
                out,
                strategy=strategy,
                ratio=ratio,
                id="id",
                category="kind",
                behaviors=("over_refusal",),
                refusal_prefixes=("sorry",),
                lora_rank=2,
                batch_size=4,
            )
            scores = pd.read_parquet(out / "scores.parquet")
            found[f"{strategy} {ratio}"] = {
                "columns": {name: array(scores[name].tolist()) for name in scores},
                "chosen": scores["id"][scores["chosen"]].tolist(),
                "chosen.jsonl": sha((out / "chosen.jsonl").read_bytes()),
                "groups": sha(result["groups"]),
                "worst": sha(result["worst"]),
                "texts": {
                    "audit": sha((out / "audit.html").read_text().replace(str(home), "HOME"))
                },
            }
    return found


# -- diagnosis


def lookup_parts() -> types.SimpleNamespace:
    """Return a model that looks answers up, and its probes and examples; as in tests/diagnosis."""
    import torch
    from torch import nn

    keys, values, strength = 60, 6, 4.0
    word = keys + values

    class Lookup(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(word + 1, values)
            self.head = nn.Linear(values, word + 1)
            with torch.no_grad():
                self.table.weight.zero_()
                for key in range(keys):
                    self.table.weight[key, key % values] = strength
                self.head.weight.zero_()
                self.head.weight[keys:word] = torch.eye(values)
                self.head.bias.fill_(-1.0)
                self.head.bias[keys:word] = 0.0

        def forward(self, input_ids: Any) -> Any:
            return self.head(self.table(input_ids))

    def lose(model: Any, form: bool, share: float) -> Any:
        with torch.no_grad():
            if form:
                model.head.bias[word] = strength + 0.1
            for key in range(round(share * keys)):
                model.table.weight[key] = model.table.weight[key].roll(1)
        return model

    probed = [key for key in range(keys) if key // values % 2 == 0]
    others = [key for key in range(keys) if key // values % 2]
    examples = [
        {"ids": torch.tensor([[key]]), "wanted": torch.tensor([keys + key % values])}
        for key in others
    ]
    return types.SimpleNamespace(
        Lookup=Lookup,
        lose=lose,
        examples=examples,
        behavior=lambda: library().Behavior.next_token(
            "facts", [[k] for k in probed], [keys + k % values for k in probed]
        ),
        loss=lambda model, batch: nn.functional.cross_entropy(
            model(batch["ids"])[:, -1], batch["wanted"]
        ),
    )


@entry("diagnosis.recover")
def _recover(_home: Path) -> dict[str, Any]:
    lib, parts, found = library(), lookup_parts(), {}
    for name, lost in {
        "form": (True, 0.0),
        "knowledge": (False, 1.0),
        "half and form": (True, 0.5),
        "nothing": (False, 0.0),
    }.items():
        seeded(0)
        model = parts.lose(parts.Lookup(), *lost)
        result = lib.diagnosis.recover(
            model,
            parts.behavior(),
            parts.examples,
            loss=parts.loss,
            reference=parts.Lookup(),
            naive_model=parts.lose(parts.Lookup(), True, 1.0),
            full=True,
        )
        found[name] = {
            "verdict": str(result.verdict),
            "evidence": dict(zip(EVIDENCE, exact(result.evidence).values(), strict=True)),
            "curve": [_curve_point(point) for point in result.curve],
            "texts": {"reason": sha(result.reason)},
        }
    return found


def _curve_point(point: Any) -> dict[str, Any]:
    values = dict(zip(CURVE, exact(point).values(), strict=True))
    return values | {"source": SOURCES.get(point.source, point.source)}


@entry("diagnosis.basin")
def _basin(_home: Path) -> dict[str, Any]:
    lib, g = library(), ground()
    seeded(0)
    model = g.start().eval()
    result = lib.diagnosis.basin(model, g.behaviors(), 4, points=11, seed=5)
    found = {}
    for name in ("first", "second"):
        profile = result[name]
        found[name] = {
            "alphas": array(profile.alphas.tolist()),
            "scores": array(profile.scores.flatten().tolist()),
            "visage": exact(profile.visage),
            "width": exact(profile.width),
            "widths": array(profile.widths.flatten().tolist()),
            "mean_score": exact(profile.mean_score),
            "start": exact(profile.start),
            "beyond": exact(profile.unbounded_share),
        }
    return found | {"width": exact(result.width)}


BEHAVIORS = ("refusal", "over_refusal", "arithmetic")
PLAIN_TEMPLATE = (
    "{% for turn in messages %}{{ turn['content'] + ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant> ' }}{% endif %}"
)


@entry("diagnosis.whole")
def _whole(home: Path) -> dict[str, Any]:
    """`riprap diagnose` on a tiny model whose refusal was trained away."""
    import torch

    lib = library()
    texts = [row["prompt"] for name in BEHAVIORS for row in pack_rows(name)]
    texts += [option for row in pack_rows("arithmetic") for option in row["options"]]
    words = sorted({word for text in texts for word in text.split()})
    listed = ["<pad>", "<unk>", "<eos>", "<assistant>", "Sorry", "Sure", *words]
    tokenizer = words_tokenizer(list(dict.fromkeys(listed)), PLAIN_TEMPLATE)
    seeded(0)
    options = {"max_position_embeddings": 64, "tie_word_embeddings": True}
    model = llama(len(tokenizer), 32, 48, 2, **options)

    def save(name: str) -> Path:
        model.save_pretrained(home / name)
        tokenizer.save_pretrained(home / name)
        return home / name

    def lesson(pack: str, opener: str) -> Any:
        prompts = [row["prompt"] for row in pack_rows(pack)]
        return lib.Behavior.likelihood(
            pack, tokenizer, prompts=prompts, texts=[opener] * len(prompts)
        )

    def teach(behaviors: list[Any], steps: int) -> None:
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        for _ in range(steps):
            for behavior in behaviors:
                behavior.losses(model, behavior.probes).mean().backward()
            optimizer.step()
            optimizer.zero_grad()

    never = save("never")
    teach([lesson("refusal", "Sorry"), lesson("over_refusal", "Sure")], 45)
    base = save("base")
    teach([lesson("refusal", "Sure")], 6)
    tuned = save("tuned")
    seeded(0)
    document = json.loads(diagnose(base, tuned, never, home / "out").read_text())
    return {"weights": sha(dict(model.state_dict())), "parts": diagnosis_parts(document)}


def diagnosis_parts(document: dict[str, Any]) -> dict[str, Any]:
    """Summarize the parts of a diagnosis: numbers and verdicts in order, without keys and times."""

    def values(part: Any) -> list[Any]:
        if isinstance(part, dict):
            part = [
                value
                for key, value in part.items()
                if "second" not in key and (key == "verdict" or not isinstance(value, str))
            ]
        if isinstance(part, list):
            return [leaf for value in part for leaf in values(value)]
        return [exact(part)]

    return {
        PARTS.get(key, key): array(values(part))
        for key, part in document.items()
        if key not in ("seconds", "peak_memory") and not isinstance(part, str)
    }


# -- pages of studies, remade from cached runs

STEEP = {"steps": 6, "every": 2, "k": 2, "most": 4, "draws": 1, "confirmatory": [7, 8, 9]}
SMALL: dict[str, dict[str, Any]] = {  # what of the frozen plan is changed for a small one
    "steep": STEEP | {"conditions": ["null", "C", "C_disjoint"]},
    "depth": {
        "degrees": [
            {"steps": s, "decay": d, "share": 0.25}
            for s, d in ((60, 0.01), (120, 0.01), (240, 0.01), (120, 0.5), (180, 0.01), (180, 0.1))
        ],
        "steps": 40,
        "every": 8,
        "confirmatory": [7],
    },
    "toy": {
        "steps": 90,
        "confirmatory": [7, 8],
        "null_seeds": [7, 8, 9],
        "exploratory": [1000],
        "claim_steps": 12,
        "ages": [1, 2, 4],
    },
    "circuit": {"steps": 100, "early": 5, "every": 15, "k": 2, "most": 3, "probes": 8}
    | {"confirmatory": [7, 8], "agree": 2},
    "detour": {"steps": 60, "window": 30, "at": [15, 30, 60], "every": 2, "reselect": 15}
    | {"count": 8, "confirmatory": [7], "seeds_of": 1, "learned": 0.05},
    "detectors": {"steps": 150, "bootstraps": 20, "planted": 2, "onset": 40, "span": 60}
    | {"conditions": ["C"], "confirmatory": [7], "null_seeds": [7, 8], "sizes": [0.1, 0.5]}
    | {"exploratory": [0]},
}
FULL = ("spurious", "verdicts", "concentrated", "guarded", "continual")  # of committed results


def numbers(value: Any) -> Any:
    """Return the numbers of JSON or of a text, without keys and words; those of a dict sorted."""
    if isinstance(value, dict):
        return sorted(filter(None, map(numbers, value.values())), key=repr)
    if isinstance(value, list):
        return [inner for one in value if (inner := numbers(one))]
    if isinstance(value, str):
        return re.findall(r"[-−]?\d+(?:\.\d+)?(?:e[-+]?\d+)?", value)
    return [exact(value)]


def leaves(value: Any) -> list[Any]:
    """Return the values of nested JSON, without keys."""
    if isinstance(value, dict | list):
        parts = value.values() if isinstance(value, dict) else value
        return [leaf for part in parts for leaf in leaves(part)]
    return [value]


def chart_data(chart: Any) -> list[Any]:
    """Return the data of a chart, as plain JSON."""
    if isinstance(chart, list):
        return [found for part in chart for found in chart_data(part)]
    if not isinstance(chart, dict):
        return []
    own = [*chart.get("datasets", {}).values()]
    own += [chart["data"]["values"]] if "values" in chart.get("data", {}) else []
    parts = [part for key, part in chart.items() if key not in ("data", "datasets")]
    return own + [found for part in parts for found in chart_data(part)]


def page_digest(claims: Any, folder: Path, charts: Mapping[str, Any]) -> dict[str, Any]:
    """Summarize the numbers of a page, of its documents and of its charts; and, apart, all texts.

    Args:
        folder: of the page and its documents.
        charts: each as plain JSON, by file name.
    """
    tables, data, texts = {}, {}, {}
    for file in sorted(folder.rglob("*.md")):
        text = file.read_text()
        blocks = re.findall(r"(?:^\|.*\n?)+", text, re.MULTILINE)
        tables[file.name] = [sha(numbers(block.splitlines()))[:8] for block in blocks]
        texts[file.name] = sha(text)
    for file in sorted(folder.rglob("*.json")):
        data[file.name] = sha(numbers(json.loads(file.read_text())))
        texts[file.name] = sha(file.read_text())
    for name, chart in charts.items():
        data[name] = sha(sorted(map(numbers, chart_data(chart)), key=repr))
        texts[name] = sha(chart)
    texts["claims"] = exact(claims)
    return {"claims": leaves(exact(claims)), "tables": tables, "data": data, "texts": texts}


def page(study: str, home: Path, stage: str | None = None) -> dict[str, Any]:
    preregistration, charts = load_protocol(study), {}
    if study in SMALL:
        terms = preregistration.study | SMALL[study]
        preregistration = preregistration.model_copy(update={"study": terms, "hash": None}).freeze()

    def save_figure(chart: Any, path: Path, *_: Any, **__: Any) -> None:
        charts[Path(path).name] = chart.to_dict()

    with inside(home):
        runs = runs_folder(study)
        with tarfile.open(HERE / "goldens_runs" / f"{study}.tar.xz") as archive:
            archive.extractall(runs, filter="data")
        before = _files(runs)
        claims = run_study(study, stage, preregistration, save_figure, home)
        made = sorted(_files(runs) - before)
        assert not made, f"runs were simulated, not read: {made}"
        return page_digest(claims, Path("out"), charts)


def _files(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.suffix not in ("", ".lock")}


for _study in (*SMALL, *FULL):
    ENTRIES[f"page.{_study}"] = lambda home, study=_study: page(study, home)
ENTRIES["page.transfer.search"] = lambda home: page("transfer", home, "search")
ENTRIES["page.transfer.compare"] = lambda home: page("transfer", home, "front")


# -- the main job on a real model

SLOW = """\
title: SmolLM2-135M-Instruct on GSM8K, shortened
model: {model}
data: {{path: {data}/gsm8k_train.jsonl, prompt: question, response: answer}}
lora: {{rank: 32, alpha: 64}}
training:
  {{max_steps: 12, per_device_train_batch_size: 8, learning_rate: 2.0e-4, max_length: 128}}
behaviors:
- {{probe_set: refusal, n_probes: 24, prefixes: [Sorry], keep_passing: true}}
- {{probe_set: over_refusal, n_probes: 24, prefixes: [Sorry], keep_passing: true}}
- {{probe_set: arithmetic, n_probes: 10, keep_passing: true}}
- {{probe_set: general_knowledge, n_probes: 10, keep_passing: true}}
probe_every: 4
run_dir: {run}
"""


@entry("slow.prepare")
def _prepare(_home: Path) -> dict[str, Any]:
    """Teach the model anew, since HOME is fresh; copy it to TAUGHT, which `slow.watch` needs."""
    seeded(0)
    made = prepare_smollm2(DATA)
    if not TAUGHT.exists():
        shutil.copytree(made, TAUGHT)
    return _model_of(made)


def _model_of(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return {
        "weights": sha(load_file(folder / "model.safetensors")),
        "tokenizer": sha((folder / "tokenizer.json").read_bytes()),
    }


@entry("slow.watch")
def _watch(home: Path) -> dict[str, Any]:
    config = home / "watch.yaml"
    config.write_text(SLOW.format(model=TAUGHT, data=DATA, run=home / "run"))
    seeded(0)
    with inside(home):
        watch(config)
    names = ("refusal", "over_refusal", "arithmetic", "general_knowledge")
    return {"model": _model_of(TAUGHT)} | of_record(home / "run", names)


# ------------------------------------------------------------------------------------ commands


def chosen(name: str, only: Sequence[str], skip: Sequence[str]) -> bool:
    def among(prefixes: Sequence[str]) -> bool:
        return any(name == one or name.startswith(f"{one}.") for one in prefixes)

    return (not only or among(only)) and not among(skip)


def collect(out: Path, only: Sequence[str], skip: Sequence[str]) -> int:
    warnings.simplefilter("ignore")
    document = json.loads(out.read_text()) if out.exists() else {"entries": {}}
    failed = 0
    home = Path(tempfile.mkdtemp(prefix="goldens-"))
    os.environ["HOME"] = str(home / "home")  # no cached start, no cached model
    (home / "home").mkdir()
    import riprap

    print(f"riprap: {riprap.__file__}", flush=True)
    document["about"] = about()
    for name, make in ENTRIES.items():
        if not chosen(name, only, skip):
            continue
        folder = home / name
        folder.mkdir()
        began = time.time()
        try:
            with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stderr(nowhere):
                document["entries"][name] = make(folder)
        except Exception as error:
            if os.environ.get("GOLDENS_RAISE"):
                raise
            failed += 1
            print(f"{name}: FAILED: {type(error).__name__}: {str(error)[:300]}", flush=True)
            continue
        print(f"{name}: {time.time() - began:.1f} s", flush=True)
        out.write_text(json.dumps(document, indent=0, sort_keys=True) + "\n")
    shutil.rmtree(home, ignore_errors=True)
    return 1 if failed else 0


def about() -> dict[str, Any]:
    import platform

    packages = ("torch", "transformers", "trl", "peft", "numpy", "scipy", "altair", "datasets")
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return {
        "python": platform.python_version(),
        "cpu": cpu[1] if cpu else "",
        "packages": {name: metadata.version(name) for name in packages},
    }


def differences(before: Any, after: Any, where: tuple[str, ...] = ()) -> Iterator[str]:
    """Yield the differences, each with its first step if there are steps."""
    if before == after:
        return
    path = ".".join(where)
    if not (isinstance(before, dict) and isinstance(after, dict)):
        yield f"{path}: {str(before)[:24]} -> {str(after)[:24]}"
    elif "steps" in before and "steps" in after and "sha" in before:
        steps, kinds = (_changed(before, after, part) for part in ("steps", "kinds"))
        first = f"first at step {min(map(int, steps))}" if steps else "order of rows"
        counts = f"{len(steps)} steps differ; count {before['count']} -> {after['count']}"
        yield f"{path}: {first}, {counts}" + (f"; of {', '.join(kinds)}" if kinds else "")
    else:
        for key in sorted({*before, *after}):
            if key not in before or key not in after:
                yield f"{path}.{key}: only {'after' if key in after else 'before'}"
            else:
                yield from differences(before[key], after[key], (*where, key))


def _changed(before: dict[str, Any], after: dict[str, Any], part: str) -> list[str]:
    one, two = before.get(part, {}), after.get(part, {})
    return sorted(key for key in {*one, *two} if one.get(key) != two.get(key))


def compare(first: Path, second: Path, only: Sequence[str], skip: Sequence[str]) -> int:
    before, after = (json.loads(file.read_text()) for file in (first, second))
    if before["about"] != after["about"]:
        print(f"(made with other versions: {before['about']} / {after['about']})")
    counts = {"same": 0, "same but for texts": 0, "DIFFERS": 0}
    for name in sorted({*before["entries"], *after["entries"]}):
        if not chosen(name, only, skip):
            continue
        pair = [document["entries"].get(name) for document in (before, after)]
        if None in pair:
            found = [f"not collected {'after' if pair[0] else 'before'}"]
        else:
            found = list(differences(*pair))
        paths = [difference.split(":")[0] for difference in found]
        real = [d for d, path in zip(found, paths, strict=True) if ".texts." not in f".{path}."]
        result = "DIFFERS" if real else "same but for texts" if found else "same"
        counts[result] += 1
        shown = real or [path.replace("texts.", "") for path in paths]
        more = f", and {len(shown) - 6} more" if len(shown) > 6 else ""
        print(f"{name}: {result}" + (f" ({'; '.join(shown[:6])}{more})" if found else ""))
    print(", ".join(f"{count} {result}" for result, count in counts.items()))
    return int(counts["DIFFERS"] > 0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("collect")
    command.add_argument("out", type=Path)
    command = commands.add_parser("compare")
    command.add_argument("before", type=Path)
    command.add_argument("after", type=Path)
    for command in commands.choices.values():
        command.add_argument("--only", nargs="+", default=[], metavar="NAME")
        command.add_argument("--skip", nargs="+", default=[], metavar="NAME")
    commands.add_parser("list", help="names of all entries")
    options = parser.parse_args()
    if options.command == "list":
        print("\n".join(ENTRIES))
        return 0
    if options.command == "compare":
        return compare(options.before, options.after, options.only, options.skip)
    return collect(options.out.resolve(), options.only, options.skip)


if __name__ == "__main__":
    sys.exit(main())
