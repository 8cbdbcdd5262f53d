"""Tables of `growth.py report`: the fitted cost model, its errors, and larger models on paper."""

from __future__ import annotations

from dataclasses import replace

import growth
from growth import FOLDER, HELD_OUT, LEAST, TERMS, TOLERANCE, CostModel, Point
from monitor_cost import BUDGET

from riprap.monitor import Cost

HEADER = """# How the cost of a monitor grows

`python benchmarks/growth.py measure`, then `python benchmarks/growth.py report`. {machine}

![Seconds of each part, by parameters, probe tokens and behaviors](growth.png)

Points are measured, lines are the fitted cost model. All points are in [growth.csv](growth.csv).
"""
RUN = 1000  # steps
PAPER_NOTE = """
These figures are **computed, not measured**: the terms are those of the cost model, their
coefficients are assumed, since those above are of this processor. Assumptions: every pass, of
training and of the monitor, runs at the same share of the accelerator's peak, so that a probe token
costs a third of a training token forward (a half with adapters), and as much as one with a
gradient. An evaluation takes no more tokens at once than a training step, and fits where training
fits. A call of a kernel takes 10 µs; a hook makes two for each tensor, and a reading one for each
tensor and behavior. A reading moves each protected gradient and the parameters once, at
{bandwidth:.0f} GB/s. Protected gradients are stored in float32. Under FSDP2 each rank keeps its
share of them, and an evaluation gathers the weights as a training step does. Every rank evaluates
all probes, so that an evaluation costs probe tokens ÷ training tokens *of one rank*.
"""


def report() -> None:
    """Write the figure and README.md."""
    points = growth.read()
    held_out = next(p for p in points if p.name == HELD_OUT)
    known = [p for p in points if p is not held_out]
    model = CostModel.fit(known)
    growth.draw(growth.frame(points, model))
    machine = (FOLDER / "machine.txt").read_text(encoding="utf-8").strip()
    text = HEADER.format(machine=machine)
    text += "\n## Held out\n\n" + _held_out(model, held_out)
    text += "\n## Cost model\n\n" + _coefficients(model, known)
    text += "\n## Measured and computed\n\n" + _points(points, model)
    text += "\n## On paper\n" + PAPER_NOTE.format(bandwidth=BANDWIDTH / 1e9) + "\n" + _paper()
    (FOLDER / "README.md").write_text(text, encoding="utf-8")
    print(text)


def run_ratio(point: Point) -> float:
    """Return what a calm run of `RUN` steps costs at the default budget."""
    cost = Cost(
        point.step, point.hooks, point.forward, point.refresh, point.start, 0,
        reading_seconds=point.reading,
    )  # fmt: skip
    return cost.run_ratio(20, RUN, BUDGET)


def predicted(model: CostModel, point: Point) -> Point:
    """Return the point with all figures as the model computes them."""
    return replace(point, **{figure: model.predict(figure, point) for figure in TERMS})


def _held_out(model: CostModel, point: Point) -> str:
    """Compare the model with the point that it has not seen."""
    found = predicted(model, point)
    lines = ["| figure | measured | computed | error | at most 15 % |", "|---|---|---|---|---|"]
    for figure in TERMS:
        lines.append(_compared(figure, getattr(point, figure), getattr(found, figure)))
    whole = f"added to a run of {RUN} steps, share"
    lines.append(_compared(whole, run_ratio(point) - 1, run_ratio(found) - 1))
    text = f"`{HELD_OUT}` was named before the fit, which uses all other points.\n\n"
    return text + "\n".join(lines) + "\n"


def _compared(name: str, measured: float, computed: float, digits: int = 4) -> str:
    error = computed / measured - 1 if measured else float("inf")
    verdict = "met" if abs(error) <= TOLERANCE else "**missed**"
    if name == "memory":
        measured, computed, name, digits = measured / 1e6, computed / 1e6, "memory, MB", 1
    cells = f"{measured:.{digits}f} | {computed:.{digits}f} | {error:+.0%} | {verdict}"
    return f"| {name} | {cells} |"


def _coefficients(model: CostModel, known: list[Point]) -> str:
    """Table of all coefficients, with the errors on the points of the fit."""
    lines = ["| figure | terms | median error of the fit | largest |", "|---|---|---|---|"]
    for figure, terms in model.coefficients.items():
        errors = sorted(
            abs(model.predict(figure, p) - getattr(p, figure))
            / max(getattr(p, figure), LEAST.get(figure, 0.0))
            for p in known
        )
        said = " + ".join(f"{value:.2e} · {name}" for name, value in terms.items() if value)
        lines.append(f"| {figure} | {said} | {errors[len(errors) // 2]:.0%} | {errors[-1]:.0%} |")
    return "Seconds; memory in bytes.\n\n" + "\n".join(lines) + "\n"


def _points(points: list[Point], model: CostModel) -> str:
    """Table of all points: parts in units of a plain step, measured (computed)."""
    parts = ("hooks", "reading", "forward", "refresh", "start")
    head = "| case | trained parameters | probe ÷ training tokens | plain step, ms | "
    head += " | ".join(parts) + " | memory, MB | 1,000 steps |"
    lines = [head, "|---" * (head.count("|") - 1) + "|"]
    for point in points:
        found = predicted(model, point)
        cells = [point.name, f"{point.trained / 1e6:.2f} M"]
        cells += [f"{point.probe_tokens / point.step_tokens:.2f}"]
        cells += [f"{1e3 * point.step:.1f} ({1e3 * found.step:.1f})"]
        for part in parts:
            own, computed = getattr(point, part), getattr(found, part)
            cells.append(f"{own / point.step:.3f} ({computed / found.step:.3f})")
        cells.append(f"{point.memory / 1e6:.0f} ({found.memory / 1e6:.0f})")
        cells.append(f"{run_ratio(point):.3f} ({run_ratio(found):.3f})")
        lines.append("| " + " | ".join(cells) + " |")
    text = "Parts in units of a plain step, measured (computed).\n\n"
    return text + "\n".join(lines) + "\n"


BANDWIDTH = 2e12  # bytes a second, of an accelerator's memory
KERNEL = 1e-5  # seconds of one call


def _paper() -> str:
    """Table of two large models, from the assumptions of `PAPER_NOTE` alone."""
    giga = 2**30
    rows = {
        "7B on one GPU, LoRA r = 32 (80 M trained, 448 tensors), 8 × 1,024 tokens a step": {
            "weights": 7e9, "trained": 80e6, "tensors": 448, "tokens": 8192, "adapters": True,
            "speed": 4e14, "resident": 14e9 + 16 * 80e6,
        },
        "70B under FSDP2 on 64 GPUs, all trained (723 tensors), 2 × 4,096 tokens a rank": {
            "weights": 70e9, "trained": 70e9 / 64, "tensors": 723, "tokens": 8192,
            "adapters": False, "speed": 4e14, "resident": 16 * 70e9 / 64,
        },
    }  # fmt: skip
    lines = [
        "| case | step, s | hooks | reading | evaluation | refresh | gradients, GB a rank "
        "| ÷ weights and optimizer | 1,000 steps |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    behaviors, probe_tokens = 4, 4 * 24 * 64
    for name, row in rows.items():
        step = (4 if row["adapters"] else 6) * row["weights"] * row["tokens"] / row["speed"]
        share = probe_tokens / row["tokens"]
        hooks = 2 * KERNEL * row["tensors"]
        reading = (behaviors + 2) * (4 * row["trained"] / BANDWIDTH + KERNEL * row["tensors"])
        forward, refresh = share * step / (2 if row["adapters"] else 3), share * step
        cost = Cost(step, hooks, forward, refresh, refresh, 0, reading_seconds=reading)
        stored = (behaviors + 1) * 4 * row["trained"]
        cells = [f"{step:.2f}", *(f"{part / step:.4f}" for part in (hooks, reading))]
        cells += [f"{part / step:.2f}" for part in (forward, refresh)]
        cells += [f"{stored / giga:.1f}", f"{stored / row['resident']:.2f}"]
        cells += [f"{cost.run_ratio(20, RUN, BUDGET):.3f}"]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    note = (
        "\nFour behaviors of 24 probes of 64 tokens. At 4·10¹⁴ operations a second a rank. Stored: "
        "a protected gradient a behavior, and a copy of the trained parameters; "
        '`gradient_storage="int8"` takes a quarter of the former.\n'
    )
    return "\n".join(lines) + "\n" + note
