"""Next step after a run: one change of its configuration, or that none is needed."""

from __future__ import annotations

from riprap.conclusion._facts import RunFacts
from riprap.conclusion._outcome import BehaviorOutcome, State

ENOUGH_PROBES = 48  # from which on no larger set is advised
ZERO_RATE = "the learning rate is 0"  # in the monitor's alert that nothing trains


def advice(facts: RunFacts) -> str:
    """Return one change that helps against the worst that was found, or that none is needed."""
    if all(own.first is None for own in facts.outcomes):
        return "Look at the missing readings: they say why nothing was measured."
    if facts.idle is not None and facts.unchanged:
        if ZERO_RATE in facts.idle.message:
            return "Set the learning rate above 0."
        return "Run `riprap doctor`: it says which parameters of a model would train."
    broken = [own for own in facts.outcomes if own.broke is not None]
    lost = [own for own in broken if own.state is not State.RECOVERED]
    if lost or (broken and not facts.guards):
        return _against_loss(facts, (lost or broken)[0])
    if missing := facts.of(State.UNMEASURED):
        name = _plain(missing[0].name)
        return f"Mend what kept {name} from being measured: see the missing readings."
    if weakened := facts.of(State.WEAKENED):
        if doubt := _doubt(facts, weakened[0].name):
            return f"Before training goes on: {doubt}"
        if facts.guards or facts.idle_guard:
            return "Before training goes on, lower the learning rate."
        guard = _auto_guard(facts)
        return f"Before training goes on, add a guard for {_plain(weakened[0].name)} ({guard})."
    if never := facts.of(State.NEVER_HAD):
        if not never[0].first:
            return f"Give {_plain(never[0].name)} other probes: the model passed none of them."
        return f"For {_plain(never[0].name)} use {_setting(facts, 'keep_passing', True)}."
    smallest = min(facts.powers.items(), key=lambda item: item[1].n_probes, default=None)
    if smallest is not None and smallest[1].n_probes < ENOUGH_PROBES:
        return (
            f"Give {_plain(smallest[0])} {ENOUGH_PROBES} probes or more: smaller losses then show."
        )
    if facts.of(State.BROKEN):  # only in the weights that were loaded at the end
        return "Look at how the weights that were loaded at the end were made."
    if broken:
        return f"Nothing needs a change now: {_plain(broken[0].name)} is above its floor again."
    if not facts.finished:
        return "Nothing needs a change so far."
    if facts.guards:
        return "Nothing needs a change. Only a run without the guard could show if it was needed."
    return "Nothing needs a change. To check whole answers as well, run `riprap eval`."


def _against_loss(facts: RunFacts, worst: BehaviorOutcome) -> str:
    """Return the change against a loss: first what was there and was not let act."""
    name, guard = _plain(worst.name), facts.idle_guard
    if facts.asked is not None and worst.broke is not None and facts.asked < worst.broke:
        return (
            f"Let the loop end where `monitor.should_stop` is True: at step {facts.asked:,}, "
            f"before {name} broke, training was asked to stop, and went on."
        )
    if doubt := _doubt(facts, worst.name):
        return doubt
    if facts.guards:
        return f"{' and '.join(facts.guards)} did not hold {name}: lower the learning rate."
    if guard and facts.idle_reason:
        reason = _plain(facts.idle_reason)
        return f"Mend {guard}, which never changed training; its last action: {reason}."
    if guard:
        return f"Use a smaller `probe_every`: {guard} was there, and never changed training."
    return f"Add a guard for {name} ({_auto_guard(facts)})."


def _doubt(facts: RunFacts, name: str) -> str:
    """Return what seemed wrong with the guard's old examples of a behavior; empty: nothing."""
    doubt = facts.doubts.get(name, "")
    return doubt and f"Mend the old examples of {_plain(name)}: {_plain(doubt)}."


def _plain(name: str) -> str:
    """Return a name without ` marks, which stand around code here."""
    return name.replace("`", "'")


def _auto_guard(facts: RunFacts) -> str:
    return "`guard: {name: AutoGuard}`" if facts.from_file else "`guard=guards.AutoGuard(...)`"


def _setting(facts: RunFacts, key: str, value: str | bool) -> str:
    """Return a setting as it is written where the run was configured: in YAML or in Python."""
    if facts.from_file:
        return f"`{key}: {str(value).lower()}`"
    return f'`{key}="{value}"`' if isinstance(value, str) else f"`{key}={value}`"
