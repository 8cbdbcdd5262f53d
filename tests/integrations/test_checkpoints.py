"""The monitor's state lies in the checkpoint that the trainer has written, and nowhere else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import Trainer, TrainerCallback

from integrations.test_trackers import margins_of, training, watching
from riprap import Monitor
from riprap.errors import ConfigError
from riprap.integrations.hf import MonitorCallback
from riprap.record import Reader, load_state

pytestmark = [
    pytest.mark.filterwarnings("ignore:riprap. behavior"),
    pytest.mark.slow,
]
SAVING = {"save_strategy": "steps", "save_steps": 3, "max_steps": 9}


def states(folder: Path) -> dict[str, int]:
    """Steps of all states under a folder, by the path of their checkpoint."""
    return {
        str(file.parent.relative_to(folder)): load_state(file)["step"]
        for file in sorted(folder.rglob("riprap*.safetensors"))
    }


class BrokenEvaluation(Trainer):
    """Its evaluation fails once, before the checkpoint of that step is written."""

    fails = True

    def evaluate(self, *given: Any, **options: Any) -> dict[str, float]:
        if self.state.global_step == 6 and self.fails:
            raise RuntimeError("out of memory")
        return super().evaluate(*given, **options)


def test_a_failed_evaluation_leaves_nothing_that_breaks_resuming(tmp_path: Path) -> None:
    options = SAVING | {"eval_strategy": "steps", "eval_steps": 3}
    first = training(
        tmp_path / "out", [MonitorCallback(watching(run_dir=tmp_path / "run"))], **options
    )
    first.__class__ = BrokenEvaluation
    with pytest.raises(RuntimeError, match="out of memory"):
        first.train()
    first.pop_callback(MonitorCallback).monitor.end()  # the process ends
    assert [path.name for path in (tmp_path / "out").glob("checkpoint-*")] == ["checkpoint-3"]
    assert states(tmp_path / "out") == {"checkpoint-3": 3}
    monitor = watching(run_dir=tmp_path / "run", resume=True)
    training(tmp_path / "out", [MonitorCallback(monitor)], **options).train(
        resume_from_checkpoint=True
    )
    assert monitor.step == 9
    assert sorted(margins_of(monitor)) == list(range(10))


@pytest.mark.parametrize(
    "options", [{"save_only_model": True}, {"save_total_limit": 1}, {"save_total_limit": 2}]
)
def test_rotation_and_saving_the_model_only(tmp_path: Path, options: dict[str, Any]) -> None:
    training(tmp_path, [MonitorCallback(watching())], **SAVING, **options).train()
    kept = {path.name: int(path.name.split("-")[1]) for path in tmp_path.glob("checkpoint-*")}
    assert states(tmp_path) == kept
    assert len(kept) == options.get("save_total_limit", 3)
    assert all((tmp_path / name / "model.safetensors").is_file() for name in kept)


def test_the_record_has_the_losses_and_the_checkpoints_of_the_trainer(tmp_path: Path) -> None:
    monitor = watching()
    options = SAVING | {"logging_steps": 2, "save_total_limit": 2}
    trainer = training(tmp_path, [MonitorCallback(monitor)], **options)
    trainer.train()
    events = Reader(monitor.record).events()
    losses = {e["step"]: e["facts"]["loss"] for e in events if e["kind"] == "training"}
    logged = {e["step"]: e["loss"] for e in trainer.state.log_history if "loss" in e}
    assert losses == logged
    assert list(losses) == [2, 4, 6, 8]
    saved = [e["facts"] for e in events if e["kind"] == "checkpoint"]
    assert [Path(facts["path"]).name for facts in saved] == [f"checkpoint-{n}" for n in (3, 6, 9)]
    assert saved[-1]["kept"] == sorted(path.name for path in tmp_path.glob("checkpoint-*"))
    assert len(saved[-1]["kept"]) == 2


def test_a_checkpoint_that_the_trainer_did_not_write_is_not_made(tmp_path: Path) -> None:
    class NoCheckpoints(Trainer):
        def _save_checkpoint(self, model: Any, trial: Any) -> None:
            """As a trainer that uploads its checkpoints."""

    made = training(tmp_path, [MonitorCallback(watching())], **SAVING)
    made.__class__ = NoCheckpoints
    with pytest.warns(UserWarning, match="the trainer wrote no checkpoint .*checkpoint-3"):
        made.train()
    assert not list(tmp_path.glob("checkpoint-*"))


def test_the_state_is_read_from_the_checkpoint_that_the_trainer_resumes_from(
    tmp_path: Path,
) -> None:
    """Not from one of the same step in the output folder."""
    for name in ("mine", "other"):
        options: dict[str, Any] = SAVING | {"max_steps": 6}
        callback = MonitorCallback(watching(run_dir=tmp_path / name))
        training(tmp_path / f"out {name}", [callback], **options).train()
    monitor = watching(run_dir=tmp_path / "mine", resume=True)
    made = training(tmp_path / "out other", [MonitorCallback(monitor)], **SAVING)
    made.train(resume_from_checkpoint=str(tmp_path / "out mine" / "checkpoint-3"))
    assert monitor.step == 9
    foreign = watching(run_dir=tmp_path / "mine", resume=True)
    made = training(tmp_path / "out", [MonitorCallback(foreign)], **SAVING)
    before = Reader(tmp_path / "mine").readings()
    with pytest.raises(ConfigError, match=r"state is of another run than the record .*mine"):
        made.train(resume_from_checkpoint=str(tmp_path / "out other" / "checkpoint-3"))
    assert Reader(tmp_path / "mine").readings() == before


def test_a_checkpoint_without_a_state_does_not_hide_the_record(tmp_path: Path) -> None:
    """As after a crash between the trainer's checkpoint and the monitor's state."""
    callback = MonitorCallback(watching(run_dir=tmp_path / "run"))
    training(tmp_path, [callback], **SAVING).train()
    (tmp_path / "checkpoint-9" / "riprap.safetensors").unlink()
    before = Reader(tmp_path / "run").readings()
    again = watching(run_dir=tmp_path / "run", resume=True)
    made = training(tmp_path, [MonitorCallback(again)], **SAVING | {"max_steps": 12})
    with pytest.raises(
        ConfigError, match=r"no monitor state in .*checkpoint-9.*riprap.safetensors"
    ):
        made.train(resume_from_checkpoint=True)
    assert Reader(tmp_path / "run").readings() == before
    earlier = MonitorCallback(watching(run_dir=tmp_path / "run", resume=True))
    training(tmp_path, [earlier], **SAVING | {"max_steps": 12}).train(
        resume_from_checkpoint=str(tmp_path / "checkpoint-6")
    )
    assert earlier.monitor.step == 12


class Margins(TrainerCallback):
    """Reads the margin after a step from outside."""

    def __init__(self, step: int) -> None:
        self.step, self.margin = step, 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        from riprap.evaluation import evaluate

        if state.global_step == self.step:
            (behavior,) = watching().behaviors
            self.margin = float(evaluate(behavior, kwargs["model"]).margins.mean())


@pytest.mark.parametrize("stopped", ["by max_steps", "early"])
def test_the_last_step_is_read_before_the_best_model_is_loaded(
    tmp_path: Path, stopped: str
) -> None:
    from transformers import EarlyStoppingCallback

    best = {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss"}
    options = {"save_strategy": "steps", "save_steps": 4, "eval_strategy": "steps", "eval_steps": 4}
    last = 20 if stopped == "by max_steps" else 8
    monitor, seen = watching(probe_every=50), Margins(last)
    callbacks: list[Any] = [MonitorCallback(monitor), seen]
    if stopped == "early":
        callbacks.append(EarlyStoppingCallback(1))
    options |= {"max_steps": 20, "greater_is_better": True}  # the first is the best
    made = training(tmp_path, callbacks, **options, **best)
    made.train()
    assert made.state.global_step == last
    assert made.state.best_global_step < last
    assert margins_of(monitor)[last] == pytest.approx(seen.margin, rel=1e-5)


def test_each_trial_of_a_search_has_its_own_monitor(tmp_path: Path) -> None:
    optuna = pytest.importorskip("optuna")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    rates = [1e-4, 3e-1]
    callback = MonitorCallback(watching(run_dir=tmp_path / "run"))
    made = training(tmp_path / "out", [callback], "init", **SAVING)
    made.hyperparameter_search(
        direction="minimize",
        backend="optuna",
        n_trials=2,
        compute_objective=lambda metrics: metrics["eval_loss"],
        hp_space=lambda trial: {"learning_rate": trial.suggest_categorical("learning_rate", rates)},
        sampler=optuna.samplers.GridSampler({"learning_rate": rates}, seed=0),
    )
    steps = {f"run-{trial}/checkpoint-{step}": step for trial in (0, 1) for step in (3, 6, 9)}
    assert states(tmp_path / "out") == steps
    ends = []
    for trial in (0, 1):
        with Reader(tmp_path / "run" / f"run-{trial}") as reader:
            assert {r.step for r in reader.readings() if r.signal == "margin"} == set(range(10))
            ends.append([r.value for r in reader.readings() if r.signal == "margin"])
    assert ends[0][0] == ends[1][0]  # both begin with the same model
    assert min(a[-1] for a in ends) < 0 < max(a[-1] for a in ends)  # only one rate is harmful
    assert isinstance(callback.monitor, Monitor)
    assert callback.monitor.step == 9
