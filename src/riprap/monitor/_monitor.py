"""The monitor: signals, detectors and record around a training loop that it never changes."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from riprap._checks import CheckedCall, named, shown
from riprap._distributed import is_replica, rank, unwrap_model
from riprap._formatting import format_forecast, format_score
from riprap._text import html_table, html_text, shorten
from riprap._warnings import warn
from riprap.behaviors import Behavior
from riprap.conclusion import conclude
from riprap.detectors import AlertPolicy, BehaviorHistory, Power, RateSchedule, score
from riprap.errors import ConfigError, RecordError
from riprap.evaluation import (
    Autocast,
    ProtectedGradients,
    TrainingAutocast,
    find_layer,
    preserve_rng,
    refuse_packed,
)
from riprap.guards import Guard
from riprap.monitor._alert_tracker import AlertTracker
from riprap.monitor._announce import Announcer
from riprap.monitor._arguments import (
    check_arguments,
    check_autocast,
    check_budget,
    check_facts,
    check_guard,
    check_options,
    check_plan,
    check_trackers,
)
from riprap.monitor._budget import DEFAULT_BUDGET, Budget
from riprap.monitor._cost_meter import CostMeter
from riprap.monitor._deepspeed import EngineSession, engine_module, find_engine, refuse_guard
from riprap.monitor._keep_passing import passing_probes
from riprap.monitor._optimizers import require_optimizers, stale_optimizer, trained_parameters
from riprap.monitor._plan_check import PlanCheck
from riprap.monitor._planned_rates import Scheduler, check_scheduler, planned_rates
from riprap.monitor._probe_runner import ProbeRunner
from riprap.monitor._probe_schedule import ProbeSchedule
from riprap.monitor._probe_texts import ProbeTexts
from riprap.monitor._resilient_record import ResilientRecord
from riprap.monitor._run_metadata import run_metadata
from riprap.monitor._state import (
    FORMAT,
    check_state,
    load_margin_states,
    load_signals,
    named_parameters,
    parameter_names,
    wrap_state_errors,
)
from riprap.monitor._summary import cost_text, summarize
from riprap.monitor._trackers import Tracker, TrackerGroup
from riprap.monitor._watch_session import MonitoredRun, WatchSession
from riprap.monitor._watched_model import WatchedModel
from riprap.record import (
    ANSWERS,
    CHECKPOINT,
    GUARD,
    PLAN,
    TRAINING,
    Reader,
    Writer,
    to_dataframe,
    withdrawn_alerts,
)
from riprap.signals import Signal, default
from riprap.types import Action, Alert, Forecast, Level

if TYPE_CHECKING:
    import pandas as pd

NO_BUDGET = (
    "each of several ranks has all of the weights and a clock of its own, so the monitor has no "
    "budget: all ranks evaluate the probes at the same steps"
)


class Monitor(metaclass=CheckedCall):
    """Monitor of behaviors while a model is trained; it raises alerts before they break.

    Training with a monitor is bit-identical to training without it.

    Args:
        behaviors: the behaviors to monitor, with unique names.
        policy: detectors with their thresholds; None: `AlertPolicy.default()`.
        probe_every: the longest gap between two probe evaluations, in optimizer steps. Evaluations
            are denser at the start, and immediate if interference has used up too much margin.
            The budget may make the gaps longer, up to 5 times.
        run_dir: folder of the run's record, which must not hold a record of a run with steps yet;
            `{time}` in it becomes the present time. None keeps the record in memory.
        signals: signals to read; None: `signals.default()`.
        feature_layer: name of the module whose output is read as features; None: the middle layer
            of the model's layer stack.
        metadata: facts to store in the record, such as a configuration.
        resume: continue the record in `run_dir`, if there is one: from the step of
            `load_state_dict`, or from the start.
        gradient_storage: precision of the protected gradients between refreshes: "float32",
            "bfloat16" or "int8"; each behavior costs a copy of the trained parameters.
        modules: names of modules: gradients and updates are read in their parameters only. Empty:
            in all trained parameters. Effects of other parameters show at probe evaluations only.
        autocast: None: probes are evaluated in training's own autocast state; False: without
            autocast; a dtype: under autocast with it. Logits are in float32 in any case.
        on_alert: called with each alert that raises the level of a behavior; if it raises an
            exception, that is recorded, and training goes on.
        stop_on: alert level, such as "critical", from which on `should_stop` is True.
        keep_passing: reduce each behavior, at the start, to the probes that the model passes.
        budget: time that the monitor may take, as a share of the time of training. To keep to it,
            probe evaluations come later. Beyond it are the first evaluation, two and a half more in
            advance (the last one among them), eight more while a behavior is about to break, and
            one each 5 · `probe_every` steps in any case. None: no limit, and steps of evaluations
            that do not depend on the speed of the machine; always so under DDP.
        texts: record the prompts of the probes, shortened, and how the model begins to answer them
            at the start, at the first alert of each level, and at the end; see `Behavior.harmful`.
        trackers: sinks of scores, margins and alerts, such as those of `integrations.trackers`; one
            that fails is recorded and left out. On the first rank only.

    Raises:
        ConfigError: no behaviors, two behaviors with the same name, `probe_every` under 1, an
            unknown `gradient_storage` or `stop_on`, a budget outside (0, 1], or an argument of a
            wrong type.
        RecordError: the run's record cannot be created, or it already exists.
        PolicyError: the policy is frozen and does not verify.
    """

    def __init__(
        self,
        behaviors: Sequence[Behavior] = (),
        policy: AlertPolicy | None = None,
        probe_every: int = 20,
        run_dir: str | Path | None = None,
        signals: Sequence[Signal] | None = None,
        feature_layer: str | None = None,
        metadata: dict[str, Any] | None = None,
        resume: bool = False,
        gradient_storage: str = "float32",
        modules: Sequence[str] = (),
        *,
        autocast: Autocast | None = None,
        on_alert: Callable[[Alert], object] | None = None,
        stop_on: Level | str | None = None,
        keep_passing: bool = False,
        budget: float | None = DEFAULT_BUDGET,
        trackers: Sequence[Tracker] = (),
        texts: bool = True,
    ) -> None:
        given = {name: value for name, value in locals().items() if name != "self"}
        check_arguments(behaviors, probe_every, gradient_storage)
        check_options(policy, signals, stop_on, on_alert, modules)
        check_autocast(autocast)
        check_budget(budget)
        check_trackers(trackers)
        check_facts(run_dir, metadata)
        self.behaviors = list(behaviors)
        self.policy = AlertPolicy.default() if policy is None else policy
        if self.policy.hash is not None:
            self.policy.verify()
        self.signals = default() if signals is None else list(signals)
        self._feature_layer, self._metadata = feature_layer, metadata or {}
        self._gradient_storage, self._modules = gradient_storage, tuple(modules)
        self.record = Writer(run_dir if rank() == 0 else None, resume)  # only rank 0 writes a file
        record = ResilientRecord(self.record)
        self._run = MonitoredRun(
            self.signals,
            AlertTracker(self.behaviors, self.policy),
            self._new_schedule(probe_every, budget, meter := CostMeter()),
            record,
            Announcer(on_alert, record.add_failure, quiet=rank() != 0),
            ProbeTexts(record, texts and rank() == 0),
            meter,
            None if stop_on is None else Level(stop_on),
            trackers=TrackerGroup(trackers if rank() == 0 else (), record.add_failure),
        )
        self.budget = budget
        self._clock: Callable[[], float] = time.perf_counter
        self._given, self._keep_passing, self._autocast = given, keep_passing, autocast
        self._started = False
        self._watched_model: WatchedModel | None = None  # of the last watch
        self._resume_state: dict[str, Any] | None = None  # loaded, waits for the model
        self._session: WatchSession | None = None  # of the open watch
        self._training_autocast: TrainingAutocast | None = None  # of the open watch

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy needs: a copy does not watch, because the hooks are this monitor's."""
        return self.__dict__ | {"_session": None, "_training_autocast": None}

    def renew(self, run_dir: str | Path | None = None) -> Monitor:
        """Return an unused monitor with the same arguments, to watch another model.

        Args:
            run_dir: folder of its record; None keeps the record in memory.
        """
        signals = copy.deepcopy(self._given["signals"])
        new = Monitor(**self._given | {"run_dir": run_dir, "resume": False, "signals": signals})
        new.use_clock(self._clock)
        return new

    @named
    @contextmanager
    def watch(
        self,
        model: nn.Module,
        optimizer: Any,
        guard: Guard | None = None,
        *,
        steps: int | None = None,
        scheduler: Scheduler | None = None,
    ) -> Iterator[Monitor]:
        """Watch the steps that `optimizer` takes inside the context.

        The probes are evaluated on entry, before any step, and on exit. A later `watch` of the same
        model continues the count of steps.

        Args:
            guard: changes steps to protect behaviors; its actions are recorded. Without a guard
                training is not changed.
            steps: number of optimizer steps that are planned, from now on; None: unknown.
            scheduler: learning-rate scheduler of the optimizer, read from where it stands; or a
                function of the number of steps from now on, which returns the learning rate (not a
                factor of it; the largest of several groups): f(0) is that of the next step, and
                must be the one that the optimizer has now. With `steps`, forecasts know the rates
                to come; None: they expect the present one, as they do once the optimizer has had
                other rates than the planned ones for several steps, of which a warning tells.

        Raises:
            ConfigError: there is nothing to watch, the monitor is already in use, `steps` or
                `scheduler` is something else or of other rates than the optimizer's, or the guard
                does not support this model, optimizer or monitor.
            BehaviorError: margins of a wrong shape, or not finite before training.
        """
        self.begin(model, optimizer, guard, steps=steps, scheduler=scheduler)
        try:
            yield self
        finally:
            self.end()

    def begin(
        self,
        model: nn.Module,
        optimizer: Any,
        guard: Guard | None = None,
        *,
        steps: int | None = None,
        scheduler: Scheduler | None = None,
    ) -> None:
        """Start to watch, until `end`: `watch` as a pair of calls, for callbacks."""
        if self._session is not None:
            raise ConfigError("this monitor is already watching: leave its context first")
        check_plan(steps, scheduler)
        try:
            is_new = not self._started and self._resume_state is None
            self._begin(model, optimizer, guard, steps, scheduler)
            if is_new:
                self._tell_power()
        except BaseException:
            self._close_autocast()
            if not self._started and self._resume_state is None:
                self._forget_start()
            with suppress(RecordError):  # the error that is raised comes first
                self.record.release()
            raise

    def _begin(
        self,
        model: nn.Module,
        optimizer: Any,
        guard: Guard | None,
        steps: int | None,
        scheduler: Scheduler | None,
    ) -> None:
        engine = find_engine(model, optimizer)
        if engine is None:
            model, optimizers = unwrap_model(model), require_optimizers(optimizer)
            check_guard(guard, len(optimizers))
            parameters = trained_parameters(model, optimizers, self._modules)
            with preserve_rng(model):
                check_scheduler(scheduler if steps else None, optimizers)
            refuse_packed(model)
        else:
            refuse_guard(guard)
            model, optimizers, parameters = engine_module(model), [], []
        if self._resume_state is not None:
            parameters = named_parameters(model, self._resume_state["parameters"])
        if self._watched_model is not None:
            self._watched_model.require_continued(model)
        layer = find_layer(model, self._feature_layer)
        needs_losses = any(signal.needs_loss_gradient for signal in self.signals)
        if guard is not None:
            needs_losses |= any("loss" in leaf.needs for leaf in guard.flatten())
        self._training_autocast = TrainingAutocast(model, self._autocast)
        self._reduce_behaviors(model)
        probe_runner = ProbeRunner(
            self.behaviors, model, parameters, layer, needs_losses, self._gradient_storage
        )
        probe_runner.autocast = self._training_autocast
        probe_runner.reads_answers = self._given["texts"]
        if engine is None:
            self._drop_budget_of_replica(model)
            session = WatchSession(self._run, probe_runner, optimizers, guard, self._modules)
        else:
            probe_runner.reads_gradients = False
            session = EngineSession(self._run, probe_runner, engine)
        planned, problem = self._planned(model, steps, scheduler)
        session.plan_check = PlanCheck(self._run.plan, len(optimizers))
        if self._resume_state is not None:
            self._resume(session, self._resume_state)
        elif not self._started:
            self._start(session)
        else:
            self._note_changed_weights()
            with self._run.meter.measure("refreshes"):
                session.process_probe_results(probe_runner.run(self.step, refresh=True))
        if problem is not None:
            self._run.record.add_failure(self.step, "scheduler", problem)
        if planned is not None:
            self._run.record.add_event(self.step, PLAN, planned)
        with ExitStack() as undo:
            if session.guard is not None:
                undo.callback(session.guard.end)
                session.guard.start(self.step)
                if self._resume_state is not None:
                    session.guard.load_state_dict(self._resume_state["guard"])
                guard = session.guard.guard
                facts = {"name": guard.name, "doubts": guard.doubts}
                self._run.record.add_event(self.step, GUARD, facts)
            session.attach()
            undo.pop_all()
        if self._watched_model is None:
            self._watched_model = WatchedModel(model, parameters)
        self._started, self._resume_state, self._session = True, None, session
        self._run.trackers.begin(self)

    def _planned(
        self, model: nn.Module, steps: int | None, scheduler: Scheduler | None
    ) -> tuple[dict[str, Any] | None, Exception | None]:
        """Tell the histories which steps are planned, before probes are evaluated.

        Returns:
            (facts for the record, if the plan is another than before; why its rates are unknown).
        """
        state, problem = self._resume_state, None
        first = self.step if state is None else state["step"]
        plan = None
        if steps is not None:
            try:
                with preserve_rng(model):
                    plan = planned_rates(first, steps, scheduler)
            except Exception as error:  # noqa: BLE001 a scheduler that cannot be copied ends no run
                plan, problem = RateSchedule(first, steps), error
        facts = None if plan is None else plan.facts()
        known = None if state is None else self._run.plan
        if plan is not None and known is not None and known.ends_as(plan):
            plan = known  # to the last bit as in a run that was not interrupted
        if plan is not None or state is None:  # else a resumed run keeps the plan of its state
            if plan is None and self._run.plan is not None:
                facts = {"steps": None}
            self._run.plan = plan
        for history in self.behavior_histories.values():
            history.schedule = self._run.plan
        return facts, problem

    def _close_autocast(self) -> None:
        """Let the autocast state that the user gave end with the watch."""
        if self._training_autocast is not None:
            self._training_autocast.close()
        self._training_autocast = None

    def _forget_start(self) -> None:
        """After a refused start: be as new, so that a corrected start can follow."""
        self.behaviors = list(self._given["behaviors"])
        self._run.tracker = AlertTracker(self.behaviors, self.policy)
        self._run.notes.clear()
        self._run.announcer.forget()
        self._renew_schedule()

    def _renew_schedule(self) -> None:
        run = self._run
        run.meter = CostMeter(self._clock)
        run.schedule = self._new_schedule(run.schedule.probe_every, self.budget, run.meter)

    @staticmethod
    def _new_schedule(probe_every: int, budget: float | None, meter: CostMeter) -> ProbeSchedule:
        return ProbeSchedule(probe_every, None if budget is None else Budget(budget, meter))

    def _drop_budget_of_replica(self, model: nn.Module) -> None:
        """Let ranks that evaluate each by itself do so at equal steps: their clocks differ.

        Else a guard would act on one rank only, and each rank would wait for the others' passes.
        """
        run = self._run
        if run.schedule.budget is not None and is_replica(model):
            run.schedule.budget = None
            run.notes.append(NO_BUDGET)

    def _reduce_behaviors(self, model: nn.Module) -> None:
        """Reduce the behaviors to the probes that the model passes, once."""
        if not self._keep_passing or self._started:
            return
        kept = self._run.tracker.kept  # of a resumed run
        if self._resume_state is None:
            for behavior in self.behaviors:
                kept[behavior.name], count = passing_probes(behavior, model)
                facts = {"behavior": behavior.name, "kept": len(kept[behavior.name]), "of": count}
                self._run.record.add_event(0, "keep_passing", facts)
        with wrap_state_errors("these behaviors"):
            self.behaviors = [behavior.subset(kept[behavior.name]) for behavior in self.behaviors]

    def _note_changed_weights(self) -> None:
        assert self._watched_model is not None
        if self._watched_model.has_changed():
            text = "the weights changed between two watches: that change was not watched"
            self._run.record.add_event(self.step, "weights_replaced", {"text": text})
            warn(text)

    def end(self) -> None:
        """Stop watching after a last probe evaluation, on which a guard may still act."""
        if self._session is None:
            return
        session, self._session = self._session, None
        try:
            session.end()
        finally:
            self._close_autocast()
        if self._watched_model is not None:
            self._watched_model.note_end(
                session.probe_runner.model, session.probe_runner.parameters
            )
        self._run.trackers.end()

    def evaluate_last_step(self) -> None:
        """Evaluate the probes now, unless they were evaluated after the last step.

        `end` does it too. Call it before that if other weights are loaded in between, such as those
        of the best checkpoint.
        """
        if self._session is not None:
            self._session.evaluate_last_step_safely()

    def state_dict(self) -> dict[str, Any]:
        """Return all that a resumed run needs after this step, as plain values and tensors.

        Save it together with the model and the optimizer, at the same step. Commits the record.

        Raises:
            ConfigError: nothing is being watched.
        """
        session, run, plan = self._session, self._run, self._run.plan
        if session is None:
            raise ConfigError("the monitor is not watching: save its state during a watch")
        update_is_read = session.read_before_save()
        return {
            "format": FORMAT,
            "run": run.record.run_id(),
            "monitor": self._arguments(),
            "step": self.step,
            "update_is_read": update_is_read,
            "plan": None if plan is None else {"first": plan.first} | plan.facts(),
            "position": self.record.position(),
            "parameters": parameter_names(
                session.probe_runner.model, session.probe_runner.parameters
            ),
            "schedule": run.schedule.state_dict(),
            "meter": run.meter.state_dict(),
            "tracker": run.tracker.state_dict() | {"check": session.check.state_dict()},
            "protected_gradients": session.probe_runner.protected_gradients.state_dict(),
            "behaviors": {b.name: b.margins.state_dict() for b in self.behaviors},
            "signals": {signal.name: signal.state_dict() for signal in self.signals},
            "guard": None if session.guard is None else session.guard.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume a run; call it before `watch`, which then evaluates no probes at its start.

        If training is resumed as well, all further readings are those of an uninterrupted run.

        Raises:
            ConfigError: it is not a state, it is of a monitor with other arguments, or watching has
                already begun.
        """
        if self._started:
            raise ConfigError("this monitor has already been used: load a state into a new one")
        check_state(state, self._arguments())
        tracker = AlertTracker(self.behaviors, self.policy)
        with wrap_state_errors("this monitor"):
            tracker.load_state_dict(state["tracker"])
            told = state["plan"]
            plan = None if told is None else RateSchedule.from_facts(told["first"], told)
            self._renew_schedule()
            self._run.schedule.load_state_dict(state["schedule"])
            self._run.meter.load_state_dict(state["meter"])
        self._run.tracker, self._run.plan = tracker, plan
        self._resume_state = state

    def _arguments(self) -> dict[str, Any]:
        """Return the arguments that must be equal in a monitor that resumes the run."""
        return {
            "behaviors": {b.name: b.floor for b in self.behaviors},
            "policy": self.policy.hash or self.policy.content_hash(),
            "probe_every": int(self._run.schedule.probe_every),
            "signals": [signal.name for signal in self.signals],
            "gradient_storage": self._gradient_storage,
            "modules": list(self._modules),
            "keep_passing": self._keep_passing,
            "budget": self.budget,
        }

    @property
    def step(self) -> int:
        """Optimizer steps seen so far."""
        return self._run.step

    @property
    def should_stop(self) -> bool:
        """True if the guard or `stop_on` wants training to stop; a loop of yours checks it."""
        return self._run.stop_reason is not None

    @property
    def stop_reason(self) -> str | None:
        """Reason why training should stop; None: it should not."""
        return self._run.stop_reason

    @property
    def watching(self) -> bool:
        """True while a watch is open."""
        return self._session is not None

    @property
    def trackers(self) -> list[Tracker]:
        """The sinks of scores, margins and alerts that have not failed."""
        return list(self._run.trackers)

    @property
    def alerts(self) -> list[Alert]:
        """All alerts raised so far."""
        return self._run.tracker.alerts

    @property
    def withdrawals(self) -> dict[int, int]:
        """Step at which an alert was withdrawn, by its place in `alerts`; the others stand."""
        tracker = self._run.tracker
        return withdrawn_alerts(tracker.alerts, tracker.withdrawals)

    def standing_level(self, behavior: str) -> Level | None:
        """Return the highest level of the alerts on a behavior that stand; None: none does."""
        withdrawn = self.withdrawals
        own = [
            alert.level
            for place, alert in enumerate(self.alerts)
            if alert.behavior == behavior and place not in withdrawn
        ]
        return max(own, key=lambda level: level.rank, default=None)

    @property
    def behavior_histories(self) -> dict[str, BehaviorHistory]:
        """Measurements of each behavior."""
        return self._run.tracker.histories

    @property
    def forecasts(self) -> dict[str, Forecast | None]:
        """Current forecast for each behavior; None where none is possible."""
        return self._run.tracker.forecasts

    @property
    def actions(self) -> list[Action]:
        """All recorded actions of the guard."""
        return Reader(self.record).actions()

    def history(self) -> pd.DataFrame:
        """Return all readings: step, behavior, signal, value, state, unit, layer, detail.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        return to_dataframe(Reader(self.record).readings())

    def broken(self) -> dict[str, int | None]:
        """Return the first evaluated step with a score under the floor, by behavior, or None.

        None also for a behavior that started under its floor; see `below_floor`.
        """
        return {name: history.broken_at for name, history in self.behavior_histories.items()}

    def power(self) -> dict[str, Power]:
        """Return what each probe set can tell, by behavior: at the start of the run."""
        histories = self.behavior_histories
        return {
            b.name: Power.of(histories[b.name].margins[0], b.floor, b.categories, self._longest_gap)
            for b in self.behaviors
            if histories[b.name].steps
        }

    @property
    def _longest_gap(self) -> int:
        """The largest number of steps between two evaluations, of which one ends the plan."""
        longest, plan = self._run.schedule.longest_gap, self._run.plan
        return longest if plan is None else max(1, min(longest, plan.n_steps))

    def _tell_power(self) -> None:
        if power := self.power():
            told = [f"{shorten(name)}: {own}" for name, own in power.items()]
            self._run.announcer.note(" · ".join(told))

    def below_floor(self) -> dict[str, float]:
        """Return the score at the start of the behaviors that started under their floors."""
        return {
            name: score(history.margins[0])
            for name, history in self.behavior_histories.items()
            if history.steps and not history.healthy_at_start
        }

    def metrics(self) -> dict[str, float]:
        """Return the latest score and mean margin of each behavior, for loggers.

        A behavior that the last evaluation could not measure is left out.
        """
        return self._run.tracker.metrics()

    def summary(self) -> str:
        """Return a few plain sentences about the run so far."""
        run, tracker = self._run, self._run.tracker
        return summarize(
            self._conclusion(),
            run.step,
            tracker.histories,
            {name: tracker.is_measured(name) for name in tracker.histories},
            tracker.alerts,
            self.withdrawals,
            self.actions,
            run.final,
            run.notes,
            run.stop_reason,
            cost_text(run.meter, run.schedule),
        )

    def _conclusion(self) -> list[str]:
        """Return the first line of the conclusion and what would help, as sentences."""
        try:
            found = conclude(self.record)
        except RecordError as error:  # a full disk, or a locked file
            return [f"The conclusion cannot be read from the record: {error}."]
        return [found.line, *([f"What would help: {found.advice}"] if found.advice else [])]

    def __repr__(self) -> str:
        """Return the behaviors with their scores, and the number of steps and standing alerts."""
        scores = []
        for name, history in self.behavior_histories.items():
            now = format_score(score(history.margins[-1]), history.floor) if history.steps else ""
            scores.append(f"{shorten(name)} {now}".strip())
        count = len(self.alerts) - len(self.withdrawals)
        alerts = "1 alert" if count == 1 else f"{count} alerts"
        return f"<Monitor: {', '.join(scores)}; step {self.step}, {alerts}>"

    def _repr_html_(self) -> str:
        rows = []
        for name, history in self.behavior_histories.items():
            read = [score(history.margins[at]) for at in (0, -1)] if history.steps else []
            start, now = [format_score(own, history.floor) for own in read] or ("–", "–")
            level = self.standing_level(name)
            broke = "" if history.broken_at is None else f"step {history.broken_at}"
            forecast = format_forecast(self.forecasts.get(name))
            cells = [shorten(name), start, now, history.floor, forecast, level or "", broke]
            rows.append(cells)
        heads = ["behavior", "score at the start", "score now", "floor", "forecast break"]
        table = html_table([*heads, "alert", "broke"], rows)
        return html_text(f"Monitor, step {self.step}", "strong") + table

    def record_skipped_step(self, reason: str) -> None:
        """Record that the optimizer's step was skipped; for integrations that can detect it."""
        if self._session is None:
            self._run.note_skipped_step(reason)
        else:
            self._session.on_skipped_step(reason)

    def use_clock(self, clock: Callable[[], float]) -> None:
        """Let the budget count by another clock than that of the machine; call it before `watch`.

        Args:
            clock: returns the time. A clock that counts tokens in passes makes the steps of
                evaluations independent of the machine's speed.
        """
        if self._started or self._session is not None:
            raise ConfigError("this monitor has already been used: give the clock to a new one")
        self._clock = self._run.meter.clock = clock

    def log_event(self, kind: str, /, **facts: Any) -> None:
        """Add an event at this step to the record.

        Args:
            kind: name of the event, such as "selection"; "ended", "resumed" and "probe_answers" are
                reserved.
            facts: plain values.

        Raises:
            ConfigError: the name is reserved.
        """
        if kind in ("ended", "resumed", ANSWERS):
            raise ConfigError(f"event {kind!r} is reserved for the record: choose another name")
        self._run.record.add_event(self.step, kind, facts)

    def log_training(self, **numbers: float | Tensor) -> None:
        """Record numbers of the training itself, such as `loss=` and `learning_rate=`.

        Pages show them above the behaviors. The callbacks of trainers do it themselves.

        Raises:
            ConfigError: a value is no number.
        """
        facts: dict[str, float] = {}
        for name, value in numbers.items():
            try:
                facts[name] = float(value.detach() if isinstance(value, Tensor) else value)
            except (TypeError, ValueError, RuntimeError) as error:
                raise ConfigError(f"log_training: {name}={shown(value)} is no number") from error
        self._run.record.add_event(self.step, TRAINING, facts)
        self._run.trackers.train(facts, self.step)

    def log_checkpoint(self, path: str | Path, kept: Sequence[str] | None = None) -> None:
        """Record that a checkpoint was saved, so that the conclusion can name the one to keep.

        The callbacks of trainers do it themselves.

        Args:
            kept: names of all checkpoints that are still there; None: none was removed.
        """
        facts: dict[str, Any] = {"path": str(path)}
        facts |= {} if kept is None else {"kept": sorted(kept)}
        self._run.record.add_event(self.step, CHECKPOINT, facts)
        self._run.record.commit()  # the checkpoint outlives a process that is killed

    def add_tracker(self, tracker: Tracker) -> None:
        """Add a sink of scores, margins and alerts; see the argument `trackers`."""
        check_trackers([tracker])
        if rank() == 0:
            self._run.trackers.add(tracker)
            if self._session is not None:
                self._run.trackers.begin(self)

    def _start(self, session: WatchSession) -> None:
        """Evaluate the probes before the first step; refuse what cannot be monitored."""
        n_behaviors = len(self.behaviors)
        with (
            self._run.announcer.progress(n_behaviors) as done,
            self._run.meter.measure("start"),
        ):
            view = session.probe_runner.run_before_training()
            for signal in self.signals:
                signal.start(view)
            done(sum(len(result.margins) for result in view.results.values()))
        self._write_metadata(session, {})
        with self._run.meter.measure("start", new=False):
            session.process_probe_results(view, is_start=True)
        stale = stale_optimizer(session.probe_runner.model, session.hooks.optimizers)
        if stale:
            self._run.record.add_event(0, "stale_optimizer", {"text": stale})
            self._run.notes.append(stale)
            warn(stale)
        for history in self.behavior_histories.values():
            if history.steps and not history.healthy_at_start:
                warn(_below_floor_warning(history))
        for text in self._run.tracker.untestable_reasons():
            warn(text)

    def _resume(self, session: WatchSession, state: dict[str, Any]) -> None:
        """Restore what needs the model; evaluate no probes."""
        probe_runner = session.probe_runner
        load_margin_states(probe_runner, state["behaviors"])
        load_signals(self.signals, state["signals"], probe_runner)
        with wrap_state_errors("the trained parameters"):
            probe_runner.protected_gradients = ProtectedGradients.from_state(
                state["protected_gradients"], probe_runner.parameters
            )
            session.check.load_state_dict(state["tracker"]["check"])
        session.begin_after(state["step"], state["update_is_read"])
        self._write_metadata(session, state["position"], state["run"])

    def _write_metadata(
        self, session: WatchSession, position: dict[str, int], state_id: str | None = None
    ) -> None:
        facts = run_metadata(self.behaviors, self.policy, self._run.schedule.probe_every)
        budget = self._run.schedule.budget
        problem = self._run.texts.add_prompts(facts["behaviors"], self.behaviors)
        facts |= {
            "budget": None if budget is None else budget.share,
            "notes": self._metadata,
            "layer": session.probe_runner.layer,
            "longest_gap": self._longest_gap,
        }
        self._run.record.begin(self.step, position, facts, state_id)
        if problem is not None:
            self._run.texts.fail(self.step, problem)


def _below_floor_warning(history: BehaviorHistory) -> str:
    first = score(history.margins[0])
    start = format_score(first, history.floor)
    advice = (
        "use keep_passing=True to watch the probes that the model passes, or lower the floor"
        if first
        else "the model passes none of its probes: leave it out, or give other probes or prefixes"
    )
    return (
        f"behavior {history.behavior!r} starts below its floor: {start} < {history.floor:.2f}, "
        "before training; it is not watched for a break, and no alert will be raised on it; "
        f"{advice}"
    )
