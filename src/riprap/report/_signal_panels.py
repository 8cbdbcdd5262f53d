"""Small multiples: one figure for each signal that has no panel of its own."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import altair as alt

from riprap._glossary import signal_words
from riprap.report import _panels as panels
from riprap.report import _plot_data as plot_data
from riprap.report import _style as style
from riprap.report._run import FORECASTS, Run
from riprap.types import RUN

IN_LANES = {"score", "margin", "margin_low", "interference", *FORECASTS}
# What a trainer reports.
OF_TRAINING = ("reward", "loss", "eval_loss", "learning_rate", "grad_norm", "kl")
MAX_POINTS = 300  # per line
WIDTH, HEIGHT = 190, 80
COLUMNS = 4
DESCRIPTIONS = {
    "forecast_probability": "probability of a break within the horizon, or before the plan ends",
    "reward": "mean reward of the rollouts",
    "kl": "KL divergence to the reference model, as the trainer reports it",
    "loss": "the training loss",
    "eval_loss": "the loss on the evaluation rows",
    "grad_norm": "norm of the gradient that the trainer reports",
    "learning_rate": "as the trainer reports it",
    "rate_sum": "sum of the learning rates since the start: the time in which forecasts are made",
    "tensors_with_gradient": "trained tensors with a gradient that is not zero",
    "tensors_moved": "trained tensors that the optimizer moved",
    "projection": "mean activation along the behavior's direction",
    "projection_ratio": "activation along the behavior's direction, relative to the start",
    "energy_ratio": "share of the activation energy in the principal directions of the start",
    "drift_mean": "shift of the mean activation, relative to its norm at the start",
    "drift_direction": "1 − cosine of the re-estimated direction and that of the start; "
    "dashed: level of estimation noise",
    "subspace_overlap": "mean squared cosine of two behaviors' principal angles; dashed: chance",
    "kl_start": "KL(start ‖ now): large if the model no longer says what it said at the start",
    "kl_from_start": "KL(now ‖ start): large if the model says what it did not say at the start",
    "spectral_entropy": "number of directions over which the activations are spread",
    "cka": "similarity of the activation geometry to that of the start; 1: identical",
    "linear_probe_frozen": "accuracy of the start's linear probes, applied now; chance is 0.5",
    "linear_probe_refitted": "accuracy of linear probes fitted now; chance is 0.5",
    "sae_l0": "number of active SAE latents per row",
    "sae_loss": "share of the activation variance that the SAE does not explain",
    "sae_jaccard": "overlap of the active SAE latents with those of the start; 1: the same",
    "sae_dead": "share of SAE latents that no row uses",
    "sae_decoder_cosine": "cosine of the SAE decoder directions with those of the start",
    "cosine_margin": "cos(−g, h): positive if a gradient step on the task increases the margin",
    "cosine_loss": "cosine of the task gradient and the gradient of the behavior's loss",
    "cosine_fisher": "the same cosine, weighted by the behavior's Fisher information",
    "cosine_topk": "the same cosine, over the coordinates that alignment changed most",
    "steep_alignment": "share of the task gradient in the steepest directions of the behavior; "
    "dashed: chance",
    "interference_layer": "predicted change of the mean margin since the last evaluation, by layer",
    "norm_gradient": "norm of the task gradient",
    "norm_margin_gradient": "norm of the gradient of the behavior's mean margin",
    "norm_update": "norm of the applied update",
}
REFERENCES = {
    "drift_noise": "drift_direction",
    "subspace_overlap_chance": "subspace_overlap",
    "steep_alignment_chance": "steep_alignment",
}


@dataclass(frozen=True)
class SignalPanel:
    """Figure of one signal, with its meaning if known."""

    signal: str
    description: str
    panels: int
    chart: Any

    @property
    def name(self) -> str:
        """Name of the signal in words."""
        return signal_words(self.signal)


def signal_panels(run: Run) -> list[SignalPanel]:
    """Make one figure for each signal that has no panel of its own, in recorded order."""
    lines: dict[str, list[plot_data.Row]] = defaultdict(list)
    references: dict[str, list[tuple[str, float]]] = defaultdict(list)
    for (behavior, signal, layer), series in run.series.items():
        name, _, pair = signal.partition(":")
        panel = pair or ("the run" if behavior == RUN else behavior)
        if name in REFERENCES:
            levels = plot_data.thin(series, MAX_POINTS)
            references[REFERENCES[name]] += [(panel, value) for _, value in levels.pairs()]
        elif name not in IN_LANES:
            place = {"panel": panel, "layer": layer or "–"}
            lines[name] += [
                {"step": step, "value": plot_data.round_or_gap(value)} | place
                for step, value in plot_data.thin(series, MAX_POINTS).pairs()
            ]
    return [
        SignalPanel(
            name,
            DESCRIPTIONS.get(name, ""),
            len({row["panel"] for row in values}),
            _figure(values, _reference_rows(values, references[name])),
        )
        for name, values in lines.items()
    ]


def is_thinned(run: Run) -> bool:
    """Return whether these figures leave out readings."""
    own = (s for (_, signal, _), s in run.series.items() if signal not in IN_LANES)
    return any(len(plot_data.thin(series, MAX_POINTS)) < len(series) for series in own)


def _reference_rows(
    values: list[plot_data.Row], references: list[tuple[str, float]]
) -> list[plot_data.Row]:
    """Rows of reference levels; a level of the whole run appears in every panel."""
    names = {row["panel"] for row in values}
    return [
        {"panel": panel, "reference": plot_data.round_for_plot(value)}
        for name, value in references
        for panel in sorted(names if name == "the run" else names & {name})
    ]


def _figure(values: list[plot_data.Row], references: list[plot_data.Row]) -> Any:
    """One panel for each behavior (or pair of behaviors), one line for each layer."""
    x = panels.step_axis(axis=panels.labeled_steps(None))
    y = alt.Y(
        "value:Q",
        title=None,
        scale=alt.Scale(zero=False),
        axis=alt.Axis(tickCount=3, format=".3~g"),
    )
    tips = panels.tooltips(panel="panel", layer="layer", step="step", value="value")
    line = alt.Chart().mark_line(strokeWidth=1.4, clip=True)
    point = alt.Chart().mark_circle(size=60, opacity=panels.INVISIBLE, clip=True)
    layers = [line.encode(x=x, y=y, color=_layer_color(values))]
    layers.append(point.encode(x=x, y=y, tooltip=tips))
    if references:
        level = alt.Chart().mark_rule(color=style.MUTED, strokeDash=[4, 3])
        layers.append(level.encode(y="reference:Q"))
    places = {panel: n for n, panel in enumerate(dict.fromkeys(row["panel"] for row in values))}
    placed = [row | {"place": places[row["panel"]]} for row in [*values, *references]]
    # Sorted by a number: a list of names would be compiled into an expression.
    order = alt.EncodingSortField("place", op="min")
    figure = alt.layer(*layers, data=panels.inline_data(placed))
    return figure.properties(width=WIDTH, height=HEIGHT).facet(
        facet=alt.Facet("panel:N", title=None, sort=order, header=alt.Header(labelLimit=WIDTH)),
        columns=COLUMNS,
        spacing=14,
    )


def _layer_color(values: list[plot_data.Row]) -> alt.Color:
    """Color by layer, from the first (dark) to the last; no legend for a single layer."""
    layers = list(dict.fromkeys(row["layer"] for row in values))
    if len(layers) == 1:
        return alt.Color("layer:N", legend=None, scale=alt.Scale(range=[style.BLUE]))
    scale = alt.Scale(domain=layers, scheme="viridis")
    return alt.Color("layer:N", scale=scale, legend=alt.Legend(title="layer", orient="top"))
