"""A small TopK sparse autoencoder, trained without affecting the monitored training.

Its random numbers come from a separate generator, its gradients from `torch.autograd.grad` on its
four tensors, and Adam is implemented here: no global generator, no `.grad` and no optimizer hook is
touched.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

BETAS, EPSILON = (0.9, 0.999), 1e-8


@dataclass
class TopKSAE:
    """Sparse autoencoder with the k largest latents of each row (Gao et al., 2406.04093).

    Attributes:
        W_enc, b_enc: shapes (d, m), (m,).
        W_dec, b_dec: shapes (m, d), (d,); rows of W_dec have unit norm.
        k: maximal number of active latents per row.
        scale: factor that normalizes rows, so that one learning rate fits all models.
    """

    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor
    k: int
    scale: float

    @classmethod
    def initialize(cls, rows: Tensor, latents: int, k: int, seed: int = 0) -> TopKSAE:
        """Create an autoencoder of random unit directions, tied, centered on the rows' mean.

        Args:
            rows: activations, shape (n, d).
        """
        rows = rows.detach().float()
        center = rows.mean(0)
        spread = float((rows - center).square().sum(1).mean().sqrt())
        generator = torch.Generator().manual_seed(seed)
        directions = torch.randn(latents, rows.shape[1], generator=generator).to(rows.device)
        directions = torch.nn.functional.normalize(directions, dim=1)
        scale = 1 / spread if spread > 0 else 1.0
        return cls(
            directions.T.clone(), rows.new_zeros(latents), directions, center * scale, k, scale
        )

    @property
    def trained_tensors(self) -> list[Tensor]:
        """The four tensors that are trained."""
        return [self.W_enc, self.b_enc, self.W_dec, self.b_dec]

    def copy(self) -> TopKSAE:
        """Return a copy that can be trained without changing this one."""
        return replace(self)  # training creates new tensors and never writes into these

    def encode(self, rows: Tensor) -> Tensor:
        """Compute the latents (n, m) of rows (n, d); at most k of a row are above 0."""
        latents = torch.relu((rows.float() * self.scale - self.b_dec) @ self.W_enc + self.b_enc)
        if self.k >= latents.shape[1]:
            return latents
        smallest = latents.topk(self.k, dim=1).values[:, -1:]
        return latents * (latents >= smallest)

    def decode(self, latents: Tensor) -> Tensor:
        """Compute rows (n, d) from latents (n, m)."""
        return (latents @ self.W_dec + self.b_dec) / self.scale

    def train(self, rows: Tensor, steps: int, rate: float) -> None:
        """Train with Adam on the mean squared error of all rows; replace the four tensors.

        Args:
            rows: activations, shape (n, d).
        """
        device = rows.device.type
        with torch.inference_mode(False), torch.autocast(device, enabled=False):
            rows = rows.detach().float().clone()
            parts = [part.detach().clone().requires_grad_() for part in self.trained_tensors]
            self.W_enc, self.b_enc, self.W_dec, self.b_dec = parts
            moments = [(torch.zeros_like(part), torch.zeros_like(part)) for part in parts]
            for step in range(1, steps + 1):
                with torch.enable_grad():
                    error = (self.decode(self.encode(rows)) - rows) * self.scale
                    loss = error.square().sum(1).mean()
                gradients = torch.autograd.grad(loss, parts)
                with torch.no_grad():
                    for part, gradient, (first, second) in zip(
                        parts, gradients, moments, strict=True
                    ):
                        _adam(part, gradient, first, second, step, rate)
                    self.W_dec /= self.W_dec.norm(dim=1, keepdim=True).clamp(min=EPSILON)
            self.W_enc, self.b_enc, self.W_dec, self.b_dec = (part.detach() for part in parts)


def _adam(
    part: Tensor, gradient: Tensor, first: Tensor, second: Tensor, step: int, rate: float
) -> None:
    first.lerp_(gradient, 1 - BETAS[0])
    second.lerp_(gradient.square(), 1 - BETAS[1])
    size = (second / (1 - BETAS[1] ** step)).sqrt_().add_(EPSILON)
    part.sub_(first / (1 - BETAS[0] ** step) / size, alpha=rate)


def jaccard(latents: Tensor, others: Tensor) -> float:
    """Compute the mean over rows of |A ∩ B| / |A ∪ B| of the active sets; skip empty unions.

    Args:
        latents, others: shape (n, m).
    """
    a, b = latents > 0, others > 0
    union = (a | b).sum(1)
    shares = (a & b).sum(1)[union > 0] / union[union > 0]
    return float(shares.double().mean()) if len(shares) else float("nan")


def unexplained_variance(rows: Tensor, reconstructed: Tensor, center: Tensor) -> float:
    """Compute ‖rows − reconstructed‖² / ‖rows − center‖²; 0 is perfect, 1 as bad as the center.

    Args:
        rows, reconstructed: shape (n, d); center: shape (d,).
    """
    rows = rows.double()
    spread = (rows - center.double()).square().sum()
    return (
        float((rows - reconstructed.double()).square().sum() / spread) if spread else float("nan")
    )
