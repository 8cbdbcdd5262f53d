"""Feature anchor: keep the latents that carry the behaviors from moving in harmful directions."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

from riprap._distributed import has_sharded_parameters
from riprap.behaviors import Behavior
from riprap.errors import BehaviorError
from riprap.evaluation import find_layer, loss_and_gradient, preserve_training_state
from riprap.guards._base import BehaviorGuard, GuardView, sum_of_finite
from riprap.guards.regularization._penalty import Penalty
from riprap.guards.regularization._probe_outputs import last_positions, run_probes
from riprap.linalg import Vector, upcast
from riprap.signals.features import principal_directions


class FeatureDictionary(Protocol):
    """A dictionary of features, such as a sparse autoencoder; W_dec: directions, shape (m, d)."""

    W_dec: Tensor

    def encode(self, rows: Tensor, /) -> Tensor:
        """Return the latents, shape (n, m), of activations of shape (n, d)."""


@dataclass
class DirectionDictionary:
    """Orthonormal directions as a dictionary, if there is no sparse autoencoder; W_dec: (m, d)."""

    W_dec: Tensor

    def encode(self, rows: Tensor) -> Tensor:
        """Return the signed coefficients, shape (n, m), of rows of shape (n, d)."""
        return rows @ self.W_dec.T.to(rows)


@dataclass
class FeatureAnchor(Penalty, BehaviorGuard):
    """Penalty λ E[Σ_{K+} ReLU(z − z₀)² + Σ_{K−} ReLU(z₀ − z)²]: K+ must not rise, K− must not fall.

    z are the latents of a layer at the last position of each probe, z₀ those of the same probe at
    θ₀, and E is the mean over rows. K holds the `n_features` latents with the largest first-order
    effect on the margins, abs(mean ∂m/∂z_j) · rms(z_j), where ∂m/∂z_j = ⟨∂m/∂a, d_j⟩ and d_j is the
    decoder direction; the sign of the effect decides between K+ and K−. With a `drifted_model`, K
    holds the latents that moved most in it. With `reselect_every` the selection is repeated, and
    adds the latents that have done most harm outside K since, by the first-order estimate
    −mean ∂m/∂z_j (z_j − z₀_j), because training may route around the anchored features.

    Args:
        layer: as in `Monitor(feature_layer=...)`; None: the middle block.
        sae: a dictionary with `encode` and `W_dec`, such as `TopKSAE`; None: the principal
            directions of the behaviors' activations at θ₀, or of their change in `drifted_model`.
        n_features: size of K, and the maximum number of latents that each reselection adds.
        reselect_every: steps between two selections; None: select once.
        drifted_model: the same model after harmful training, for example without a guard. It is
            read once.
        both_sides: penalize movement in both directions, E[Σ_K (z − z₀)²]. Unlike an SAE's latent,
            the coefficient along a direction has no side that is harmful to every probe.

    Source: BLOCK-EM, 2602.00767, and its penalty. Variant: the paper also finds K by steering, and
    reads z on the training tokens.

    Raises:
        ConfigError: in `start`, no layer was found, a margin does not run it or is detached from
            the graph, `sae` or `drifted_model` has another width, or the model is sharded over
            ranks.
    """

    layer: str | None = None
    sae: FeatureDictionary | None = None
    n_features: int = 20
    reselect_every: int | None = None
    drifted_model: nn.Module | None = field(default=None, repr=False)
    both_sides: bool = False
    dictionary: FeatureDictionary = field(init=False, repr=False)
    reference_activations: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)
    sick_at_start: tuple[str, ...] = field(default=(), init=False, repr=False)
    signs: Tensor = field(default_factory=lambda: torch.empty(0), init=False, repr=False)

    name: ClassVar[str] = "feature_anchor"
    goal: ClassVar[str] = "the initial activations"
    field_of_origin: ClassVar[str] = "safety"
    source: ClassVar[str] = "2602.00767"
    fidelity: ClassVar[str] = "variant"
    state_attrs: ClassVar[tuple[str, ...]] = ("dictionary", "reference_activations", "signs")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_features < 1 or (self.reselect_every is not None and self.reselect_every < 1):
            raise self._error(
                f"n_features={self.n_features}, reselect_every={self.reselect_every}; both must be "
                "at least 1 (reselect_every may be None)"
            )

    def start(self, view: GuardView) -> None:
        """Store the activations at θ₀ and select K."""
        super().start(view)
        self.protected_behaviors = self.select_behaviors(view)
        self.layer_name = self._find_layer(view.model)
        read = {
            b.name: self._activations_with_gradients(b, view.model)
            for b in self.protected_behaviors
        }
        finite = self.finite_behaviors(read, "an activation or its gradient")
        self.sick_at_start = self.left_out
        self.protected_behaviors = [view.behaviors[name] for name in finite]
        pairs = [read[name] for name in finite]
        self.reference_activations = dict(zip(finite, (rows for rows, _ in pairs), strict=True))
        pooled = torch.cat(list(self.reference_activations.values()))
        drifted = None if self.drifted_model is None else self._drifted_activations(pooled)
        # A later reselection needs all directions in the dictionary.
        count = self.n_features if self.reselect_every is None else pooled.shape[1]
        spread = pooled if drifted is None else drifted - pooled
        self.dictionary = self.sae or DirectionDictionary(principal_directions(spread, count).T)
        width = self.dictionary.W_dec.shape[1]
        if width != pooled.shape[1]:
            raise self._error(
                f"the SAE has width {width}, layer {self.layer_name} has width {pooled.shape[1]}; "
                "name the layer that the SAE was trained on"
            )
        latents = self.dictionary.encode(pooled)
        slopes = torch.cat([self._latent_gradients(gradients) for _, gradients in pairs]).mean(0)
        self.signs = torch.zeros_like(slopes)
        if drifted is None:
            self._add_features(slopes.abs() * latents.square().mean(0).sqrt(), slopes)
        else:
            self._add_features((self.dictionary.encode(drifted) - latents).square().mean(0), slopes)
        if not bool(self.signs.any()):
            why = "affects the margins" if drifted is None else "moved in the drifted model"
            raise self._error(
                f"no latent of layer {self.layer_name} {why} at the last position; name another "
                "layer"
            )

    def penalty(self, view: GuardView) -> tuple[float, Vector | None]:
        """Compute the mean over behaviors of E[…] and its gradient."""
        done = view.step - 1
        if self.reselect_every is not None and done > 0 and done % self.reselect_every == 0:
            self._reselect(view)
        by_name = {behavior.name: behavior for behavior in self.protected_behaviors}

        def compute(names: list[str]) -> tuple[float, Vector | None]:
            behaviors = [by_name[name] for name in names]
            return loss_and_gradient(self._mean_penalty, view.model, behaviors, view.parameters)

        value, gradient, sick = sum_of_finite(compute, list(by_name))
        self.leave_out([*self.sick_at_start, *sick], "the penalty")
        if gradient is None:
            raise self._error(
                f"layer {self.layer_name} depends on no trained parameter; name a later one"
            )
        return value, gradient

    def _find_layer(self, model: nn.Module) -> str:
        try:
            layer = find_layer(model, self.layer)
        except BehaviorError as error:
            raise self._error(str(error)) from error
        if has_sharded_parameters(model):
            raise self._error("a model sharded over ranks is not supported; use KL")
        if layer is None:
            raise self._error("no stack of layers was found; name a layer with layer=...")
        return layer

    def _drifted_activations(self, pooled: Tensor) -> Tensor:
        """Return the probes' activations in the drifted model, shape (rows, d)."""
        assert self.drifted_model is not None
        with torch.no_grad(), preserve_training_state(self.drifted_model):
            layer = self._find_layer(self.drifted_model)
            outputs = [
                run_probes(self.name, behavior, self.drifted_model, layer).layer_outputs
                for behavior in self.protected_behaviors
            ]
        rows = torch.cat([last_positions(parts) for parts in outputs]).to(pooled)
        if rows.shape != pooled.shape:
            raise self._error(
                f"layer {layer} of the drifted model has outputs of shape {tuple(rows.shape)}, and "
                f"{tuple(pooled.shape)} in this model; give the same model"
            )
        return rows

    def _activations_with_gradients(
        self, behavior: Behavior, model: nn.Module
    ) -> tuple[Tensor, Tensor]:
        """Return activations and the margins' gradient in them, both of shape (rows, d)."""
        with torch.inference_mode(False), torch.enable_grad(), preserve_training_state(model):
            outputs = run_probes(self.name, behavior, model, self.layer_name)
            margins, activations = outputs.margins, outputs.layer_outputs
            gradients: tuple[Tensor | None, ...] = (None,)
            if margins.requires_grad and all(part.requires_grad for part in activations):
                gradients = torch.autograd.grad(margins.sum(), activations, allow_unused=True)
        present = [part for part in gradients if part is not None]
        if len(present) < len(gradients):
            raise self._error(
                f"the margin of behavior {behavior.name!r} does not depend on layer "
                f"{self.layer_name} through trained parameters; name another layer"
            )
        return last_positions(activations).detach(), last_positions(present)

    def _latent_gradients(self, gradients: Tensor) -> Tensor:
        """Return ∂m/∂z of each row, shape (rows, m)."""
        gradients = upcast(gradients)
        return gradients @ self.dictionary.W_dec.T.to(gradients)

    def _mean_penalty(self, model: nn.Module, behaviors: list[Behavior]) -> Tensor:
        penalties = torch.stack([self._behavior_penalty(b, model) for b in behaviors])
        return penalties.sum() / len(self.protected_behaviors)

    def _behavior_penalty(self, behavior: Behavior, model: nn.Module) -> Tensor:
        rows = last_positions(run_probes(self.name, behavior, model, self.layer_name).layer_outputs)
        now = self.dictionary.encode(rows)
        with torch.no_grad():
            then = self.dictionary.encode(self.reference_activations[behavior.name].to(rows))
        # The sign is +1 in K− (a fall is harmful), −1 in K+, and 0 outside K.
        harm = (then - now) * self.signs.to(now)
        return (harm if self.both_sides else torch.relu(harm)).square().sum(1).mean()

    def _reselect(self, view: GuardView) -> None:
        harms, slopes = [], []
        for behavior in self.protected_behaviors:
            rows, gradients = self._activations_with_gradients(behavior, view.model)
            slope = self._latent_gradients(gradients)
            reference = self.reference_activations[behavior.name]
            shift = self.dictionary.encode(rows) - self.dictionary.encode(reference)
            harms.append(-slope * shift)
            slopes.append(slope)
        harm = torch.cat(harms).mean(0)
        self._add_features(torch.where(self.signs == 0, harm, 0.0), torch.cat(slopes).mean(0))

    def _add_features(self, importance: Tensor, slopes: Tensor) -> None:
        """Add the most important latents to K, each on the side of its slope, or on both sides."""
        best = importance.topk(min(self.n_features, len(importance)))
        chosen = best.indices[best.values > 0]
        self.signs[chosen] = 1.0 if self.both_sides else slopes.sign()[chosen]
