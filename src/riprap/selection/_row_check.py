"""A check that the rows on which each layer runs are the rows of the batch.

The per-sample gradients take the first dimension of a layer's input for the batch. A layer whose
first dimension is another one of the same length (positions first, an expert that is given as many
tokens as there are rows) and a model that mixes rows would silently give wrong gradients. Two rows
are therefore run alone and compared with the batch: the rows on which each layer runs, what it is
given, and the gradients. This is done once for each kind of shape, not at each step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from riprap._warnings import warn
from riprap.errors import ConfigError
from riprap.evaluation import preserve_training_state
from riprap.linalg import upcast
from riprap.selection._grad_factors import DenseGrad, GradFactor, add_factor, select_samples
from riprap.selection._grad_hooks import GradSampleAccumulator, LayerCall, PerSampleGradHooks
from riprap.selection._grad_samplers import first_input
from riprap.selection._row_losses import output_field

# One number for each of the given rows of the batch, shape (rows,).
RowNumbers = Callable[[list[int]], Tensor]

# Relative; on an accelerator TF32, in half precision an expert that is routed otherwise in a tie.
TOLERANCE, ON_ACCELERATOR, IN_HALF_PRECISION = 1e-3, 1e-2, 0.5
CANNOT = "train without the selector"


@dataclass
class _Call:
    """One run of a layer in a forward pass: the rows it ran on, and norms of some of its inputs."""

    name: str
    n_rows: int
    norms: list[float]


class _CheckedRows(GradSampleAccumulator):
    """Gradients of the checked rows only."""

    checked: Sequence[int] = ()

    def add(self, param_index: int, factor: GradFactor) -> None:
        part = DenseGrad(select_samples(factor, [*self.checked]).materialize())
        add_factor(self.factors.setdefault(param_index, []), part)


@dataclass
class CheckedCalls:
    """Kinds of layer calls whose rows were found to be those of the batch; passes so far."""

    verified: set[LayerCall] = field(default_factory=set)
    n_passes: int = 0


@dataclass
class RowChecker:
    """Decide when a pass is to be checked, and check it."""

    model: nn.Module
    hooks: PerSampleGradHooks
    done: CheckedCalls = field(default_factory=CheckedCalls)

    def is_due(self, accumulator: GradSampleAccumulator, row_dims: int) -> bool:
        """Return whether a layer ran in a way that was not checked yet.

        A layer that is given fewer dimensions than the batch has may be an expert, to which other
        tokens are routed at each pass: it is checked again at passes 1, 2, 4, 8, and so on.

        Args:
            row_dims: dimensions of a layer's output that keeps the batch's.
        """
        if accumulator.rows < 2:
            return False
        self.done.n_passes += 1
        again = self.done.n_passes & (self.done.n_passes - 1) == 0
        unstable = any(dims < row_dims for _, dims, _ in accumulator.layer_calls)
        return bool(accumulator.layer_calls - self.done.verified) or (again and unstable)

    def check(
        self,
        accumulator: GradSampleAccumulator,
        rows: list[int],
        run: RowNumbers,
        in_training_mode: bool = False,
    ) -> None:
        """Compare rows run alone with the batch; raise a ConfigError that names the layer.

        The model and its gradients are unchanged afterwards.

        Args:
            rows: the rows to run alone.
            run: runs the model on some rows, or on all.
            in_training_mode: check in training mode without dropout; in evaluation mode only if
                the model is random without dropout too.
        """
        modes = [(module, module.training) for module in self.model.modules()]
        self.hooks.accumulator, disabled = None, self.hooks.disabled
        self.hooks.disabled = True
        try:
            with torch.enable_grad(), preserve_training_state(self.model, float32_logits=False):
                with _training_without_dropout(modes) if in_training_mode else nullcontext():
                    found = self._compare(accumulator.rows, rows, run, in_training_mode)
                if not found:
                    self._compare(accumulator.rows, rows, run, False)
        except ConfigError:
            raise
        except Exception as error:  # noqa: BLE001 the check is not the training
            warn(
                "single rows of this batch could not be run, so it was not checked that "
                f"every layer's rows are those of the batch: {type(error).__name__}: {error}",
            )
        finally:
            self.hooks.accumulator, self.hooks.disabled = None, disabled
        self.done.verified |= accumulator.layer_calls

    def _compare(self, n_rows: int, rows: list[int], run: RowNumbers, random: bool) -> bool:
        """Return False if the model is random, so that nothing can be compared."""
        if random:
            with torch.no_grad():
                draws = [float(run(rows[:1])) for _ in range(2)]
            if draws[0] != draws[1]:
                return False
        parameters = self.hooks.parameters
        alone, grads, numbers = [], [], []
        for row in rows:
            with self._record_calls([0]) as calls:
                number = run([row])
            alone.append(calls)
            numbers.append(float(number.detach()))
            if number.requires_grad:  # an expert may be given nothing of this row
                number.sum().backward()  # type: ignore[no-untyped-call]
            grads.append([parameter.grad for parameter in parameters])
            for parameter in parameters:
                parameter.grad = None
        caught = _CheckedRows(n_rows, True, self.hooks.shared_params)
        caught.checked = rows
        self.hooks.accumulator = caught
        with self._record_calls(rows) as calls:
            values = run([*range(n_rows)])
        caught.in_forward = False
        values.sum().backward()  # type: ignore[no-untyped-call]
        tolerance = self._tolerance(values)
        scale = float(upcast(values.detach()).square().mean().sqrt())
        for at, row in enumerate(rows):
            own = {i: part.materialize()[at] for i, [part] in caught.factors.items()}
            what, size = "the output", max(abs(numbers[at]), scale, 1e-30)
            error = abs(float(values[row].detach()) - numbers[at]) / size
            if error <= tolerance:
                what, error = self._find_difference(own, grads[at], tolerance)
            if error > tolerance:
                _refuse_calls(calls, alone[at], at, row, n_rows, tolerance)
                raise ConfigError(
                    f"{what} of row {row} in the batch is not the one of this row alone (they "
                    f"differ by {error:.0%}): rows are mixed after {calls[-1].name}, so no row "
                    f"has a gradient of its own: {CANNOT}"
                )
        return True

    def _tolerance(self, values: Tensor) -> float:
        dtypes = {parameter.dtype for parameter in self.model.parameters()} | {values.dtype}
        kind = values.device.type
        if torch.is_autocast_enabled(kind) or any(dtype.itemsize < 4 for dtype in dtypes):
            return IN_HALF_PRECISION
        return TOLERANCE if kind == "cpu" else ON_ACCELERATOR

    @contextmanager
    def _record_calls(self, rows: list[int]) -> Iterator[list[_Call]]:
        calls: list[_Call] = []

        def record(name: str, _: nn.Module, args: Any, named: Any) -> None:
            x = first_input((args, named)).detach()
            # A layer that runs once for all rows gives each row the same.
            own = [x[row if len(x) > row else 0] for row in rows] if x.dim() and len(x) else []
            norms = [float(torch.linalg.vector_norm(upcast(part).float())) for part in own]
            calls.append(_Call(name, len(x) if x.dim() else 1, norms))

        handles = [
            layer.register_forward_pre_hook(
                partial(record, self.hooks.layer_names[layer]), with_kwargs=True
            )
            for layer in self.hooks.layers
        ]
        try:
            yield calls
        finally:
            for handle in handles:
                handle.remove()

    def _find_difference(
        self, caught: dict[int, Tensor], alone: list[Tensor | None], tolerance: float
    ) -> tuple[str, float]:
        """Return the first gradient that differs, and by how much; 0 if none does."""
        own = [0.0 if grad is None else float(upcast(grad).norm()) for grad in alone]
        floor = 0.01 * sum(norm**2 for norm in own) ** 0.5  # a gradient of rounding errors only
        for index, name in enumerate(self.hooks.names):
            zero = torch.zeros((), device=self.hooks.parameters[index].device)
            pair = [zero if g is None else upcast(g) for g in (caught.get(index), alone[index])]
            error = float((pair[0] - pair[1]).norm())
            if error > tolerance * (own[index] + floor):
                return f"the gradient of {name}", error / max(own[index] + floor, 1e-30)
        return "", 0.0


def _refuse_calls(
    batch: list[_Call], alone: list[_Call], at: int, row: int, n_rows: int, tolerance: float
) -> None:
    """Raise a ConfigError that names the first layer that runs otherwise for a row alone."""
    for one, other in zip_longest(batch, alone):
        if one is None or other is None or one.name != other.name:
            missing = one or other
            raise ConfigError(
                f"{missing.name} runs on {missing.n_rows} rows of a batch of {n_rows}, and not "
                f"in the same way on row {row} alone, so its rows are not those of the batch "
                f"(a mixture of experts routes tokens): freeze its parameters, or {CANNOT}"
            )
        if one.n_rows != n_rows:  # not of the rows, and without a gradient: DoRA's norms
            continue
        if other.n_rows != 1:
            raise ConfigError(
                f"{one.name} runs on {n_rows} rows of a batch of {n_rows}, and on {other.n_rows} "
                f"for row {row} alone, so its rows are not those of the batch (positions come "
                "first, or a mixture of experts routes tokens): freeze its parameters, or "
                f"{CANNOT}"
            )
        got, expected = one.norms[at], other.norms[0]
        if abs(got - expected) > tolerance * max(abs(expected), 1e-6):
            raise ConfigError(
                f"the rows of a batch are mixed before {one.name}: row {row} alone gives it "
                f"another input than in the batch, so no row has a gradient of its own: {CANNOT}"
            )


def project_outputs(output: Any, rows: list[int]) -> Tensor:
    """Return a fixed random projection of each row's outputs, shape (rows,)."""
    logits = output_field(output, "logits")
    found = [logits] if isinstance(logits, Tensor) else tree_flatten(output)[0]
    total = None
    for value in found:
        if not isinstance(value, Tensor) or not value.is_floating_point() or not value.dim():
            continue
        if len(value) != len(rows):
            continue
        flat = value.reshape(len(rows), -1, value.shape[-1])
        last = _noise(flat.shape[2], 0)
        inner = torch.stack([_noise(flat.shape[1], 1 + row) for row in rows])
        part = (upcast(flat @ last.to(flat)) * inner.to(flat.device)).sum(1)
        total = part if total is None else total + part
    if total is None:
        raise ValueError(f"no output has {len(rows)} rows")
    return total


def _noise(size: int, seed: int) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


@contextmanager
def _training_without_dropout(modes: list[tuple[nn.Module, bool]]) -> Iterator[None]:
    """Return to training mode, with every probability of a dropout at 0."""
    saved = [
        (module, name, value)
        for module, _ in modes
        for name, value in vars(module).items()
        if isinstance(value, float)
        and ("drop" in name or (name == "p" and isinstance(module, nn.modules.dropout._DropoutNd)))
    ]
    try:
        for module, training in modes:
            module.training = training
        for module, name, _ in saved:
            setattr(module, name, 0.0)
        yield
    finally:
        for module, name, value in saved:
            setattr(module, name, value)
        for module, _ in modes:
            module.training = False
