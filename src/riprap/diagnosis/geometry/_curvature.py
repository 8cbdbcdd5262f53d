"""Curvature of a behavior's loss: top eigenvalues and trace of its Gauss–Newton matrix."""

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

TOLERANCE = 1e-2  # of the largest eigenvalue: error of the others at which Lanczos stops
PRODUCTS_PER_EIGENVALUE = 4  # largest number of products of Lanczos


@dataclass(frozen=True)
class Curvature:
    """Top of the spectrum and trace of a Gauss–Newton matrix, in nats per squared parameter.

    Attributes:
        eigenvalues: in falling order; fewer than requested if the matrix has no more.
        errors: bound on the distance from each to the nearest true eigenvalue.
        trace: sum of all eigenvalues.
        trace_error: standard error of the trace; 0 if the eigenvalues are complete.
        probes: number of probes used.
        products: number of matrix products of Lanczos.
    """

    eigenvalues: tuple[float, ...]
    errors: tuple[float, ...]
    trace: float
    trace_error: float
    probes: int
    products: int

    @property
    def top_share(self) -> float:
        """Largest eigenvalue ÷ trace; 1 is curvature in a single direction."""
        return self.eigenvalues[0] / self.trace

    @property
    def top_share_error(self) -> float:
        """Standard error of `top_share`, from that of the trace."""
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
    """Compute top eigenvalues and trace of the Gauss–Newton matrix of a behavior's answers.

    G = mean over probes of Jᵀ (diag p − p pᵀ) J, with J the Jacobian of the answer logits and p
    their softmax; the mean over the tokens of an answer with several tokens. This is the
    Gauss–Newton matrix of the cross-entropy of any answer, and the Fisher matrix of the model's
    output. (A response prefix with several accepted tokens, or with tokens to avoid, has the loss
    of a set of tokens, whose own second derivative in the logits may be negative.)

    The eigenvalues are computed from S J Jᵀ S on the space of the logits, so Lanczos stores
    (answered tokens × vocabulary) numbers per product, not a copy of the model. The trace is exact
    in the span that Lanczos found, and Hutchinson's estimate in the rest, with one backward pass
    per sample. Products with J differentiate a backward pass, with attention in its plain form. Two
    graphs of a pass over the probes are in memory, and three copies of the parameters.

    Args:
        top: number of eigenvalues.
        probes: largest number of probes; from more, they are selected with equal spacing.
        samples: random sign vectors for the trace, two at least.
        parameters: of the model; None: those that require a gradient.

    Source: Schraudolph, Neural Computation 14 (2002), section 3; Meyer et al., 2010.09649
    (Hutch++, here with Lanczos' basis instead of a sketch).

    Raises:
        BehaviorError: the model is sharded over ranks, or its answers depend on no parameter.
        ConfigError: `top`, `probes` or `samples` is too small.
    """
    if top < 1 or probes < 1 or samples < 2:
        raise ConfigError(
            f"curvature got top={top}, probes={probes}, samples={samples}; pass top >= 1, "
            "probes >= 1 and samples >= 2"
        )
    if has_sharded_parameters(model):
        raise BehaviorError("curvature needs a whole model: gather the sharded parameters first")
    chosen = evenly_spaced_probes(behavior, probes)
    if parameters is None:
        parameters = [p for p in model.parameters() if p.requires_grad]
    max_products = PRODUCTS_PER_EIGENVALUE * top
    done = itertools.count(1)

    def report() -> None:
        if progress is not None:
            progress(next(done), max_products + samples)

    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        preserve_training_state(model),
        sdpa_kernel(SDPBackend.MATH),
    ):
        operator = _LogitSpaceOperator(chosen, model, parameters)
        noise = torch.Generator().manual_seed(seed)

        def product(point: Tensor) -> Tensor:
            report()
            return operator.push(operator.pull(point))

        start = torch.randn(operator.size, generator=noise, dtype=torch.float64)
        ritz = lanczos(product, start, top, max_products, TOLERANCE)
        done = itertools.count(max_products + 1)  # Lanczos may stop early
        rest = []
        for _ in range(samples):
            rest.append(operator.sample(ritz.basis, noise))
            report()
    return Curvature(
        tuple(ritz.values.tolist()),
        tuple(ritz.errors.tolist()),
        ritz.trace + float(np.mean(rest)),
        float(np.std(rest, ddof=1) / np.sqrt(samples)),
        len(chosen.probes),
        len(ritz.basis),
    )


def evenly_spaced_probes(behavior: Behavior, count: int) -> Behavior:
    """Return the behavior on at most `count` of its probes, with equal spacing."""
    n = len(behavior.probes)
    if n <= count:
        return behavior
    return behavior.subset(np.linspace(0, n - 1, count).round().astype(int).tolist())


class _LogitSpaceOperator:
    """S J Jᵀ S on the space of the logits; its nonzero eigenvalues are those of Jᵀ S S J.

    S Sᵀ = diag p − p pᵀ with S = diag √p − p √pᵀ, here with each token's weight. In float64 on the
    CPU, because the terms of S almost cancel if the model is confident.
    """

    def __init__(self, behavior: Behavior, model: nn.Module, parameters: Sequence[Tensor]) -> None:
        self.logits = answer_logits(behavior, model)
        self.shape, self.size = self.logits.shape, self.logits.numel()
        self.p = self.logits.detach().cpu().double().softmax(-1)
        weights = behavior.margins.answer_weights(behavior.probes)  # of each answered token, sum 1
        if weights is None:
            n = len(self.logits)
            weights = torch.full((n,), 1 / n, dtype=torch.float64)
        self.weights = weights.sqrt()[:, None]
        self.cotangent = torch.zeros_like(self.logits, requires_grad=True)
        gradients: tuple[Tensor | None, ...] = ()
        if self.logits.requires_grad:
            gradients = torch.autograd.grad(
                self.logits, parameters, self.cotangent, create_graph=True, allow_unused=True
            )
        pairs = [(p, g) for p, g in zip(parameters, gradients, strict=False) if g is not None]
        if not pairs:
            raise BehaviorError(
                f"behavior {behavior.name!r}: the answers do not depend on the parameters: do "
                "these require gradients?"
            )
        self.parameters, self.gradients = [p for p, _ in pairs], [g for _, g in pairs]

    def pull(self, point: Tensor) -> Vector:
        """Compute Jᵀ S x, a vector in parameter space."""
        u, root = point.view(self.shape), self.p.sqrt()
        image = self.weights * (root * u - self.p * (root * u).sum(-1, keepdim=True))
        image = image.to(self.logits)
        return list(torch.autograd.grad(self.logits, self.parameters, image, retain_graph=True))

    def push(self, vector: Vector) -> Tensor:
        """Compute Sᵀ J v: J v is the derivative of the backward pass, linear in its cotangent."""
        (change,) = torch.autograd.grad(self.gradients, self.cotangent, vector, retain_graph=True)
        z, root = self.weights * change.detach().cpu().double(), self.p.sqrt()
        return (root * z - root * (self.p * z).sum(-1, keepdim=True)).reshape(-1)

    def sample(self, basis: Tensor, noise: torch.Generator) -> float:
        """Draw one of Hutchinson's estimates of the trace outside an orthonormal basis."""
        signs = torch.randint(2, (self.size,), generator=noise).double() * 2 - 1
        signs -= (basis @ signs) @ basis
        return sum(float(part.double().square().sum()) for part in self.pull(signs))
