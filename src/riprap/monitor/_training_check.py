"""Training that does not train: trained tensors without a gradient, and those that do not move."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from riprap.linalg import is_sharded, to_local
from riprap.monitor._weight_sample import elements
from riprap.record import check_fields
from riprap.types import RUN, Reading

MAX_NAMED = 4  # blocks that a text names
MIN_STEPS = 6  # without a gradient, in a row; rare experts and heads of several tasks have fewer
MANY_BLOCKS = 0.25  # share of the blocks without any gradient at which training does not train


class TrainingCheck:
    """Counts trained tensors with a non-zero gradient, and those that move, between evaluations.

    The rule, on two probe evaluations in a row with steps before each: training does not train if
    no trained tensor moved; or if the tensors without a gradient (None, or exactly 0) at *both*,
    and for `MIN_STEPS` steps or more, are half of all or more, make up a quarter of all blocks
    and at least two, or are all tensors of a kind (equal names but for numbers) in at least two
    blocks. A missing gradient counts from the evaluation on before which something had moved:
    while LoRA's B is 0, A's gradient is 0.

    Costs no copy: a tensor is looked at until its gradient, or its movement, was once not 0 since
    the last evaluation.
    """

    def __init__(
        self,
        model: nn.Module,
        parameters: Sequence[Tensor],
        optimizers: Sequence[torch.optim.Optimizer] = (),
    ) -> None:
        self._optimizers = optimizers
        self._has_moved = self._stuck = False
        self._dead_before: set[str] | None = None
        self._dead_steps: dict[str, int] = {}  # without a gradient in a row, by name
        self.problem = ""
        self._steps = 0
        self.names: list[str] = []
        self._required, self._with_gradient, self._moved = set[int](), set[int](), set[int]()
        self.set_parameters(model, parameters)

    def set_parameters(self, model: nn.Module, parameters: Sequence[Tensor]) -> None:
        """Check these parameters from now on; counts so far are kept by name."""
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        self._model = model
        kept = [
            {self.names[index] for index in own}
            for own in (self._required, self._with_gradient, self._moved)
        ]
        self.parameters = list(parameters)
        self.names = [names.get(id(p), f"tensor {i}") for i, p in enumerate(self.parameters)]
        self._required, self._with_gradient, self._moved = (self._indices(own) for own in kept)

    def _indices(self, names: Iterable[str]) -> set[int]:
        own = set(names)
        return {index for index, name in enumerate(self.names) if name in own}

    @property
    def is_unseen(self) -> bool:
        """True if a tensor had no gradient yet since the last evaluation, or may require one."""
        n = len(self.parameters)
        return len(self._with_gradient) < n or len(self._required) < n

    def note_gradient(self) -> None:
        """Look at `.grad` before a step."""
        self._required.update(i for i, p in enumerate(self.parameters) if p.requires_grad)
        unseen = [i for i in sorted(self._required) if i not in self._with_gradient]
        grads = [(i, self.parameters[i].grad) for i in unseen]
        self._with_gradient |= _not_zero([(i, grad) for i, grad in grads if grad is not None])

    def note_step(self) -> None:
        """Count a step."""
        self._steps += 1

    @torch.no_grad()
    def note_movement(self, before: Sequence[Tensor]) -> None:
        """Compare the tensors with what they were at an earlier step since the last evaluation."""
        pairs = {
            i: (to_local(now).detach(), to_local(old))
            for i, (now, old) in enumerate(zip(self.parameters, before, strict=True))
            if i not in self._moved
        }
        pairs = {i: pair for i, pair in pairs.items() if pair[0].numel()}
        # Some elements decide nearly always; all of them are compared only where these are equal.
        self._moved |= _not_zero(
            [
                (i, elements(now) - elements(old))
                for i, (now, old) in pairs.items()
                if now.stride() == old.stride()
            ]
        )
        for i, (now, old) in pairs.items():
            if i not in self._moved:
                self._moved |= _not_zero([(i, now - old)])

    def evaluate(self, step: int) -> list[Reading]:
        """Return the counts since the last evaluation, and update `problem`; start to count anew.

        For sharded parameters all ranks must call it.
        """
        if not self._steps or not self._required:
            return []
        self._combine_ranks()
        required = sorted(self._required | self._moved)
        dead = [i for i in required if i not in self._with_gradient]
        still = [i for i in required if i not in self._moved]
        problem = self._find_problem({self.names[i] for i in dead}, required, len(still))
        self.problem = self._find_lost() or problem
        readings = [
            self._reading(step, "tensors_with_gradient", "gradient", dead, required),
            self._reading(step, "tensors_moved", "movement", still, required),
        ]
        self._has_moved = self._has_moved or bool(self._moved)
        self._required, self._with_gradient, self._moved = set(), set(), set()
        self._steps = 0
        return readings

    def _reading(
        self, step: int, signal: str, what: str, without: list[int], required: list[int]
    ) -> Reading:
        count, n = len(required) - len(without), len(required)
        detail = ""
        if without:
            detail = f"no {what} in {self._describe(without, required)}"
        return Reading(step, RUN, signal, float(count), f"of {n} tensors", detail=detail)

    def _find_problem(self, dead: set[str], required: list[int], n_still: int) -> str:
        stuck, n = n_still == len(required), len(required)
        stuck_twice = stuck and self._stuck
        steps = {name: self._dead_steps.get(name, 0) + self._steps for name in dead}
        twice = {name for name in dead & (self._dead_before or set()) if steps[name] >= MIN_STEPS}
        self._stuck = stuck
        self._dead_before = dead if self._has_moved else None
        self._dead_steps = steps if self._has_moved else {}
        if stuck_twice:
            rates = [group.get("lr", 1) for one in self._optimizers for group in one.param_groups]
            why = "although gradients arrive"
            if len(dead) == n:
                why = "none of them has a gradient"
            elif rates and not any(rates):
                why = "the learning rate is 0"
            return f"the optimizer steps, and none of {n} trainable tensors moves ({why})"
        if not twice or not self._is_serious(twice, required):
            return ""
        where = self._describe(sorted(self._indices(twice)), required)
        return (
            f"{len(twice)} of {n} trainable tensors have no gradient, or one of exactly 0: {where}"
            "; if they shall not be trained, freeze them with requires_grad_(False)"
        )

    def _find_lost(self) -> str:
        """Return a text if trained tensors are no longer those of the model."""
        if any(is_sharded(parameter) for parameter in self.parameters):
            return ""  # FSDP2 exchanges the model's parameters around each pass
        current = {id(parameter) for parameter in self._model.parameters()}
        lost = [i for i, parameter in enumerate(self.parameters) if id(parameter) not in current]
        if not lost:
            return ""
        where = self._describe(lost, range(len(self.parameters)))
        return (
            f"{len(lost)} trained tensors are no longer part of the model ({where}): the optimizer "
            "trains tensors that the model does not use; create the optimizer anew"
        )

    def _is_serious(self, dead: set[str], required: list[int]) -> bool:
        names = [self.names[i] for i in required]
        if 2 * len(dead) >= len(names):
            return True
        blocks = _group(names, _block)
        dead_blocks = [name for name, own in blocks.items() if own <= dead]
        if len(dead_blocks) >= max(2, MANY_BLOCKS * len(blocks)):
            return True
        kinds = _group(names, _kind)
        return any(
            len({_block(name) for name in own}) > 1 and own <= dead for own in kinds.values()
        )

    def _describe(self, indices: Sequence[int], required: Sequence[int]) -> str:
        """Name whole blocks, with ranges of layers, then the kinds of the other tensors."""
        chosen = {self.names[i] for i in indices}
        blocks = _group([self.names[i] for i in required], _block)
        whole = [name for name, own in blocks.items() if own <= chosen]
        rest = chosen - {tensor for name in whole for tensor in blocks[name]}
        parts = _ranges(whole)
        for kind, own in _group(sorted(rest), _kind).items():
            parts.append(next(iter(own)) if len(own) == 1 else f"{kind} ({len(own)} tensors)")
        more = f" and {len(parts) - MAX_NAMED} more" if len(parts) > MAX_NAMED else ""
        return ", ".join(parts[:MAX_NAMED]) + more

    def _combine_ranks(self) -> None:
        """Count a tensor if any rank's shard of it counts."""
        if not any(is_sharded(parameter) for parameter in self.parameters):
            return
        device = to_local(self.parameters[0]).device
        flags = torch.zeros(2, len(self.parameters), device=device)
        for row, own in zip(flags, (self._with_gradient, self._moved), strict=True):
            row[sorted(own)] = 1.0
        dist.all_reduce(flags, op=dist.ReduceOp.MAX)
        self._with_gradient, self._moved = (
            {i for i, flag in enumerate(row) if flag} for row in flags.tolist()
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the counts by name of the tensors, as plain values."""

        def names(indices: Iterable[int]) -> list[str]:
            return [self.names[i] for i in sorted(indices)]

        return {
            "steps": self._steps,
            "required": names(self._required),
            "with_gradient": names(self._with_gradient),
            "moved": names(self._moved),
            "has_moved": self._has_moved,
            "stuck": self._stuck,
            "dead_before": None if self._dead_before is None else sorted(self._dead_before),
            "dead_steps": dict(self._dead_steps),
            "problem": self.problem,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            ValueError: the state is malformed.
        """
        check_fields(
            state,
            steps=int,
            required=list,
            with_gradient=list,
            moved=list,
            has_moved=bool,
            stuck=bool,
            dead_before=list | None,
            dead_steps=dict,
            problem=str,
        )
        self._steps, self.problem = state["steps"], state["problem"]
        self._has_moved, self._stuck = state["has_moved"], state["stuck"]
        self._required = self._indices(state["required"])
        self._with_gradient = self._indices(state["with_gradient"])
        self._moved = self._indices(state["moved"])
        self._dead_steps = dict(state["dead_steps"])
        dead = state["dead_before"]
        self._dead_before = None if dead is None else set(dead)


@torch.no_grad()
def _not_zero(parts: Sequence[tuple[int, Tensor]]) -> set[int]:
    """Return the indices of tensors with an element that is not 0; NaN is not 0."""
    local = []
    for index, part in parts:
        own = to_local(part).detach()
        own = own.coalesce().values() if own.is_sparse else own
        if own.numel():
            local.append((index, own))
    # Some elements decide nearly always; all of them are read only where these are 0.
    found = _nonzero_indices([(index, elements(own)) for index, own in local])
    return found | _nonzero_indices([(i, own) for i, own in local if i not in found])


def _nonzero_indices(parts: Sequence[tuple[int, Tensor]]) -> set[int]:
    if not parts:
        return set()
    # The largest element, not the sum of squares, which underflows.
    largest = torch._foreach_norm([own for _, own in parts], ord=float("inf"))
    values = torch.stack([value.to(largest[0].device) for value in largest]).tolist()
    return {index for (index, _), value in zip(parts, values, strict=True) if value != 0}


def _block(name: str) -> str:
    """Return the name of a tensor up to its first number; without one, the name of its module."""
    match = re.match(r"(?:.*?\.)??\d+(?=\.|$)", name)
    return match[0] if match else name.rpartition(".")[0] or name


def _kind(name: str) -> str:
    return re.sub(r"(?<=\.)\d+(?=\.|$)|^\d+(?=\.)", "*", name)


def _group(names: Iterable[str], key: Any) -> dict[str, set[str]]:
    groups: dict[str, set[str]] = {}
    for name in names:
        groups.setdefault(key(name), set()).add(name)
    return groups


def _ranges(blocks: Sequence[str]) -> list[str]:
    """Shorten ["layers.0", "layers.1", "head"] to ["layers.0 to layers.1", "head"]."""
    runs: list[list[str]] = []
    for block in blocks:
        stem, _, number = block.rpartition(".")
        if runs and number.isdigit():
            last_stem, _, last = runs[-1][-1].rpartition(".")
            if last_stem == stem and last.isdigit() and int(last) + 1 == int(number):
                runs[-1].append(block)
                continue
        runs.append([block])
    return [run[0] if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs]
