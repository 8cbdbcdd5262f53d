"""Feature anchor: a few latents that carry the behaviours are kept from moving the harmful way."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from riprap._distributed import has_sharded_parameters
from riprap.behaviors import Behavior
from riprap.errors import BehaviorError, ConfigError
from riprap.evaluation import find_layer, preserve_training_state
from riprap.guards._base import GuardView
from riprap.guards.regularization._penalty import BehaviorGuard, Penalty
from riprap.guards.regularization._probe_outputs import run_probes, last_positions, full, taken
from riprap.linalg import Vector
from riprap.signals.features import principal_directions


@dataclass
class DirectionDictionary:
    """Coefficients along orthonormal directions, where no sparse dictionary serves.

    Attributes:
        W_dec: shape (m, d), one direction a row.
    """

    W_dec: Tensor

    def encode(self, rows: Tensor) -> Tensor:
        """Signed coefficients, shape (n, m), of rows of shape (n, d)."""
        return rows @ self.W_dec.T.to(rows)


@dataclass
class FeatureAnchor(Penalty, BehaviorGuard):
    """Adds λ E[Σ_{K+} ReLU(z − z₀)² + Σ_{K−} ReLU(z₀ − z)²]: K+ must not rise, K− must not fall.

    z are the latents of a layer at the last position of each probe, z₀ those of the same probe at
    θ₀, E the mean over rows. K holds the `count` latents with the largest first-order effect on the
    margins, |mean ∂m/∂z_j| · rms(z_j) with ∂m/∂z_j = ⟨∂m/∂a, d_j⟩ and d_j the decoder's direction;
    its sign says on which side each is held. Or, given a model that has `drifted`, the latents that
    moved most in it. With `reselect` the search is repeated, and those latents join that have since
    done harm outside K, by the first-order −mean ∂m/∂z_j (z_j − z₀_j): a model held at some
    features may route round them.

    Args:
        layer: as in `Monitor(layer=...)`; None: the middle block.
        sae: a dictionary with `encode` and `W_dec`, such as `TopKSAE`; None: the principal
            directions of the behaviours' activations at θ₀, or of their movement in `drifted`.
        count: size of K, and of what joins at most each time.
        reselect: after each so many steps; None: never.
        drifted: the same model gone wrong, such as by a run without a guard; it is read once.
        both_sides: K must move neither way, E[Σ_K (z − z₀)²]. The coefficient along a direction has
            no side that is harmful to every probe, where an SAE's latent may have one.

    Source: BLOCK-EM, 2602.00767, and its penalty. Variant: there K is found by steering, too, and z
    is read on the training tokens.

    Raises (at the start):
        ConfigError: no layer, a margin that does not run it or is detached from the graph, an `sae`
            or a `drifted` model of another width, or a model sharded over ranks.
    """

    layer: str | None = None
    sae: Any = None
    n_features: int = 20
    reselect_every: int | None = None
    drifted_model: nn.Module | None = field(default=None, repr=False)
    both_sides: bool = False
    dictionary: Any = field(default=None, init=False, repr=False)
    reference_activations: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)
    signs: Tensor = field(default_factory=lambda: torch.empty(0), init=False, repr=False)

    name: ClassVar[str] = "feature_anchor"
    field_of_origin: ClassVar[str] = "safety"
    source: ClassVar[str] = "2602.00767"
    fidelity: ClassVar[str] = "variant"
    state_attrs: ClassVar[tuple[str, ...]] = ("dictionary", "reference_activations", "signs")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_features < 1 or (self.reselect_every is not None and self.reselect_every < 1):
            raise ConfigError(
                f"guard {self.name}: count={self.n_features}, reselect={self.reselect_every}; both must be at "
                "least 1 (reselect may be None)"
            )

    def start(self, view: GuardView) -> None:
        """Keep the activations of θ₀ and choose K."""
        self.protected_behaviors = self.select_behaviors(view)
        self.layer_name = self._find_layer(view.model)
        found = [self._activations_with_gradients(one, view.model) for one in self.protected_behaviors]
        self.reference_activations = dict(zip(self.names, (rows for rows, _ in found), strict=True))
        pooled = torch.cat(list(self.reference_activations.values()))
        gone = None if self.drifted_model is None else self._drifted_activations(pooled)
        # What may join later must be in the dictionary, too.
        most = self.n_features if self.reselect_every is None else pooled.shape[1]
        spread = pooled if gone is None else gone - pooled
        self.dictionary = self.sae or DirectionDictionary(principal_directions(spread, most).T)
        width = self.dictionary.W_dec.shape[1]
        if width != pooled.shape[1]:
            raise ConfigError(
                f"guard {self.name}: the SAE takes rows of width {width}, layer {self.layer_name} "
                f"puts out {pooled.shape[1]}: name the layer it was made for"
            )
        latents = self.dictionary.encode(pooled)
        slopes = torch.cat([self._latent_gradients(effects) for _, effects in found]).mean(0)
        self.signs = torch.zeros_like(slopes)
        if gone is None:
            self._add_features(slopes.abs() * latents.square().mean(0).sqrt(), slopes)
        else:
            self._add_features((self.dictionary.encode(gone) - latents).square().mean(0), slopes)
        if not bool(self.signs.any()):
            why = "has an effect on the margins" if gone is None else "moved in the drifted model"
            raise ConfigError(
                f"guard {self.name}: no latent of layer {self.layer_name} {why} at the last "
                "position; name another layer"
            )

    def penalty(self, view: GuardView) -> tuple[float, Vector | None]:
        """The mean over behaviours of E[…] and its gradient."""
        past = view.step - 1
        if self.reselect_every is not None and past > 0 and past % self.reselect_every == 0:
            self._reselect(view)
        value, gradient = taken(
            lambda: torch.stack([self._behavior_penalty(one, view.model) for one in self.protected_behaviors]).mean(),
            view.model,
            view.parameters,
        )
        if gradient is None:
            raise ConfigError(
                f"guard {self.name}: layer {self.layer_name} depends on no trained parameter; name a "
                "later one"
            )
        return value, gradient

    def _find_layer(self, model: nn.Module) -> str:
        try:
            found = find_layer(model, self.layer)
        except BehaviorError as error:
            raise ConfigError(f"guard {self.name}: {error}") from error
        if found is None or has_sharded_parameters(model):
            why = "no stack of layers was found; name one, layer=..."
            if has_sharded_parameters(model):
                why = "latents cannot be held in a model sharded over ranks; use KL"
            raise ConfigError(f"guard {self.name}: {why}")
        return found

    def _drifted_activations(self, pooled: Tensor) -> Tensor:
        """The probes' activations in the model that has drifted, shape (rows, d)."""
        assert self.drifted_model is not None
        with torch.no_grad(), preserve_training_state(self.drifted_model):
            layer = self._find_layer(self.drifted_model)
            found = [run_probes(self.name, b, self.drifted_model, layer).layer_outputs for b in self.protected_behaviors]
        rows = torch.cat([last_positions(parts) for parts in found]).to(pooled)
        if rows.shape != pooled.shape:
            raise ConfigError(
                f"guard {self.name}: layer {layer} of the drifted model puts out "
                f"{tuple(rows.shape)}, that of this one {tuple(pooled.shape)}: is it the same one?"
            )
        return rows

    def _activations_with_gradients(self, behavior: Behavior, model: nn.Module) -> tuple[Tensor, Tensor]:
        """Activations, and how the mean margin grows along them; both of shape (rows, d)."""
        with torch.inference_mode(False), torch.enable_grad(), preserve_training_state(model):
            found = run_probes(self.name, behavior, model, self.layer_name)
            usable = found.margins.requires_grad and all(o.requires_grad for o in found.layer_outputs)
            grown = (
                torch.autograd.grad(found.margins.sum(), found.layer_outputs, allow_unused=True)
                if usable
                else (None,)
            )
        if any(part is None for part in grown):
            raise ConfigError(
                f"guard {self.name}: the margin of behaviour {behavior.name!r} does not depend on "
                f"layer {self.layer_name} through trained parameters; name another layer"
            )
        return last_positions(found.layer_outputs).detach(), last_positions(
            [part for part in grown if part is not None]
        )

    def _latent_gradients(self, effects: Tensor) -> Tensor:
        """∂m/∂z of each row, shape (rows, m)."""
        return full(effects) @ self.dictionary.W_dec.T.to(full(effects))

    def _behavior_penalty(self, behavior: Behavior, model: nn.Module) -> Tensor:
        rows = last_positions(run_probes(self.name, behavior, model, self.layer_name).layer_outputs)
        now = self.dictionary.encode(rows)
        with torch.no_grad():
            then = self.dictionary.encode(self.reference_activations[behavior.name].to(rows))
        # K− has side +1: there a fall is harm. K+ has −1. What is not in K has 0.
        harm = (then - now) * self.signs.to(now)
        if not self.both_sides:
            harm = torch.relu(harm)
        return harm.square().sum(1).mean()

    def _reselect(self, view: GuardView) -> None:
        harms, slopes = [], []
        for behavior in self.protected_behaviors:
            rows, effects = self._activations_with_gradients(behavior, view.model)
            own = self._latent_gradients(effects)
            away = self.dictionary.encode(rows) - self.dictionary.encode(self.reference_activations[behavior.name])
            harms.append(-own * away)
            slopes.append(own)
        harm = torch.cat(harms).mean(0)
        self._add_features(torch.where(self.signs == 0, harm, 0.0), torch.cat(slopes).mean(0))

    def _add_features(self, importance: Tensor, slopes: Tensor) -> None:
        """Let the latents that are worth most join K, each on the side of its slope or on both."""
        best = importance.topk(min(self.n_features, len(importance)))
        chosen = best.indices[best.values > 0]
        self.signs[chosen] = 1.0 if self.both_sides else slopes.sign()[chosen]
