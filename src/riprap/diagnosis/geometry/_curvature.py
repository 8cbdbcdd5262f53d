"""How sharply a behaviour's loss bends, and in how few directions: its Gauss–Newton matrix."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from riprap._distributed import has_sharded_parameters
from riprap.behaviors import Behavior
from riprap.diagnosis._base import Progress
from riprap.diagnosis.geometry._lanczos import lanczos
from riprap.errors import BehaviorError, ConfigError
from riprap.evaluation import answer_logits, preserve_training_state
from riprap.linalg import Vector

TOLERANCE = 1e-2  # of the largest eigenvalue: how well the others are known when Lanczos stops
PRODUCTS_PER_EIGENVALUE = 4  # Lanczos takes so many products for each eigenvalue asked for, at most


@dataclass(frozen=True)
class Curvature:
    """Top of the spectrum and trace of a Gauss–Newton matrix, in nats per squared parameter.

    Attributes:
        eigenvalues: in falling order; fewer than asked for where the matrix has no more.
        errors: for each, how far the nearest true eigenvalue may be.
        trace: the sum of all eigenvalues.
        trace_error: its standard error; 0 where the eigenvalues that were found are all.
        probes: how many it was taken of.
        products: matrix products that Lanczos took.
    """

    eigenvalues: tuple[float, ...]
    errors: tuple[float, ...]
    trace: float
    trace_error: float
    probes: int
    products: int

    @property
    def top_share(self) -> float:
        """The largest eigenvalue as a share of the trace: 1 is a bend in one direction only."""
        return self.eigenvalues[0] / self.trace

    @property
    def top_share_error(self) -> float:
        """Its standard error, from the trace's."""
        return self.top_share * self.trace_error / self.trace


def curvature(
    model: nn.Module,
    behavior: Behavior,
    *,
    top: int = 8,
    probes: int = 32,
    samples: int = 16,
    seed: int = 0,
    parameters: Sequence[Tensor] | None = None,
    progress: Progress | None = None,
) -> Curvature:
    """Top eigenvalues and trace of the Gauss–Newton matrix of a behaviour's answers.

    G = mean over probes of Jᵀ (diag p − p pᵀ) J, with J the Jacobian of the logits with which the
    model answers and p their softmax; over several tokens of an answer their mean. That is the
    Gauss–Newton matrix of the cross-entropy of an answer, whichever it is, and the Fisher matrix
    of what the model says. (For an opening of several openers, or of openers to avoid, the loss
    is that of a set of tokens, whose own second derivative in the logits may be negative.)

    The eigenvalues are those of the small twin S J Jᵀ S, which lives in the space of the logits:
    what Lanczos must keep is (answered tokens × vocabulary) a product, and not a copy of the model.
    The trace is that of the span that Lanczos found, exactly, and of the rest by Hutchinson's
    signs, a backward pass each. Products with J are taken by differentiating a backward pass, with
    attention in its plain form; two graphs of a pass over the probes are held, and three copies of
    the parameters.

    Args:
        top: eigenvalues.
        probes: how many at most; of more, as many are taken evenly over all.
        samples: signs for the trace, two at least.
        parameters: of the model; None: those that require a gradient.

    Source: Schraudolph, Neural Computation 14 (2002), section 3; Meyer et al., 2010.09649
    (Hutch++, here with Lanczos' basis in place of a sketch).

    Raises:
        BehaviorError: the model is sharded over ranks, or its answers depend on no parameter.
        ConfigError: counts that are too small.
    """
    _check(model, top, probes, samples)
    chosen = evenly_spaced_probes(behavior, probes)
    own = [p for p in model.parameters() if p.requires_grad] if parameters is None else parameters
    products = PRODUCTS_PER_EIGENVALUE * top
    done = itertools.count(1)

    def report() -> None:
        if progress is not None:
            progress(next(done), products + samples)

    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        preserve_training_state(model),
        sdpa_kernel(SDPBackend.MATH),
    ):
        twin = _LogitSpaceOperator(chosen, model, own)
        noise = torch.Generator().manual_seed(seed)

        def product(point: Tensor) -> Tensor:
            report()
            return twin.push(twin.pull(point))

        start = torch.randn(twin.size, generator=noise, dtype=torch.float64)
        ritz = lanczos(product, start, top, products, TOLERANCE)
        done = itertools.count(products + 1)  # Lanczos may stop early
        rest = []
        for _ in range(samples):
            rest.append(twin.sample(ritz.basis, noise))
            report()
    return Curvature(
        tuple(ritz.values.tolist()),
        tuple(ritz.errors.tolist()),
        ritz.trace + float(np.mean(rest)),
        float(np.std(rest, ddof=1) / np.sqrt(samples)),
        len(chosen.probes),
        len(ritz.basis),
    )


def _check(model: nn.Module, top: int, probes: int, samples: int) -> None:
    if top < 1 or probes < 1 or samples < 2:
        raise ConfigError(
            f"curvature needs top >= 1, probes >= 1 and samples >= 2, and was given {top}, "
            f"{probes} and {samples}"
        )
    if has_sharded_parameters(model):
        raise BehaviorError("a model sharded over ranks has no curvature here: gather it first")


def evenly_spaced_probes(behavior: Behavior, count: int) -> Behavior:
    """The behaviour on `most` of its probes at most, taken evenly over all.

    Raises:
        BehaviorError: there are more, and they cannot be taken apart.
    """
    count = len(behavior.probes)
    if count <= count:
        return behavior
    return behavior.subset(np.linspace(0, count - 1, count).round().astype(int).tolist())


class _LogitSpaceOperator:
    """S J Jᵀ S on the space of the logits, whose eigenvalues other than 0 are those of Jᵀ S S J.

    S Sᵀ = diag p − p pᵀ by S = diag √p − p √pᵀ, here with each token's weight. In float64 on the
    CPU: where the model is sure of itself, the terms of S all but cancel.
    """

    def __init__(self, behavior: Behavior, model: nn.Module, parameters: Sequence[Tensor]) -> None:
        self.logits = answer_logits(behavior, model)
        self.shape, self.size = self.logits.shape, self.logits.numel()
        self.p = self.logits.detach().cpu().double().softmax(-1)
        self.weights = _weights(behavior, len(self.logits)).sqrt()[:, None]
        self.cotangent = torch.zeros_like(self.logits, requires_grad=True)
        found: tuple[Tensor | None, ...] = ()
        if self.logits.requires_grad:
            found = torch.autograd.grad(
                self.logits, parameters, self.cotangent, create_graph=True, allow_unused=True
            )
        pairs = [(p, g) for p, g in zip(parameters, found, strict=False) if g is not None]
        if not pairs:
            raise BehaviorError(
                f"behaviour {behavior.name!r}: the answers depend on none of the parameters: do "
                "these require gradients?"
            )
        self.parameters, self.gradients = [p for p, _ in pairs], [g for _, g in pairs]

    def pull(self, point: Tensor) -> Vector:
        """Jᵀ S x, a vector in the space of the parameters."""
        u, root = point.view(self.shape), self.p.sqrt()
        image = self.weights * (root * u - self.p * (root * u).sum(-1, keepdim=True))
        image = image.to(self.logits)
        return list(torch.autograd.grad(self.logits, self.parameters, image, retain_graph=True))

    def push(self, vector: Vector) -> Tensor:
        """Sᵀ J v: the backward pass is linear in what is sent back, and J v is its derivative."""
        (moved,) = torch.autograd.grad(self.gradients, self.cotangent, vector, retain_graph=True)
        z, root = self.weights * moved.detach().cpu().double(), self.p.sqrt()
        return (root * z - root * (self.p * z).sum(-1, keepdim=True)).reshape(-1)

    def sample(self, basis: Tensor, noise: torch.Generator) -> float:
        """One of Hutchinson's estimates of the trace outside of an orthonormal basis."""
        signs = torch.randint(2, (self.size,), generator=noise).double() * 2 - 1
        signs -= (basis @ signs) @ basis
        return sum(float(part.double().square().sum()) for part in self.pull(signs))


def _weights(behavior: Behavior, positions: int) -> Tensor:
    """What each answered token counts: probes alike, and so the tokens of one; sums to 1."""
    weights = behavior.margins.answer_weights(behavior.probes)
    if weights is None:
        return torch.full((positions,), 1 / positions, dtype=torch.float64)
    return weights
