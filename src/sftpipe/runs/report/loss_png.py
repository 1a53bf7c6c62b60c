"""loss.png: the losses of a run as the model card shows them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from sftpipe.runs.folder import RunFolder
from sftpipe.runs.report.curves import Curve, read_curves
from sftpipe.runs.report.draw import draw_curves


def plot_loss(folder: RunFolder) -> None:
    """Write loss.png from log.jsonl: training loss as a line, validation losses as points.

    Over epochs, and over the tokens seen in training.
    """
    losses = read_curves(folder.read_log()).losses
    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    draw_curves(axes, losses, "epoch", [f"C{number}" for number in range(len(losses))], "red")
    for curve in losses:
        for at in (0, -1) if curve.alone else ():
            where = curve.places["epoch"][at], curve.values[at]
            axes.annotate(
                f"{where[1]:.2f}", where, textcoords="offset points", xytext=(0, 8), ha="center"
            )
    steps = max((int(curve.places["step"][-1]) for curve in losses), default=0)
    axes.set_xlabel(f"epoch ({steps:,} optimizer steps)")
    top = axes.secondary_xaxis("top")
    top.set_xticks(*token_ticks(losses))
    top.set_xlabel("training tokens seen")
    axes.set_ylabel("loss per trained token")
    axes.margins(y=0.12)  # room for the figures
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.spines["right"].set_visible(False)
    if losses:
        axes.legend(frameon=False)
    partial = folder.path / f".{folder.loss_curve.name}.partial"
    figure.savefig(partial, format="png")
    partial.replace(folder.loss_curve)


def token_ticks(losses: Sequence[Curve]) -> tuple[list[float], list[str]]:
    """Round numbers of training tokens: (epochs at which they were seen, texts such as 20k)."""
    epochs, tokens = (
        np.sort(np.concatenate([[0.0], *(curve.places[axis] for curve in losses)]))
        for axis in ("epoch", "tokens")
    )
    ticks = MaxNLocator(6, integer=True).tick_values(0, tokens[-1])
    shown = [tick for tick in ticks if 0 <= tick <= tokens[-1]]
    return np.interp(shown, tokens, epochs).tolist(), [EngFormatter(sep="")(tick) for tick in shown]
