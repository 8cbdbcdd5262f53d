"""Small multiples: every signal that has no place in the lanes, one figure a signal."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import altair as alt

from riprap.report import _panels as panels
from riprap.report import _plot_data as rows
from riprap.report import _style as style
from riprap.report._run import FORECASTS, Run
from riprap.types import RUN

IN_LANES = {"score", "margin", "margin_low", "interference", *FORECASTS}
POINTS = 300  # of one line
WIDTH, HEIGHT = 190, 80
COLUMNS = 4
ABOUT = {
    "projection": "mean activation along the behaviour's own direction",
    "projection_ratio": "activation along the behaviour's own direction, as a ratio to its start",
    "energy_ratio": "share of the activations' energy in the start's principal directions",
    "drift_mean": "how far the mean activation has moved, relative to its size at the start",
    "drift_direction": "1 − cos between the re-estimated direction and that of the start; "
    "dashed: what estimation noise alone gives",
    "subspace_overlap": "mean squared cosine of two behaviours' principal angles; dashed: chance",
    "kl_start": "KL(start ‖ now): grows where the model no longer says what it said",
    "kl_from_start": "KL(now ‖ start): grows where it says what it never would have",
    "spectral_entropy": "over how many directions the activations are spread",
    "cka": "whether the activations relate to each other as at the start; 1: wholly",
    "linear_probe_frozen": "accuracy of the start's probes on activations of now; chance is 0.5",
    "linear_probe_refitted": "accuracy of probes fitted anew; chance is 0.5",
    "sae_l0": "latents of the sparse dictionary that a row uses",
    "sae_loss": "share of the activations' variance that the sparse dictionary does not explain",
    "sae_jaccard": "overlap of the latents in use with those at the start; 1: the same",
    "sae_dead": "share of latents that no row uses",
    "sae_decoder_cosine": "how far the dictionary's directions are still those of the start",
    "cosine_margin": "cos(−g, h): above 0 the task's gradient step raises the margin",
    "cosine_loss": "cosine of the task's gradient and that of the behaviour's loss",
    "cosine_fisher": "that cosine, weighted by the behaviour's Fisher information",
    "cosine_topk": "that cosine, over the coordinates that alignment moved most",
    "steep_alignment": "share of the task's gradient in the behaviour's steepest directions; "
    "dashed: chance",
    "interference_layer": "predicted change of the mean margin since the last visit, by layer",
    "norm_gradient": "size of the task's gradient",
    "norm_margin_gradient": "size of the gradient of the behaviour's mean margin",
    "norm_update": "size of the update that was applied",
}
REFERENCES = {
    "drift_noise": "drift_direction",
    "subspace_overlap_chance": "subspace_overlap",
    "steep_alignment_chance": "steep_alignment",
}


@dataclass(frozen=True)
class Multiple:
    """One signal's figure, with what the signal means where that is known."""

    signal: str
    about: str
    panels: int
    chart: Any


def multiples(run: Run) -> list[Multiple]:
    """One figure for each recorded signal that the lanes do not show, in the order of record."""
    lines: dict[str, list[rows.Row]] = defaultdict(list)
    references: dict[str, list[tuple[str, float]]] = defaultdict(list)
    for (behavior, signal, layer), series in run.series.items():
        name, _, pair = signal.partition(":")
        panel = pair or ("the run" if behavior == RUN else behavior)
        if name in REFERENCES:
            references[REFERENCES[name]] += [(panel, value) for value in series.values()]
        elif name not in IN_LANES:
            lines[name] += [
                {"step": step, "value": rows.short(value), "panel": panel, "layer": layer or "–"}
                for step, value in rows.decimated(series, POINTS).items()
            ]
    return [
        Multiple(
            name,
            ABOUT.get(name, ""),
            len({row["panel"] for row in values}),
            _figure(values, _levels(values, references[name])),
        )
        for name, values in lines.items()
    ]


def _levels(values: list[rows.Row], references: list[tuple[str, float]]) -> list[rows.Row]:
    """References as rows; one that belongs to the run is shown in every panel."""
    found = {row["panel"] for row in values}
    return [
        {"panel": panel, "reference": rows.short(value)}
        for name, value in references
        for panel in sorted(found if name == "the run" else found & {name})
    ]


def _figure(values: list[rows.Row], references: list[rows.Row]) -> Any:
    """One panel for each behaviour (or pair of them), one line for each layer."""
    x = panels.steps(axis=panels.labelled(None))
    y = alt.Y("value:Q", title=None, scale=alt.Scale(zero=False), axis=alt.Axis(tickCount=3))
    tips = [alt.Tooltip(f"{name}:N", title=name) for name in ("panel", "layer", "step", "value")]
    line = alt.Chart().mark_line(strokeWidth=1.4, clip=True)
    point = alt.Chart().mark_circle(size=60, opacity=panels.UNSEEN, clip=True)
    layers = [
        line.encode(x=x, y=y, color=_colour(values)),
        point.encode(x=x, y=y, tooltip=tips),
    ]
    if references:
        level = alt.Chart().mark_rule(color=style.QUIET, strokeDash=[4, 3])
        layers.append(level.encode(y="reference:Q"))
    places = {panel: n for n, panel in enumerate(dict.fromkeys(row["panel"] for row in values))}
    placed = [row | {"place": places[row["panel"]]} for row in [*values, *references]]
    # By a number: a list of names to sort by would be compiled into an expression.
    order = alt.EncodingSortField("place", op="min")
    figure = alt.layer(*layers, data=panels.data(placed))
    return figure.properties(width=WIDTH, height=HEIGHT).facet(
        facet=alt.Facet("panel:N", title=None, sort=order, header=alt.Header(labelLimit=WIDTH)),
        columns=COLUMNS,
        spacing=14,
    )


def _colour(values: list[rows.Row]) -> alt.Color:
    """By layer, from the lowest (dark) to the highest; no legend for only one."""
    layers = list(dict.fromkeys(row["layer"] for row in values))
    if len(layers) == 1:
        return alt.Color("layer:N", legend=None, scale=alt.Scale(range=[style.BLUE]))
    scale = alt.Scale(domain=layers, scheme="viridis")
    return alt.Color("layer:N", scale=scale, legend=alt.Legend(title="layer", orient="top"))
