# ruff: noqa: D101, D102, D103, D107
"""Golden outputs: what the code computes, bit for bit, before and after it was moved about.

    python tools/goldens.py collect OUT.json [--only NAME ...] [--skip slow]
    python tools/goldens.py compare BEFORE.json AFTER.json [--only NAME ...]

Names are prefixes: `--only training` is all entries that begin with `training`. `collect` puts what
it finds into OUT.json beside what is there already. Floats are kept as `float.hex`, long arrays as
SHA-256. Every riprap import is in the adapter below. Bits are comparable on one machine only.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import enum
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
from pathlib import Path
from typing import Any

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_name] = "1"
os.environ.update(TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1", TQDM_DISABLE="1")

HERE = Path(__file__).resolve().parent
KEPT_RUNS = HERE / "goldens_runs"  # cached runs from which pages are remade, STUDY.tar.xz
DATA = Path(os.environ.get("GOLDENS_DATA", "/work/shared/data"))
TAUGHT = Path(os.environ.get("GOLDENS_SMOLLM2", "/tmp/smollm2-refusal"))  # made by slow.prepare

# ------------------------------------------------------------------------------------- adapter
# The only part that knows riprap's modules and names.


def library() -> types.SimpleNamespace:
    """The public names that trainings use."""
    from riprap.behaviors.margins import token_margin

    from riprap import Behavior, Monitor, Protocol, diagnosis, guards, selection, signals
    from riprap.guards import keeper

    return types.SimpleNamespace(
        Behavior=Behavior,
        Monitor=Monitor,
        Protocol=Protocol,
        diagnosis=diagnosis,
        guards=guards,
        keeper=keeper,
        selection=selection,
        signals=signals,
        token_margin=token_margin,
    )


def reader(source: Any) -> Any:
    """Of a run's folder, or of a monitor's record: readings, margins(name), alerts, actions."""
    from riprap.record import Reader

    return Reader(source)


def protocol_files() -> dict[str, Path]:
    """All shipped and preregistered protocols by name, wherever they lie."""
    import riprap

    folders = [Path(riprap.__file__).parent / "protocols"]
    return {file.stem: file for folder in folders for file in sorted(folder.glob("*.yaml"))}


def load_protocol(name: str) -> Any:
    """A protocol by name, not verified yet."""
    from riprap.detectors import Protocol

    return Protocol.load(protocol_files()[name])


def fingerprints() -> Iterator[tuple[str, Callable[[], Any]]]:
    """Every world and ground, by name, with what gives its fingerprint."""
    import dataclasses as dc

    from riprap.studies.circuit import ground
    from riprap.studies.depth.plan import Plan
    from riprap.studies.depth.simulate import DepthWorld
    from riprap.studies.worlds import (
        Biographies,
        BiographiesConfig,
        FactsConfig,
        FactsWorld,
        ToyConfig,
        ToyWorld,
    )
    from riprap.studies.worlds.continual import ContinualConfig, ContinualWorld
    from riprap.studies.worlds.continual_rows import Words

    small = {
        "frames": 3,
        "verbs": 3,
        "harmful": 6,
        "harmless": 6,
        "numbers": 4,
        "letters": 6,
        "relations": 2,
        "subjects": 6,
        "disputed": 6,
        "values": 8,
        "kinds": 3,
    }
    yield "toy", lambda: ToyWorld().fingerprint
    yield "toy config", lambda: dc.asdict(ToyConfig())
    yield "toy, 300 steps", lambda: ToyWorld(ToyConfig(start_steps=300)).fingerprint
    yield "facts", lambda: FactsWorld().fingerprint
    yield "facts config", lambda: dc.asdict(FactsConfig())
    yield "facts, 32", lambda: FactsWorld(FactsConfig(facts=32)).fingerprint
    yield "continual", lambda: ContinualWorld().fingerprint
    yield "continual config", lambda: dc.asdict(ContinualConfig())
    yield "continual, small", lambda: ContinualWorld(ContinualConfig(Words(small))).fingerprint
    yield "biographies", lambda: Biographies().fingerprint
    yield "biographies config", lambda: dc.asdict(BiographiesConfig())
    yield "biographies, 2 layers", lambda: Biographies(BiographiesConfig(layers=2)).fingerprint
    yield "circuit's ground", lambda: ground.ground(ToyWorld())
    for degree in Plan.of(load_protocol("depth")).degrees:
        yield f"depth {degree.name}", lambda degree=degree: DepthWorld(degree).fingerprint


def study_plan(study: str) -> Any:
    """The plan class of a study."""
    from importlib import import_module

    return import_module(f"riprap.studies.{study}.plan").Plan


def demo(folder: Path) -> Path:
    """Run the main job under `folder`; gives the run's own folder."""
    from riprap.studies import demo as job

    return Path(job.run(1000, folder, quiet=True)["run"])


def study_module(study: str) -> Any:
    """The module of a study with `run`, `Protocol`, `save`, `in_parallel` (and `REFUSING`)."""
    from importlib import import_module

    return import_module(f"riprap.studies.{study}.run")


def runs_folder(study: str) -> Path:
    """Where a study's cached runs lie, relative to the working directory."""
    return Path("runs", study)


def select(data: Path, model: Path, out: Path, **given: Any) -> dict[str, Any]:
    """What `riprap select` does; files end up in `out`."""
    from riprap.launch.config import DataConfig
    from riprap.launch.select import SelectConfig, select_rows

    fields = DataConfig(path=str(data))
    return select_rows(SelectConfig(data=fields, model=str(model), out=out, **given), quiet=True)


def diagnose(base: Path, tuned: Path, never: Path, out: Path) -> Path:
    """What `riprap diagnose` does; gives the JSON file that it writes."""
    from typer.testing import CliRunner

    from riprap.cli import app

    asked = ["--behaviors", "refusal", "--behaviors", "over_refusal", "--openers", "Sorry"]
    asked += ["--probes", "12", "--never", str(never), "--out", str(out), "--json"]
    ran = CliRunner().invoke(app, ["diagnose", str(base), str(tuned), *asked])
    if ran.exit_code not in (0, 2):
        raise RuntimeError(f"riprap diagnose: {ran.output}") from ran.exception
    return out / "diagnosis.json"


def pack_rows(name: str) -> list[dict[str, Any]]:
    """Rows of a shipped pack."""
    from riprap.behaviors import packs

    return list(packs.rows(name))


def prepare_smollm2(data: Path) -> Path:
    """What `riprap study smollm2 --prepare` does, anew; gives the model's folder."""
    from riprap.studies.smollm2.teaching import make

    return Path(make(data)["model"])


def watch(config: Path) -> None:
    """What `riprap watch CONFIG` does."""
    from riprap.launch import WatchConfig, watched_run

    watched_run(WatchConfig.load(config), quiet=True)


# --------------------------------------------------------------------------- values and digests


def exact(value: Any) -> Any:
    """Plain JSON in which every float is exact."""
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
    """SHA-256 of a value: of the bytes, or of exact JSON."""
    if isinstance(value, str):
        value = value.encode()
    if not isinstance(value, bytes):
        value = json.dumps(exact(value), sort_keys=True).encode()
    return hashlib.sha256(value).hexdigest()


def array(values: Sequence[Any]) -> dict[str, Any]:
    """A long array: digest, length and a few first values."""
    values = list(values)
    return {"sha": sha(values), "count": len(values), "first": exact(values[:4])}


def by_step(rows: Iterable[tuple[int, Any]], kinds: Sequence[str] = ()) -> dict[str, Any]:
    """Rows of (step, …): one digest over all, a short one a step, and one a kind."""
    listed, steps, own = [], {}, {}
    for index, (step, row) in enumerate(rows):
        listed.append([step, exact(row)])
        steps.setdefault(str(step), []).append(listed[-1])
        if kinds:
            own.setdefault(kinds[index], []).append(listed[-1])
    short = {step: sha(found)[:8] for step, found in steps.items()}
    by_kind = {kind: sha(found)[:8] for kind, found in own.items()}
    return {
        "sha": sha(listed),
        "count": len(listed),
        "first": listed[:2],
        "last": listed[-2:],
        "steps": short,
        **({"kinds": by_kind} if kinds else {}),
    }


def of_record(source: Any, behaviors: Sequence[str]) -> dict[str, Any]:
    """Readings, margins, alerts and actions of a record; texts are told apart."""
    found = reader(source)
    readings, alerts, actions = found.readings(), found.alerts(), found.actions()
    timed = {r.signal for r in readings if r.unit in ("s", "seconds")}
    readings = [r for r in readings if r.signal not in timed]
    return {
        "readings": by_step(
            [(r.step, [r.behavior, r.signal, r.value, r.state, r.layer, r.unit]) for r in readings],
            [r.signal for r in readings],
        ),
        "margins": {
            name: by_step(
                (step, [str(values.dtype), values]) for step, values in found.margins(name).items()
            )
            for name in behaviors
        },
        "alerts": by_step(
            (
                a.step,
                [
                    *(a.behavior, a.level, a.detector, a.forecast),
                    [[r.step, r.behavior, r.signal, r.value] for r in a.readings],
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
    """Digests of the weights, of what the optimizer remembers, and of the random generators."""
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

Entry = Callable[[Path], dict[str, Any]]  # given an empty folder of its own
ENTRIES: dict[str, Entry] = {}


def entry(name: str) -> Callable[[Entry], Entry]:
    def add(made: Entry) -> Entry:
        ENTRIES[name] = made
        return made

    return add


STUDIES = (
    *("chosen", "circuit", "concentrated", "continual", "depth", "detectors", "detour"),
    *("guarded", "spurious", "steep", "toy", "transfer", "verdicts"),
)


@entry("protocols")
def _protocols(_home: Path) -> dict[str, Any]:
    files, found = protocol_files(), {}
    assert set(files) == {*STUDIES, "default"}, f"protocols found: {sorted(files)}"
    for name in sorted(files):
        protocol = load_protocol(name)
        protocol.verify()
        found[name] = {
            "bytes": sha(files[name].read_bytes()),
            "hash": protocol.hash,
            "content_hash": protocol.content_hash(),
            "document": sha(protocol.model_dump(mode="json")),
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
        plan = study_plan(study).of(load_protocol(study))
        told = {"digest": plan.digest(), "json": sha(plan.model_dump_json())}
        told |= {"confirmatory": list(plan.confirmatory), "exploratory": list(plan.exploratory)}
        for kind in (False, True):
            for name in ("runs", "jobs", "conditions"):
                if not callable(method := getattr(plan, name, None)):
                    continue
                try:
                    listed = method(kind)
                except TypeError:
                    listed = method()
                # plain values: (degree, seed), (condition, task, seed), Condition(task, held), …
                told[f"{name}, {'exploratory' if kind else 'confirmatory'}"] = sha(
                    [exact(_plain(one)) for one in listed]
                )
        found[study] = told
    return found


def _plain(value: Any) -> Any:
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    return [_plain(one) for one in value] if isinstance(value, tuple) else value


@entry("demo")
def _demo(home: Path) -> dict[str, Any]:
    return of_record(demo(home), ("A", "B", "over_refusal"))


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
    """A net that has learned 24 old answers; two behaviours on them, and a task that harms."""

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
        """The same as probes that are read from logits, as signals of features need them."""
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


_GROUND: list[Ground] = []


def ground() -> Ground:
    if not _GROUND:
        _GROUND.append(Ground())
    return _GROUND[0]


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
    patience = g.lib.keeper.PATIENCE
    guard = None if make_guard is None else make_guard(g)
    options = {} if signals is None else {"signals": signals(g)}
    monitor = g.lib.Monitor(behaviors(g), every=5, **options) if watched else None
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
    g.lib.keeper.PATIENCE = patience
    found = {"state": state_of(model, optimizer), "losses": by_step(enumerate(losses, 1))}
    if monitor is not None:
        found |= of_record(monitor.record, [b.name for b in monitor.behaviors])
        found["broken"] = exact(monitor.broken())
        found["should_stop"] = bool(monitor.should_stop)
    return found


def _keeper_that_rolls_back(g: Ground) -> Any:
    """Replay of what does not help, and little patience."""
    g.lib.keeper.PATIENCE = 5
    useless = g.lib.guards.Replay(g.lessons(2), loss=g.loss, fraction=0.5)
    return g.lib.guards.Keeper(replay=useless, rollback=g.lib.guards.Rollback(every=2, cut=0.5))


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
    "replay_of_pools": lambda g, of: of.Replay(of.Pools(g.pools(), rows=8), fraction=0.5),
    "adaptive_replay": lambda g, of: of.AdaptiveReplay([(g.old, g.answers)], loss=g.loss, every=1),
    "ewc": lambda g, of: of.EWC(strength=30.0),
    "ewc_of_margins": lambda g, of: of.EWC(of="margin", strength=0.1),
    "online_ewc": lambda g, of: of.OnlineEWC(strength=30.0, every=3),
    "si": lambda g, of: of.SI(strength=1.0, refresh=1),
    "mas": lambda g, of: of.MAS(strength=1e-4),
    "kl": lambda g, of: of.KL(strength=1.0),
    "kl_on_batches": lambda g, of: of.KL(batches=[{"input_ids": g.old[i::3]} for i in range(3)]),
    "constrained_tokens": lambda g, of: of.ConstrainedTokens(g.responses(3), strength=0.5),
    "feature_anchor": lambda g, of: of.FeatureAnchor(strength=0.1, layer="blocks.1", reselect=3),
    "feature_anchor_of_drift": lambda g, of: of.FeatureAnchor(
        strength=0.1, layer="blocks.1", count=4, drifted=g.wandered(), both_sides=True, reselect=3
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
    "rollback": lambda g, of: of.Rollback(every=2, level="warning", cut=0.5, at_most=2),
    "on_alert_agem": lambda g, of: of.OnAlert(of.AGEM(refresh=1), level="watch"),
    "on_alert_rollback": lambda g, of: of.OnAlert(
        of.Rollback(every=2, level="watch"), level="watch", until="end"
    ),
    "keeper_of_pools": lambda g, of: of.Keeper(replay=of.Pools(g.pools(), rows=8)),
    "keeper_of_batches": lambda g, of: of.Keeper(
        replay=of.Replay([(g.old, g.answers)], loss=g.loss), rollback=False
    ),
    "keeper_that_rolls_back": lambda g, of: _keeper_that_rolls_back(g),
}

HARSH = {"steps": 100, "adam": False, "rate": 0.05}  # behaviours break, and alerts are raised
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
        refresh=4,
        seed=1,
    )
    monitor = g.lib.Monitor(g.behaviors(), every=5)
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
        (one.step, [one.rows, one.of, one.strategy, one.ratio, one.numbers, bool(one.detail)])
        for one in selector.taken
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
            told = select(
                data,
                model,
                out,
                strategy=strategy,
                ratio=ratio,
                id="id",
                category="kind",
                behaviors=("over_refusal",),
                openers=("sorry",),
                lora_rank=2,
                batch=4,
            )
            scores = pd.read_parquet(out / "scores.parquet")
            found[f"{strategy} {ratio}"] = {
                "columns": {name: array(scores[name].tolist()) for name in scores},
                "chosen": scores["id"][scores["chosen"]].tolist(),
                "chosen.jsonl": sha((out / "chosen.jsonl").read_bytes()),
                "groups": sha(told["groups"]),
                "worst": sha(told["worst"]),
                "texts": {
                    "audit": sha((out / "audit.html").read_text().replace(str(home), "HOME"))
                },
            }
    return found


# -- diagnosis


def lookup_parts() -> types.SimpleNamespace:
    """A model that looks answers up, and what it is asked; as in tests/diagnosis."""
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
        told = lib.diagnosis.recover(
            model,
            parts.behavior(),
            parts.examples,
            loss=parts.loss,
            reference=parts.Lookup(),
            control=parts.lose(parts.Lookup(), True, 1.0),
        )
        found[name] = {
            "verdict": str(told.verdict),
            "evidence": exact(told.evidence),
            "curve": exact(told.curve),
            "texts": {"reason": sha(told.reason)},
        }
    return found


@entry("diagnosis.basin")
def _basin(_home: Path) -> dict[str, Any]:
    lib, g = library(), ground()
    seeded(0)
    model = g.start().eval()
    told = lib.diagnosis.basin(model, g.behaviors(), 4, points=11, seed=5)
    found = {}
    for name in ("first", "second"):
        profile = told[name]
        found[name] = {
            "alphas": array(profile.alphas.tolist()),
            "scores": array(profile.scores.flatten().tolist()),
            "visage": exact(profile.visage),
            "width": exact(profile.width),
            "widths": array(profile.widths.flatten().tolist()),
            "mean_score": exact(profile.mean_score),
            "start": exact(profile.start),
            "beyond": exact(profile.beyond),
        }
    return found | {"width": exact(told.width)}


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
        return lib.Behavior.likelihood(pack, tokenizer, prompts, [opener] * len(prompts))

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
    timed = re.compile(r"second|peak|time|GiB|version|commit|path|folder|^base$|^tuned$|^run$")

    def numbers(value: Any) -> Any:
        """What remains without texts, times and paths."""
        if isinstance(value, dict):
            return {k: numbers(v) for k, v in value.items() if not timed.search(k)}
        if isinstance(value, list):
            return [numbers(one) for one in value]
        return None if isinstance(value, str) else exact(value)

    found = numbers(document)
    return {
        "weights": sha(dict(model.state_dict())),
        "keys": sorted(document),
        "parts": {key: sha(json.dumps(part, sort_keys=True)) for key, part in found.items()},
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
UNPACKED = ("spurious", "verdicts", "concentrated", "guarded", "continual", "transfer")


@contextlib.contextmanager
def of_study(study: str, charts: dict[str, str], home: Path) -> Iterator[Any]:
    """The study's module: in one process, its charts caught, and its plan made small."""
    module = study_module(study)
    kept = dict(vars(module))
    protocol = load_protocol(study)
    if study in SMALL:
        terms = protocol.study | SMALL[study]
        protocol = protocol.model_copy(update={"study": terms, "hash": None}).freeze()

    class Named(type(protocol)):  # type: ignore[misc]
        @classmethod
        def named(cls, name: str) -> Any:
            assert name == study
            return protocol

    def serial(work: Callable[..., Any], jobs: Sequence[tuple[Any, ...]], _workers: int) -> list:
        return [work(*job) for job in jobs]

    def caught(chart: Any, path: Path, *_: Any, **__: Any) -> None:
        text = json.dumps(chart.to_dict(), sort_keys=True)
        seen: dict[str, int] = {}
        text = re.sub(
            r"\b(view|param|selector|concat|layer)_\d+",
            lambda m: f"{m[1]}_n{seen.setdefault(m[0], len(seen))}",
            text,
        )
        charts[Path(path).name] = sha(text)

    patched = {"Protocol": Named, "in_parallel": serial, "save": caught, "REFUSING": home}
    try:
        for name, value in patched.items():
            if name in kept:
                setattr(module, name, value)
        yield module
    finally:
        for name in patched:
            if name in kept:
                setattr(module, name, kept[name])


def texts_of(folder: Path) -> dict[str, Any]:
    """Digests of the text files of results; the line of how they were made is told apart."""
    found: dict[str, Any] = {}
    for file in sorted(folder.rglob("*")):
        if file.suffix not in (".md", ".json", ".csv", ".html"):
            continue
        lines = file.read_text().splitlines()
        made = [line for line in lines if line.startswith("Made by ")]
        rest = [line for line in lines if not line.startswith("Made by ")]
        found[file.name] = {"sha": sha("\n".join(rest)), "lines": len(rest)}
        if made:
            found[file.name]["texts"] = {"made": [re.sub(r"\{.*?\}", "{}", m) for m in made]}
    return found


def page(study: str, home: Path, act: str = "run") -> dict[str, Any]:
    source = KEPT_RUNS / f"{study}.tar.xz"
    if not source.is_file():
        raise FileNotFoundError(f"{source}: make it by `simulate` with the old code")
    charts: dict[str, str] = {}
    with inside(home):
        with tarfile.open(source) as archive:
            archive.extractall(runs_folder(study), filter="data")
        before = _files(runs_folder(study))
        with of_study(study, charts, home) as module:
            told = getattr(module, act)(Path("out"))
        made = sorted(_files(runs_folder(study)) - before)
        assert not made, f"runs were simulated, not read: {made}"
        told = {key: value for key, value in told.items() if key != "out"}
        return {"told": exact(told), "files": texts_of(Path("out")), "charts": charts}


def _files(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.suffix not in ("", ".lock")}


for _study in (*SMALL, *(s for s in UNPACKED if s != "transfer")):
    ENTRIES[f"page.{_study}"] = lambda home, study=_study: page(study, home)
ENTRIES["page.transfer.search"] = lambda home: page("transfer", home, "search")
ENTRIES["page.transfer.compare"] = lambda home: page("transfer", home, "compare")


# -- the main job on a real model

SLOW = """\
title: SmolLM2-135M-Instruct on GSM8K, shortened
model: {model}
data: {{path: {data}/gsm8k_train.jsonl, prompt: question, response: answer}}
lora: {{rank: 32, alpha: 64}}
training: {{steps: 12, batch: 8, learning_rate: 2.0e-4, max_length: 128}}
behaviors:
- {{pack: refusal, n: 24, openers: [Sorry], keep_passing: true}}
- {{pack: over_refusal, n: 24, openers: [Sorry], keep_passing: true}}
- {{pack: arithmetic, n: 10, keep_passing: true}}
- {{pack: general_knowledge, n: 10, keep_passing: true}}
every: 4
run: {run}
"""


@entry("slow.prepare")
def _prepare(_home: Path) -> dict[str, Any]:
    """HOME is fresh, so that it is taught anew; kept in TAUGHT for slow.watch, if not there yet."""
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
            with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
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
    from importlib import metadata

    packages = ("torch", "transformers", "trl", "peft", "numpy", "scipy", "altair", "datasets")
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return {
        "python": platform.python_version(),
        "cpu": cpu[1] if cpu else "",
        "packages": {name: metadata.version(name) for name in packages},
    }


def simulate(studies: Sequence[str], results: Path) -> int:
    """Make the cached runs that pages are remade from; with the old code, once.

    Small plans are run; of the others the runs in RESULTS, the committed ones, are taken apart.
    """
    warnings.simplefilter("ignore")
    home = Path(tempfile.mkdtemp(prefix="goldens-"))
    os.environ["HOME"] = str(home / "home")
    for study in studies or (*SMALL, *UNPACKED):
        began, work = time.time(), home / study
        with inside(work), of_study(study, {}, work) as module:
            if study in SMALL:
                module.run(Path("out"))
            else:
                unpack(study, results / study, runs_folder(study))
            KEPT_RUNS.mkdir(exist_ok=True)
            with tarfile.open(KEPT_RUNS / f"{study}.tar.xz", "w:xz") as archive:
                archive.add(runs_folder(study), ".", filter=_without_weights)
        print(f"{study}: {time.time() - began:.1f} s", flush=True)
    shutil.rmtree(home, ignore_errors=True)
    return 0


def _without_weights(info: tarfile.TarInfo) -> tarfile.TarInfo | None:
    return None if info.name.endswith(".safetensors") else info


def unpack(study: str, results: Path, runs: Path) -> None:
    """Write committed results as the cached runs that they were made from."""
    plan = study_plan(study).of(load_protocol(study))
    runs.mkdir(parents=True, exist_ok=True)

    def read(name: str) -> Any:
        return json.loads((results / name).read_text())

    def write(name: str, run: Any) -> None:
        file = runs / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(run))

    if study == "spurious":
        for run in read("confirmatory.json"):
            name = f"{plan.digest()}-{run['task']}-{run['frozen']}-{run['seed']}.json"
            write(name.replace(" ", "_"), run)
    elif study == "verdicts":
        for run in (*read("confirmatory.json"), *read("exploratory.json")):
            case = next(
                one
                for one in plan.cases
                if one in (run["case"], f"{run['world']}, {run['case']}")
                or (one.startswith(run["world"]) and one.endswith(run["case"]))
            )
            short = case.replace(" ", "_").replace(",", "")
            write(f"{plan.digest()}-{short}-{run['seed']}.json", run)
    elif study == "concentrated":
        terms = hashlib.sha256(plan.model_dump_json().encode()).hexdigest()[:8]
        for run in read("confirmatory.json"):
            write(f"{run['model']}-{run['seed']}-{run['role']}-{terms}.json", run)
    elif study == "guarded":
        for run in read("confirmatory.json"):
            value = plan.knobs.get(run["guard"], 0.0)
            write(f"{run['guard']}-{value:g}-{run['seed']}-{plan.steps}.json", run)
    elif study == "continual":
        held = read("continual.json")
        rows, audit = held["runs"], held["audit"]
        plain = [r for r in rows if r["method"] == "plain" and r["order"] == "given"]
        share = len(audit) // len(plain)
        for run in rows:
            at = plain.index(run) if run in plain else None
            own = [] if at is None else audit[at * share : (at + 1) * share]
            name = f"{run['method']}-{run['value']:g}-{run['order']}-{run['seed']}.json"
            write(f"{plan.world[:12]}/{name}", run | {"audit": own})
    elif study == "transfer":
        for run in read("search.json"):
            terms = f"{plan.steps}-{plan.every}"
            name = f"{run['guard']}-{run['value']:g}-{run['task']}-{run['seed']}-{terms}.json"
            write(f"{plan.world[:12]}/{name}", run)
        groups: dict[str, list[Any]] = {}
        for point in read("front.json"):
            name = f"front-{point['task']}-{point['seed']}-{plan.digest()}.json"
            groups.setdefault(name, []).append(point)
        for name, points in groups.items():
            write(f"{plan.world[:12]}/{name}", points)


def differences(before: Any, after: Any, where: tuple[str, ...] = ()) -> Iterator[str]:
    """What differs, each with its first step where there are steps."""
    if before == after:
        return
    if isinstance(before, dict) and isinstance(after, dict):
        if "steps" in before and "steps" in after and "sha" in before:
            one, two = before["steps"], after["steps"]
            apart = sorted(int(s) for s in {*one, *two} if one.get(s) != two.get(s))
            kinds = [before.get("kinds", {}), after.get("kinds", {})]
            named = sorted(k for k in {*kinds[0], *kinds[1]} if kinds[0].get(k) != kinds[1].get(k))
            said = f"first differing step {apart[0]}" if apart else "order of rows"
            said += f", {len(apart)} steps differ; count {before['count']} -> {after['count']}"
            yield f"{'.'.join(where)}: {said}" + (f"; of {', '.join(named)}" if named else "")
            return
        for key in sorted({*before, *after}):
            if key not in before or key not in after:
                yield f"{'.'.join((*where, key))}: only {'after' if key in after else 'before'}"
            else:
                yield from differences(before[key], after[key], (*where, key))
        return
    yield f"{'.'.join(where)}: {str(before)[:60]} -> {str(after)[:60]}"


def compare(first: Path, second: Path, only: Sequence[str], skip: Sequence[str]) -> int:
    before, after = (json.loads(file.read_text()) for file in (first, second))
    if before["about"] != after["about"]:
        print(f"(made under other versions: {before['about']} / {after['about']})")
    one, two, worst = before["entries"], after["entries"], 0
    for name in sorted({*one, *two}):
        if not chosen(name, only, skip):
            continue
        if name not in one or name not in two:
            said = [f"not collected {'before' if name in two else 'after'}"]
        else:
            said = list(differences(one[name], two[name]))
        worst = max(worst, bool(said))
        texts = bool(said) and all(".texts." in f".{one.split(':')[0]}." for one in said)
        told = "DIFFERS in texts alone" if texts else "DIFFERS"
        more = f" (and {len(said) - 6} more)" if len(said) > 6 else ""
        print(f"{name}: " + (f"{told} ({'; '.join(said[:6])}{more})" if said else "same"))
    return int(worst)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    asked = commands.add_parser("collect")
    asked.add_argument("out", type=Path)
    judged = commands.add_parser("compare")
    judged.add_argument("before", type=Path)
    judged.add_argument("after", type=Path)
    for one in (asked, judged):
        one.add_argument("--only", nargs="+", default=[])
        one.add_argument("--skip", nargs="+", default=[])
    made = commands.add_parser("simulate", help="the cached runs; with the old code, once")
    made.add_argument("studies", nargs="*", default=[])
    made.add_argument("--results", type=Path, default=HERE.parent / "results")
    commands.add_parser("list")
    given = parser.parse_args()
    if given.command == "list":
        print("\n".join(ENTRIES))
        return 0
    if given.command == "simulate":
        return simulate(given.studies, given.results.resolve())
    if given.command == "compare":
        return compare(given.before, given.after, given.only, given.skip)
    return collect(given.out.resolve(), given.only, given.skip)


if __name__ == "__main__":
    sys.exit(main())
