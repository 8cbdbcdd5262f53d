"""`FastSlow`: a GRPO trainer whose rollouts are spread over a population that evolves."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

from tqdm.auto import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME

from riprap._checks import NamedCall, check_count, shown
from riprap._text import error_text, shorten
from riprap._warnings import warn
from riprap.errors import ConfigError, RecordError
from riprap.fastslow._arguments import check_arguments, check_trainer
from riprap.fastslow._cycle import Select, run_cycle
from riprap.fastslow._population import Cycle, Population
from riprap.fastslow._proposers import Proposer
from riprap.fastslow._rollouts import Combine, Rollouts, before_problem
from riprap.monitor import Monitor
from riprap.record import FAST_CYCLE, check_fields

KEY = "riprap.fastslow"  # of the state in the trainer's checkpoints


class FastSlow(metaclass=NamedCall):
    """Fast–slow training around TRL's `GRPOTrainer`: `FastSlow(trainer, ...)`, `trainer.train()`.

    The rollouts of each problem are spread over a population of instructions. TRL's advantages are
    per problem, so they compare the rollouts of all instructions. Before the first step, and every
    `every` steps from then on, a cycle of GEPA evolves the population with the weights as they are.
    Training is TRL's own; only its rollouts have other prompts. Reward functions get the problem as
    it is in the data set, and the instruction as `instruction`.

    The population is saved in the trainer's checkpoints, and `resume_from_checkpoint` restores it.

    Args:
        trainer: trainer with rewards that are plain functions, generation with transformers, and
            one process.
        population: instructions at the start, each once; "" leaves problems as they are.
        proposer: writes new instructions; None only with `every=None`.
        every: optimizer steps from one cycle to the next; None: the population stays as it is. A
            cycle that is due runs just before the trainer generates new rollouts.
        keep: largest population. The number of rollouts of a problem must be a multiple of it.
        select: "pareto" keeps instructions of the per-instance Pareto front. "random" is a control:
            the same cycle, whose parents and kept instructions are drawn at random.
        problems: training problems that a cycle scores instructions on, drawn anew for each.
        budget: rollouts after which a cycle proposes nothing more; None: `2 * keep * problems`.
        minibatch: problems on which a new instruction must beat its parent.
        combine: function of an instruction and a problem that returns the prompt.
        monitor: gets each cycle as an event of its record.
        seed: of cycles: their problems, samples and choices.

    Attributes:
        population: instructions in use, the best of the last cycle first.
        cycles: all cycles so far, each a `Cycle`.
        training_rollouts, cycle_rollouts: texts that the model generated for training, and for
            cycles. Evaluations of the trainer do not count.
        progress: called during a cycle with its rollouts so far, and its budget; None: a bar is
            shown, unless the trainer has `disable_tqdm`.

    Raises:
        ConfigError: an argument that does not fit, before training.
    """

    def __init__(
        self,
        trainer: Any,
        population: Sequence[str],
        *,
        proposer: Proposer | None = None,
        every: int | None = 6,
        keep: int = 4,
        select: Select = "pareto",
        problems: int = 16,
        budget: int | None = None,
        minibatch: int = 4,
        combine: Combine = before_problem,
        monitor: Monitor | None = None,
        seed: int = 0,
    ) -> None:
        check_trainer(trainer)
        if trainer.rollout_func is not None:
            raise ConfigError(
                "the trainer has a rollout_func already, and FastSlow sets its own: give a new "
                "trainer without one"
            )
        check_arguments(
            trainer.num_generations,
            population,
            proposer=proposer,
            every=every,
            keep=keep,
            select=select,
            problems=problems,
            budget=budget,
            minibatch=minibatch,
        )
        rows = len(trainer.train_dataset)
        if proposer is not None and minibatch > rows:
            raise ConfigError(
                f"minibatch={minibatch}, and the training data has {rows} problems: give a smaller "
                "minibatch, or more problems"
            )
        if monitor is not None and not isinstance(monitor, Monitor):
            raise ConfigError(f"FastSlow got {shown(monitor)} as monitor: give a riprap.Monitor")
        if not callable(combine):
            raise ConfigError(f"FastSlow got {shown(combine)} as combine: give a function")
        self.trainer, self.proposer, self.every, self.keep = trainer, proposer, every, keep
        self.select, self.problems = select, problems
        self.budget = 2 * keep * problems if budget is None else budget
        self.minibatch, self.monitor, self.seed = minibatch, monitor, seed
        self.cycles: list[Cycle] = []
        self.training_rollouts = 0
        self.progress: Callable[[int, int], None] | None = None
        self._given = list(population)
        self._state: dict[str, Any] | None = None  # what changes with a cycle only
        self._population = Population(population)
        self._rollouts = Rollouts(trainer, combine)
        self._last: int | None = None  # step of the last cycle in this training
        self._check_reach()
        trainer.rollout_func = self._roll_out
        trainer.add_callback(_Callback(self))

    def __repr__(self) -> str:
        kept, n = len(self.population), len(self.cycles)
        return f"FastSlow({kept} instructions after {n} cycles, {self.rollouts} rollouts)"

    @property
    def population(self) -> list[str]:
        """Instructions in use, the best of the last cycle first."""
        return list(self._population.texts)

    @property
    def cycle_rollouts(self) -> int:
        """Texts that the model generated for cycles, those that failed included."""
        return self._rollouts.generated

    @property
    def rollouts(self) -> int:
        """All texts that the model generated, for training and for cycles."""
        return self.training_rollouts + self.cycle_rollouts

    def cycle(self) -> Cycle:
        """Evolve the population once with the weights as they are.

        During training, cycles run by themselves.

        Raises:
            ConfigError: the population is one that stays, with `every=None` and no proposer.
        """
        if self.proposer is None:
            raise ConfigError("a cycle needs a proposer: give one to FastSlow")
        trainer, data = self.trainer, self.trainer.train_dataset
        rng = Random(f"{self.seed}/{len(self.cycles)}")
        drawn = sorted(rng.sample(range(len(data)), min(self.problems, len(data))))
        self._state = None
        with self._bar() as show:
            done = run_cycle(
                self._rollouts,
                {at: dict(data[at]) for at in drawn},
                self._population,
                self.proposer,
                step=trainer.state.global_step,
                keep=self.keep,
                select=self.select,
                budget=self.budget,
                minibatch=self.minibatch,
                batch_size=trainer.args.generation_batch_size,
                rng=rng,
                progress=show,
            )
        self.cycles.append(done)
        if self.monitor is not None:
            facts = done.to_dict() | {"cycle": len(self.cycles), "select": self.select}
            facts |= {"training_rollouts": self.training_rollouts}
            facts |= {"cycle_rollouts": self.cycle_rollouts}
            self.monitor.log_event(FAST_CYCLE, **facts)
            try:  # without a watch, nothing else would write it
                self.monitor.record.flush()
            except RecordError as error:
                warn(str(error))
        return done

    @contextmanager
    def _bar(self) -> Iterator[Callable[[int], None]]:
        """Show the rollouts of a cycle, by `progress` or by a bar."""
        if self.progress is not None:
            yield self._tell
            return
        with tqdm(
            total=self.budget,
            desc=f"cycle {len(self.cycles) + 1}",
            unit="rollout",
            leave=False,
            disable=self.trainer.args.disable_tqdm,
        ) as bar:
            yield lambda done: bar.update(done - bar.n)

    def _tell(self, done: int) -> None:
        if self.progress is None:
            return
        try:
            self.progress(done, self.budget)
        except Exception as error:  # noqa: BLE001 what only shows never ends a training
            self.progress = None
            warn(f"the progress of cycles is not shown any more: {error_text(error)}")

    def evolve(self, rollouts: int) -> None:
        """Run cycles, without training, until this many rollouts are counted in all.

        Raises:
            ConfigError: `rollouts` is no whole number of at least 1, or there is no proposer.
        """
        check_count("rollouts", rollouts)
        while self.rollouts < rollouts:
            self.cycle()

    def state_dict(self) -> dict[str, Any]:
        """Return population, lineage, cycles and counters as plain values.

        Rejected instructions are left out; they are in the record.
        """
        if self._state is None:
            self._state = {
                "settings": self._settings(),
                "population": self._population.state_dict(),
                "cycles": [cycle.to_dict() | {"rejected": []} for cycle in self.cycles],
            }
        return self._state | {
            "training_rollouts": self.training_rollouts,
            "cycle_rollouts": self.cycle_rollouts,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            ConfigError: it is no such state, or of a run with other arguments.
        """
        try:
            check_fields(
                state,
                settings=dict,
                population=dict,
                cycles=list,
                training_rollouts=int,
                cycle_rollouts=int,
            )
            own = self._settings()
            check_fields(state["settings"], **dict.fromkeys(own, int | str | list | None))
            cycles = [Cycle.from_dict(entry) for entry in state["cycles"]]
            loaded = Population(self.population)
            loaded.load_state_dict(state["population"])
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"this is no state of FastSlow: {error}") from error
        for name, value in own.items():
            if state["settings"][name] != value:
                raise ConfigError(
                    f"the state is of a run with {name}={shorten(repr(state['settings'][name]))}, "
                    f"and this one has {shorten(repr(value))}: resume with the same arguments"
                )
        self._population, self.cycles = loaded, cycles
        self.training_rollouts = state["training_rollouts"]
        self._rollouts.generated = state["cycle_rollouts"]
        self._state = None

    def _settings(self) -> dict[str, Any]:
        """Return what a resumed run must have too; `combine` and the proposer cannot be told."""
        names = ("every", "keep", "select", "problems", "budget", "minibatch", "seed")
        return {name: getattr(self, name) for name in names} | {"population": self._given}

    def _check_reach(self) -> None:
        """Refuse instructions that never reach the model, by the first problem."""
        texts = {*self.population, ""}
        if self.proposer is not None:
            texts.add(f"{self.population[0]} 1 2 3".strip())
        problem = self.trainer.train_dataset[0]["prompt"]
        try:
            asked = [self._rollouts.tokenize([self._rollouts.combine(t, problem)]) for t in texts]
        except Exception as error:
            raise ConfigError(
                f"an instruction and a problem make no prompt: {error_text(error)}; check combine "
                "and the chat template"
            ) from error
        if len(texts) > 1 and all(ids == asked[0] for ids in asked):
            raise ConfigError(
                "all instructions make the same prompt: combine or the chat template leaves them "
                "out, as some templates do with a system turn; give another combine"
            )

    def _begin(self, state: TrainerState) -> None:
        """Begin a training, or go on with that of a checkpoint."""
        check_trainer(self.trainer)
        if self.trainer.rollout_func != self._roll_out:
            raise ConfigError(
                "the trainer's rollout_func is no longer that of FastSlow, so no instruction would "
                "be used: make a new trainer and a new FastSlow"
            )
        self._last = None
        if state.global_step == 0:
            return
        saved: Any = state.stateful_callbacks or {}
        if KEY in saved:
            self.load_state_dict(saved[KEY])
            self._last = self.cycles[-1].step if self.cycles else None
        else:
            warn(
                "the checkpoint has no population, because it was saved without FastSlow: the "
                "population starts here as it was given"
            )

    def _restore_texts(self, checkpoint: Path) -> None:
        """Restore the population of a checkpoint; cycles and counters stay those of the end."""
        state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
        saved: Any = state.stateful_callbacks or {}
        if KEY in saved:
            self._population.texts = list(saved[KEY]["population"]["texts"])
            self._state = None
        else:
            warn(f"the best checkpoint {checkpoint} has no population: that of the end stays")

    def _is_due(self) -> bool:
        step = self.trainer.state.global_step
        if self.every is None:
            return False
        return self._last is None or step // self.every > self._last // self.every

    def _roll_out(self, prompts: Sequence[Any], trainer: Any) -> dict[str, Any]:
        """Generate completions for a batch of problems, those of one group one after another.

        In training, the cycle that is due comes first: TRL may use rollouts for several steps.
        """
        training = trainer.model.training
        if training and self._is_due():
            self._last = trainer.state.global_step
            self.cycle()
        texts = self._population.texts
        group = trainer.num_generations_eval
        # Training goes on where its last batch ended: a population that does not divide the group
        # gets its rollouts in turn. An evaluation begins with the best instruction on each problem.
        first = self.training_rollouts
        places = [first + at if training else at % group for at in range(len(prompts))]
        instructions = [texts[place % len(texts)] for place in places]
        combine = self._rollouts.combine
        asked = [combine(own, prompt) for own, prompt in zip(instructions, prompts, strict=True)]
        prompt_ids, completion_ids = self._rollouts.generate(asked)
        if training:
            self.training_rollouts += len(prompts)
        return {
            "prompt_ids": prompt_ids,
            "completion_ids": completion_ids,
            "logprobs": None,  # only vLLM's differ from the model's own
            "instruction": instructions,
        }


class _Callback(TrainerCallback):
    """Keeps the state of a `FastSlow` in the trainer's checkpoints, and takes it from the best."""

    def __init__(self, fast_slow: FastSlow) -> None:
        self._fast_slow = fast_slow

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Restore the population of a checkpoint."""
        self._fast_slow._begin(state)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Put the state where the trainer's checkpoints take it from."""
        saved: Any = state.stateful_callbacks
        saved[KEY] = self._fast_slow.state_dict()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Restore the population of the best checkpoint, whose weights the trainer has restored."""
        if args.load_best_model_at_end and state.best_model_checkpoint is not None:
            self._fast_slow._restore_texts(Path(state.best_model_checkpoint))
