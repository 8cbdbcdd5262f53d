"""The session of one watch: everything that happens around a step, without failing training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from riprap._distributed import all_ranks, has_sharded_parameters, rank, warn_once
from riprap._warnings import warn
from riprap.detectors import RateSchedule, describe_broken
from riprap.errors import ConfigError
from riprap.guards import Guard
from riprap.linalg import Vector, to_local
from riprap.monitor._alert_tracker import AlertTracker, missing_margin
from riprap.monitor._announce import NO_BREAK, Announcer
from riprap.monitor._cost_meter import OWN_PARTS, CostMeter
from riprap.monitor._final_readings import final_readings
from riprap.monitor._guard_session import GuardSession
from riprap.monitor._hooks import StepHooks
from riprap.monitor._optimizers import learning_rate, parameters_of, trained_parameters
from riprap.monitor._plan_check import PlanCheck
from riprap.monitor._probe_runner import ProbeRunner
from riprap.monitor._probe_schedule import ProbeSchedule
from riprap.monitor._probe_texts import ProbeTexts
from riprap.monitor._resilient_record import ResilientRecord
from riprap.monitor._trackers import TrackerGroup
from riprap.monitor._training_check import TrainingCheck
from riprap.monitor._weight_sample import WeightSample, swaps_weights
from riprap.record import CLEARED, PLAN, STOP, clean_readings
from riprap.signals import ProbeView, Signal, StepView
from riprap.types import RUN, Alert, Level, OwnDetector, Reading, ReadingStatus


@dataclass
class MonitoredRun:
    """Parts of a monitor that outlive a single watch.

    Attributes:
        meter: time that the monitor takes beside training.
        stop_level: the mildest alert level at which training should stop; None: at none.
        step: optimizer steps seen so far.
        stop_reason: reason why training should stop; None: it should not.
        notes: facts about the run as a whole that the summary tells.
        final: readings of weights that were exchanged after the last step.
        trackers: sinks of scores, margins and alerts.
        plan: planned steps of the open watch; None: unknown.
        texts: prompts and answers for the record.
    """

    signals: Sequence[Signal]
    tracker: AlertTracker
    schedule: ProbeSchedule
    record: ResilientRecord
    announcer: Announcer
    texts: ProbeTexts
    meter: CostMeter = field(default_factory=CostMeter)
    stop_level: Level | None = None
    step: int = 0
    stop_reason: str | None = None
    notes: list[str] = field(default_factory=list)
    final: Sequence[Reading] = ()
    trackers: TrackerGroup = field(default_factory=lambda: TrackerGroup((), lambda *_: None))
    plan: RateSchedule | None = None

    @contextmanager
    def paid(self, part: str, allowance: str, new: bool = True) -> Iterator[None]:
        """Measure an evaluation in the body, and pay for it; see `Budget.pay`."""
        before = self.meter.seconds[part]
        try:
            with self.meter.measure(part, new):
                yield
        finally:
            if self.schedule.budget is not None:
                self.schedule.budget.pay(self.meter.seconds[part] - before, allowance, new)

    def note_skipped_step(self, reason: str) -> None:
        """Record that an optimizer's step was skipped."""
        text = f"no step after step {self.step}: {reason}"
        reading = Reading(self.step, RUN, "step", state=ReadingStatus.NOT_RUN, detail=text)
        self.record.add_readings([reading])


class WatchSession:
    """Parts of a monitor that live during one watch: probe runner, guard and hooks.

    At each step: the signals read gradient and update, the probes are evaluated if they are due,
    the detectors raise alerts, the guard acts, and everything is recorded.
    """

    def __init__(
        self,
        run: MonitoredRun,
        probe_runner: ProbeRunner,
        optimizers: list[torch.optim.Optimizer],
        guard: Guard | None,
        modules: Sequence[str] = (),
    ) -> None:
        self.run, self.probe_runner, self._modules = run, probe_runner, modules
        self.guard: GuardSession | None = None
        if guard is not None:
            callbacks = (run.record.add_actions, self.on_restore, self.on_stop)
            self.guard = GuardSession(guard, probe_runner, run.tracker, optimizers[0], *callbacks)
        self.hooks = StepHooks(optimizers, probe_runner.parameters, self, self.guard)
        self.plan_check = PlanCheck(None)
        self.check = TrainingCheck(probe_runner.model, probe_runner.parameters, optimizers)
        self._swaps_weights = any(map(swaps_weights, optimizers))
        self._held: list[tuple[int, bool]] = []  # see `StepHooks.held`
        self._ignored: set[int] = set()  # parameters that are not watched, by id
        self._frozen: set[int] = set()  # watched parameters that training has frozen, by id
        self._told_frozen = self._refresh_due = False
        self._unwatched = ""  # how the weights changed outside of steps, since the last evaluation
        self._changed_since_read = False  # the weights, outside of steps
        self._last_read = self.first_step = run.step
        self._reads_each_step = any(signal.every_step for signal in run.signals)
        self.reads_gradients = any(signal.reads_gradients for signal in run.signals)
        self.meter = run.meter
        self._gradient_failures: dict[str, str] = {}

    def attach(self) -> None:
        """Register the hooks, and note the weights as they are now."""
        self.sample = WeightSample(self.probe_runner.parameters, self._swaps_weights)
        self.hooks.attach()
        if self.probe_runner.autocast is not None:
            self.probe_runner.autocast.attach()

    def prepare(self) -> None:
        """Before a step: find out if the weights or the trained parameters have changed.

        Raises:
            ConfigError: the guard cannot take up parameters that have joined training.
        """
        joined: list[Tensor] = []
        resized: list[Tensor] = []
        try:
            with torch.no_grad():
                changed = self.sample.has_changed(late=True)
            if changed:
                step = self.run.step
                self._note_unwatched(f"between step {step} and step {step + 1}")
                self._changed_since_read = True
            resized, held = self.hooks.resized(), self.hooks.held()
            if changed and not resized:
                self.hooks.mark_as_read()
            set_changed = held != self._held
            if set_changed:
                joined = self._find_joined()
            if joined or resized:
                self._take_up(joined, resized)
            if set_changed:
                self._note_frozen()
            self._held = held
        except Exception as error:  # noqa: BLE001 an observer's failure never ends a run
            self.record_failure(error)
        if self.guard is not None and resized:
            raise ConfigError(
                f"guard {self.guard.guard.name}: {len(resized)} tensors changed their shape after "
                f"step {self.run.step}: resize the model before the watch begins"
            )
        if self.guard is not None and joined:
            self.guard.extend(joined)

    def before_step(self, gradient: Vector | None) -> None:
        """Read the task gradient of the coming step; None if there is none."""
        if self.check.is_unseen:
            self.meter.wait()
            self.check.note_gradient()
        if not self.reads_gradients:
            return
        view = StepView(self.run.step + 1, gradient, None, self.probe_runner.protected_gradients)
        readings = self._collect_readings("on_gradient", view)
        self.run.record.add_readings(readings)
        self.run.tracker.add_readings(readings)

    @property
    def reads_each_step(self) -> bool:
        """True if a signal, or an active guard, reads the update of each step by itself."""
        guard = self.guard
        return self._reads_each_step or (
            guard is not None and (guard.reads_interference or guard.reads_updates)
        )

    def after_step(self) -> None:
        """Count the step, read the update now and then, and evaluate the probes if they are due."""
        run = self.run
        run.step += 1
        rate = learning_rate(self.hooks.optimizers)
        run.tracker.rate_sum = run.tracker.rate_sum + rate
        self.plan_check.note(run.step, rate)
        run.meter.count_step()
        if self.probe_runner.autocast is not None and (text := self.probe_runner.autocast.settle()):
            run.record.add_event(run.step, "autocast", {"text": text})
            warn(text)
        self.check.note_step()
        if self.reads_each_step or run.step - self._last_read >= run.schedule.read_every:
            self.read_update()
        self._evaluate_if_due()
        if self._guard_needs_gradients:  # also of a guard that this evaluation has activated
            with run.meter.measure("guard"):
                self.read_update()
                self.probe_runner.run(run.step, refresh=True)

    def _evaluate_if_due(self) -> None:
        run, schedule = self.run, self.run.schedule
        read = self._last_read == run.step  # else the interference is that of the last step
        histories = list(run.tracker.histories.values()) if read else []
        if not schedule.is_due(run.step, histories):
            return
        refresh = schedule.should_refresh_gradients(run.step) or self._refresh_due
        self._refresh_due = False
        urgent = schedule.is_urgent(run.step, histories, run.tracker.is_declining())
        try:
            self.evaluate_probes(refresh or self._guard_needs_gradients, urgent)
        except Exception:
            schedule.postpone(run.step)
            raise

    def read_update(self) -> None:
        """Read the update since the last one that was read, unless there was no step."""
        run = self.run
        if self._last_read == run.step:
            return
        with run.meter.measure("interference"):
            update = self.hooks.update
            self.check.note_movement(update.before)
            view = StepView(run.step, None, update, self.probe_runner.protected_gradients)
            readings = self._collect_readings("on_update", view)
            self.hooks.mark_as_read()
        if self._changed_since_read:
            readings = [_unknown_interference(reading) for reading in readings]
        self._last_read, self._changed_since_read = run.step, False
        run.record.add_readings(readings)
        run.tracker.add_interference(readings)

    def read_before_save(self) -> bool:
        """Read the update of the last steps; return False if other weights are loaded now."""
        if self._last_read == self.run.step:
            return True
        if self._weights_were_replaced():
            return False
        self.read_update()
        return True

    def begin_after(self, step: int, update_is_read: bool) -> None:
        """Continue a run after this step; what was not read of its update never will be."""
        self.run.step = self.first_step = self._last_read = step
        self._changed_since_read = not update_is_read

    def finish(self) -> None:
        """After a step and what the guard did: note the weights, and tell the trackers."""
        self.sample.take()
        self.run.trackers.step(self.run.step)

    def on_skipped_step(self, reason: str = "the gradient scaler found an overflow") -> None:
        """Record that an optimizer skipped its step, by default a fused one."""
        self.run.note_skipped_step(reason)
        if self.guard is not None:
            self.guard.on_step_end()

    def on_foreign_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Say at once that another optimizer steps parameters of this model."""
        name, step = type(optimizer).__name__, self.run.step
        stepped = {id(parameter) for parameter in parameters_of(optimizer)}
        advice = "give monitor.watch a list of all optimizers that step"
        if any(id(parameter) in stepped for parameter in self.probe_runner.parameters):
            self._note_unwatched(f"after step {step}, by another optimizer ({name}): {advice}")
            self._raise_own(OwnDetector.UNWATCHED_CHANGE, self._unwatched)
            return
        count = sum(id(parameter) in stepped for parameter in self.probe_runner.model.parameters())
        if count and not self._modules:
            text = (
                f"another optimizer ({name}) trains {count} tensors that are not watched: {advice}"
            )
            self._raise_own(OwnDetector.UNWATCHED_CHANGE, text)

    def _note_unwatched(self, how: str) -> None:
        if not self._unwatched:
            self._unwatched = f"the weights changed outside of the watched steps, {how}"

    def _raise_own(self, detector: OwnDetector, text: str) -> None:
        """Raise an alert of the monitor about the run, unless it stands, or end it without text."""
        run = self.run
        signal = {OwnDetector.NOT_TRAINING: "tensors_moved"}.get(detector, detector)
        reading = Reading(run.step, RUN, signal, state=ReadingStatus.ERROR, detail=text)
        alert = Alert(run.step, RUN, Level.WARNING, detector, text, (reading,))
        new = run.tracker.own_alert(alert, active=bool(text))
        if new and detector == OwnDetector.UNWATCHED_CHANGE:
            run.record.add_readings([reading])
            warn(text)
        run.tracker.alerts += new
        self._publish(new)

    def _publish(self, alerts: Sequence[Alert]) -> list[Alert]:
        """Record new alerts, tell of those that rise, and ask training to stop if they say so."""
        run = self.run
        for alert in alerts:
            run.record.add_alert(alert)
        told = run.announcer.tell(list(alerts))
        for alert in told:
            run.trackers.alert(alert)
            serious = run.stop_level is not None and alert.level.rank >= run.stop_level.rank
            if serious and run.stop_reason is None:
                self._ask_to_stop(f"stop_on={str(run.stop_level)!r}: {alert}")
        return told

    def _tell_breaks(self, told: Sequence[Alert]) -> None:
        """Tell of behaviors that broke just now, unless an alert told of it just now."""
        run = self.run
        for name, history in run.tracker.histories.items():
            if history.broken_at != run.step:
                continue
            diverged = history.diverged_step == run.step
            text = "margins are not finite" if diverged else describe_broken(history)
            if not any(alert.behavior == name and text in alert.message for alert in told):
                run.announcer.note(f"step {run.step}, critical: {name}: {text}", critical=True)

    def _ask_to_stop(self, reason: str) -> None:
        self.run.stop_reason = reason
        self.run.record.add_event(self.run.step, STOP, {"reason": reason})

    def _publish_withdrawals(self) -> None:
        """Record which levels were withdrawn, and tell of them."""
        run = self.run
        for step, facts in run.tracker.take_cleared():
            run.record.add_event(step, CLEARED, facts)
            now, name = facts["now"], facts["behavior"]
            if facts["detector"] not in NO_BREAK:
                active = run.tracker.standing_level(name)
                run.announcer.withdraw(step, name, None if now is None else Level(now), active)

    def _find_joined(self) -> list[Tensor]:
        """Return trained parameters that were not watched so far."""
        watched = {id(parameter) for parameter in self.probe_runner.parameters}
        unknown = {
            id(parameter)
            for optimizer in self.hooks.optimizers
            for parameter in parameters_of(optimizer)
            if parameter.requires_grad and id(parameter) not in watched
        } - self._ignored
        if not unknown:
            return []
        model, modules = self.probe_runner.model, self._modules
        try:
            trained = trained_parameters(model, self.hooks.optimizers, modules)
        except ConfigError:
            trained = []
        joined = [parameter for parameter in trained if id(parameter) in unknown]
        self._ignored |= unknown - {id(parameter) for parameter in joined}
        return joined

    def _note_frozen(self) -> None:
        """Tell of parameters that were frozen; they stay, because they may come back."""
        parameters = self.probe_runner.parameters
        frozen = {id(parameter) for parameter in parameters if not parameter.requires_grad}
        if frozen == self._frozen:
            return
        left, self._frozen, step = len(frozen - self._frozen), frozen, self.run.step
        facts = {"frozen": len(frozen), "trained": len(parameters) - len(frozen)}
        self.run.record.add_event(step, "trained_parameters", facts)
        self._refresh_due = True
        if left and not self._told_frozen:
            self._told_frozen = True
            text = f"{left} tensors left training before step {step + 1}; their updates are 0"
            warn(text)

    def _take_up(self, joined: list[Tensor], resized: list[Tensor]) -> None:
        """Watch parameters that have joined training or changed their shape.

        Those that left it stay in the list: their updates are 0, and they may come back.
        """
        run, runner = self.run, self.probe_runner
        if not resized:
            self.read_update()
        else:
            self._changed_since_read = self._last_read < run.step
        self._last_read = run.step
        chosen = {id(parameter) for parameter in (*runner.parameters, *joined)}
        held = [p for one in self.hooks.optimizers for p in parameters_of(one)]
        parameters = [parameter for parameter in held if id(parameter) in chosen]
        known = {id(parameter) for parameter in parameters}
        parameters += [p for p in runner.parameters if id(p) not in known]
        runner.parameters = parameters
        self.hooks.set_parameters(parameters)
        self.check.set_parameters(runner.model, parameters)
        self.sample = WeightSample(parameters, self._swaps_weights)
        with run.meter.measure("refreshes"):
            view = runner.run(run.step, refresh=True)
        self._record_failures()
        for signal in run.signals:
            if signal.per_parameter:
                try:
                    signal.start(view)
                except Exception as error:  # noqa: BLE001 an observer's failure never ends a run
                    run.record.add_failure(run.step, signal.name, error)
        facts = {"joined": len(joined), "resized": len(resized), "trained": len(parameters)}
        run.record.add_event(run.step, "trained_parameters", facts)
        for own, what in ((joined, "joined training"), (resized, "changed their shape")):
            if own:
                text = (
                    f"{len(own)} tensors {what} before step {run.step + 1}; they are watched from "
                )
                warn(text + "that step on")

    @property
    def _guard_needs_gradients(self) -> bool:
        return self.guard is not None and self.guard.needs_fresh_gradients

    def _collect_readings(self, hook: str, view: StepView | ProbeView) -> list[Reading]:
        """Call a hook of every signal; the failure of one does not affect the others."""
        readings: list[Reading] = []
        for signal in self.run.signals:
            try:
                readings += clean_readings(getattr(signal, hook)(view), view.step)
            except Exception as error:  # noqa: BLE001 an observer's failure never ends a run
                self.run.record.add_failure(view.step, signal.name, error)
        return readings

    def record_failure(self, error: Exception) -> None:
        """Record that the monitor itself failed; training goes on."""
        self.run.record.add_failure(self.run.step, "monitor", error)

    def evaluate_last_step(self) -> None:
        """Evaluate the probes, unless they were evaluated after the last step."""
        histories = self.run.tracker.histories.values()
        if any(history.steps and history.step < self.run.step for history in histories):
            self.evaluate_probes(refresh=False)

    def evaluate_last_step_safely(self) -> None:
        """Do the same between two steps of training, without failing."""
        try:
            if not self._weights_were_replaced():
                self.evaluate_last_step()
        except Exception as error:  # noqa: BLE001 an observer's failure never ends a run
            self.record_failure(error)

    def end(self) -> None:
        """Remove the hooks, evaluate the probes a last time, and end the guard and the record.

        The guard and the record end in any case.
        """
        try:
            try:
                self.hooks.end()
                if self.probe_runner.autocast is not None:
                    self.probe_runner.autocast.detach()
                self._evaluate_at_the_end()
                if self.guard is not None:
                    with self.run.meter.measure("guard"):
                        self.guard.after_step()
            finally:
                if self.guard is not None:
                    self.guard.end()
            self.record_last_answers()
        finally:
            self.run.trackers.flush()
            self._record_cost()
            self.run.record.end(self.run.step)

    def _evaluate_at_the_end(self) -> None:
        try:
            if self._weights_were_replaced():
                self._read_replaced_weights()
            else:
                self.evaluate_last_step()
            if self.run.step == self.first_step:
                self._say_that_no_step_was_seen()
        except Exception as error:  # noqa: BLE001 an observer's failure never ends a run
            self.record_failure(error)

    def _record_cost(self) -> None:
        run, budget = self.run, self.run.schedule.budget
        run.meter.pause()
        facts = {
            "budget": None if budget is None else budget.share,
            "share": run.meter.share,
            "training_seconds": run.meter.training_seconds,
            "seconds": {part: run.meter.seconds[part] for part in OWN_PARTS},
            "counts": {part: run.meter.counts[part] for part in OWN_PARTS},
            "cut_urgency": run.schedule.cut_urgency,
        }
        run.record.add_event(run.step, "cost", facts)

    def record_last_answers(self) -> None:
        """Record how the model began to answer after the last step, and more of it where it broke.

        The model still generates only if its weights were not replaced, and no rank waits for it.
        """
        run, runner = self.run, self.probe_runner
        run.texts.write()
        try:
            if rank() != 0 or self._ranks_evaluate_together or self.sample.has_changed():
                return
            with run.meter.measure("evaluations", new=False):
                histories = run.tracker.histories
                run.texts.write_longer(run.step, runner.model, runner.behaviors, histories)
        except Exception as error:  # noqa: BLE001 an observer's failure never ends a run
            self.record_failure(error)

    def _record_answers_at(self, alerts: Sequence[Alert]) -> None:
        """Record the answers to the probes of behaviors with the first alert of a level.

        The monitor's own alerts, such as that nothing was measured, are not such a first one.
        """
        known = self.run.tracker.alerts
        earlier = known[: len(known) - len(alerts)]
        said = {
            (own.behavior, own.level) for own in earlier if own.detector not in set(OwnDetector)
        }
        first = [
            alert.behavior
            for alert in alerts
            if alert.detector not in NO_BREAK and (alert.behavior, alert.level) not in said
        ]
        self.run.texts.write(dict.fromkeys(first))

    def _weights_were_replaced(self) -> bool:
        changed, model = self.sample.has_changed(), self.probe_runner.model
        if has_sharded_parameters(model):  # all ranks must take the same way
            device = to_local(self.probe_runner.parameters[0]).device
            changed = not all_ranks(not changed, device)
        return changed

    def _read_replaced_weights(self) -> None:
        """Read weights that are not those after the last step, under names of their own."""
        run = self.run
        if run.step == self.first_step:
            self._note_unwatched("though no step was seen")
            self._raise_own(OwnDetector.UNWATCHED_CHANGE, self._unwatched)
            text = f"weights as they were at the end; {self._unwatched}"
        else:
            text = (
                f"the weights were changed after step {run.step}, outside of the watched steps "
                "(another checkpoint, averaged weights, or steps that were not watched): the last "
                "readings, final_margin and final_score, are of the changed weights"
            )
            warn(text)
        run.record.add_event(run.step, "weights_replaced", {"text": text})
        for name, history in run.tracker.histories.items():
            if history.steps and history.step < run.step:
                reason = f"not read after step {run.step}: {text}"
                reading = missing_margin(run.step, name, ReadingStatus.NOT_RUN, reason)
                run.record.add_readings([reading])
        with run.meter.measure("evaluations"):
            view = self.probe_runner.run(run.step, refresh=False)
        self._record_failures()
        run.final = final_readings(run.step, view.results, text)
        run.record.add_readings(run.final)

    def _say_that_no_step_was_seen(self) -> None:
        names = ", ".join(type(one).__name__ for one in self.hooks.optimizers)
        text = (
            f"no step of the watched optimizer ({names}) was seen: nothing between the first and "
            "the last evaluation was watched; give monitor.watch the optimizer whose step() is "
            "called"
        )
        reading = Reading(self.run.step, RUN, "step", state=ReadingStatus.NOT_RUN, detail=text)
        self.run.record.add_readings([reading])
        self.run.notes.append(text)
        warn(text)

    def on_restore(self, step: int) -> None:
        """Start afresh after the weights of an earlier step were restored.

        Later measurements no longer apply, and the protected gradients are of other weights.
        """
        try:
            self.hooks.mark_as_read()
            self._last_read = self.run.step
            self.run.tracker.rewind(step, self.run.step)
            self.run.announcer.forget()
            self.evaluate_probes(refresh=True)
        except Exception as error:  # noqa: BLE001 an observer's failure never ends a run
            self.record_failure(error)

    def on_stop(self, reason: str) -> None:
        """Note that the guard wants training to stop."""
        self._ask_to_stop(reason)
        warn_once(reason)

    def evaluate_probes(self, refresh: bool, urgent: bool = False) -> None:
        """Evaluate the probes, process the results, and inform the guard."""
        run, part = self.run, "refreshes" if refresh else "evaluations"
        allowance = "refresh" if refresh else "urgent" if urgent else "calm"
        try:
            self.read_update()
            with run.paid(part, allowance):
                view = self.probe_runner.run(run.step, refresh)
            with run.paid(part, allowance, new=False):
                alerts = self.process_probe_results(view)
            if self.guard is not None:
                self.guard.on_probe_evaluation(
                    [alert for alert in alerts if alert.detector not in NO_BREAK]
                )
        finally:
            self._agree_to_stop()

    def _agree_to_stop(self) -> None:
        """Ask all ranks of a sharded model to stop if one of them is to: none can go on alone.

        An alert may be raised on one rank only, by its part of the weights. Replicas (DDP) have all
        of the weights, and need no common word.
        """
        run, model = self.run, self.probe_runner.model
        if run.stop_level is None or not has_sharded_parameters(model):
            return
        device = next(to_local(parameter).device for parameter in model.parameters())
        if not all_ranks(run.stop_reason is None, device) and run.stop_reason is None:
            self._ask_to_stop(f"stop_on={str(run.stop_level)!r}: an alert on another rank")

    def process_probe_results(self, view: ProbeView, is_start: bool = False) -> list[Alert]:
        """Record readings, forecasts and alerts, and plan the next evaluation; return alerts.

        Args:
            is_start: whether it is the evaluation before the first step of the run.
        """
        run = self.run
        self._record_failures()
        run.texts.note(run.step, view.results, self.probe_runner.behaviors)
        if is_start:
            run.texts.write()
        readings = [run.tracker.rate_sum_reading(run.step)]
        for name, text in self.probe_runner.failures.items():
            reading = missing_margin(run.step, name, ReadingStatus.ERROR, text)
            run.tracker.add_unmeasured(reading)
        for name, result in view.results.items():
            readings += run.tracker.add_probe_result(run.step, name, result)
        for name, history in run.tracker.histories.items():
            if history.steps and history.step == run.step:
                run.record.add_margins(run.step, name, history.margins[-1])
        self._drop_contradicted_plan()
        from_signals = self._collect_readings("on_probe_evaluation", view)
        counts = self.check.evaluate(run.step)
        run.record.add_readings([*readings, *from_signals, *counts])
        run.tracker.add_readings(from_signals)
        doubts = {} if self.guard is None else self.guard.guard.doubts
        alerts, forecasts = run.tracker.update(run.step, doubts)
        self._record_answers_at(alerts)
        run.record.add_readings(forecasts)
        run.trackers.log(run.tracker.metrics(), run.step)
        self._publish_withdrawals()
        self._tell_breaks(self._publish(alerts))
        if counts:
            self._raise_own(OwnDetector.NOT_TRAINING, self.check.problem)
            self._raise_own(OwnDetector.UNWATCHED_CHANGE, self._unwatched)
            self._unwatched = ""
            self._publish_withdrawals()
        run.schedule.plan(run.step, run.tracker.aged_forecasts(run.step))
        if run.schedule.budget is not None and self._ranks_evaluate_together:
            run.schedule.agree(
                next(to_local(p).device for p in self.probe_runner.model.parameters())
            )
        return alerts

    def _drop_contradicted_plan(self) -> None:
        """Forecast without the plan from now on, if the run contradicts it; its end may stand."""
        run, text = self.run, self.plan_check.contradiction()
        if run.plan is None or not text:
            return
        left = run.plan.remaining(run.step)
        run.plan = RateSchedule(run.step, left) if left else None
        for history in run.tracker.histories.values():
            history.schedule = run.plan
        facts = {"steps": None} if run.plan is None else run.plan.facts()
        run.record.add_event(run.step, PLAN, facts | {"text": text})
        run.notes.append(text)
        warn(text)

    @property
    def _ranks_evaluate_together(self) -> bool:
        return has_sharded_parameters(self.probe_runner.model)

    def _record_failures(self) -> None:
        """Record what could not be evaluated; then warn."""
        run, runner = self.run, self.probe_runner
        lost = {name: t for name, t in runner.gradient_failures.items() if name in runner.failures}
        for name, text in runner.failures.items():
            run.record.add_readings([missing_margin(run.step, name, ReadingStatus.ERROR, text)])
            warn(f"could not evaluate {name!r}: {text}")
        for name, text in runner.gradient_failures.items():
            if name in lost:
                continue
            reading = Reading(
                run.step, name, "interference", state=ReadingStatus.ERROR, detail=text
            )
            run.record.add_readings([reading])
            if self._gradient_failures.get(name) != text:
                warn(f"no protected gradient of {name!r}, margins only: {text}")
        self._gradient_failures = dict(runner.gradient_failures)


def _unknown_interference(reading: Reading) -> Reading:
    """Return the reading without its number if the update is not all that changed the weights."""
    if reading.signal != "interference" or reading.value is None:
        return reading
    text = "the weights also changed outside of this step"
    return replace(reading, value=None, state=ReadingStatus.ERROR, detail=text)
