"""A small TopK sparse autoencoder, trained apart from everything that training uses.

Its random numbers come from a generator of its own, its gradients from `torch.autograd.grad` on
its own four tensors, and its Adam is written out: no global generator, no `.grad` and no
optimizer's hook is touched.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

BETAS, EPSILON = (0.9, 0.999), 1e-8


@dataclass
class TopKSAE:
    """Sparse autoencoder that keeps each row's k largest latents (Gao et al., 2406.04093).

    Attributes:
        W_enc, b_enc: shapes (d, m), (m,).
        W_dec, b_dec: shapes (m, d), (d,); rows of W_dec have unit norm.
        k: latents that a row may use.
        scale: what rows are multiplied by first, so that one learning rate fits all models.
    """

    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor
    k: int
    scale: float

    @classmethod
    def initialize(cls, rows: Tensor, latents: int, k: int, seed: int = 0) -> TopKSAE:
        """Random unit directions, encoder and decoder tied, centred on the rows' mean.

        Args:
            rows: activations, shape (n, d).
        """
        rows = rows.detach().float()
        centre = rows.mean(0)
        spread = float((rows - centre).square().sum(1).mean().sqrt())
        made = torch.Generator().manual_seed(seed)
        directions = torch.randn(latents, rows.shape[1], generator=made).to(rows.device)
        directions = torch.nn.functional.normalize(directions, dim=1)
        scale = 1 / spread if spread > 0 else 1.0
        return cls(
            directions.T.clone(), rows.new_zeros(latents), directions, centre * scale, k, scale
        )

    @property
    def trained_tensors(self) -> list[Tensor]:
        """What is trained."""
        return [self.W_enc, self.b_enc, self.W_dec, self.b_dec]

    def copy(self) -> TopKSAE:
        """The same dictionary, to be trained on its own."""
        return replace(self)  # training makes new tensors, it never writes into these

    def encode(self, rows: Tensor) -> Tensor:
        """Latents of rows of shape (n, d), shape (n, m); at most k of a row are above 0."""
        found = torch.relu((rows.float() * self.scale - self.b_dec) @ self.W_enc + self.b_enc)
        if self.k >= found.shape[1]:
            return found
        least = found.topk(self.k, dim=1).values[:, -1:]
        return found * (found >= least)

    def decode(self, latents: Tensor) -> Tensor:
        """Rows of shape (n, d) from latents of shape (n, m)."""
        return (latents @ self.W_dec + self.b_dec) / self.scale

    def train(self, rows: Tensor, steps: int, rate: float) -> None:
        """Adam on the mean squared error over all rows at once; this dictionary's tensors are new.

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


def jaccard(one: Tensor, two: Tensor) -> float:
    """Mean over rows of |A ∩ B| / |A ∪ B| of the active sets; rows without any are left out.

    Args:
        one, two: latents, shape (n, m).
    """
    here, there = one > 0, two > 0
    union = (here | there).sum(1)
    shares = (here & there).sum(1)[union > 0] / union[union > 0]
    return float(shares.double().mean()) if len(shares) else float("nan")


def unexplained_variance(rows: Tensor, rebuilt: Tensor, centre: Tensor) -> float:
    """‖rows − rebuilt‖² over ‖rows − centre‖²; 0 is perfect, 1 no better than the centre.

    Args:
        rows, rebuilt: shape (n, d); centre: shape (d,).
    """
    rows = rows.double()
    spread = (rows - centre.double()).square().sum()
    return float((rows - rebuilt.double()).square().sum() / spread) if spread else float("nan")
