"""Recursions that can be solved: exact signals with simulated runs, and what each can detect."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from .style import COLOURS, WIDTH, drawn

SIGNALS = {
    "excess_loss": ("held-out loss, excess (nats)", COLOURS["static"]),
    "diversity": (r"diversity $1-\sum p^2$, the trace of the Hessian", COLOURS["recursive"]),
    "logdet": (r"$\log\det\Sigma$, change (nats)", COLOURS["recursive"]),
}


@drawn
def recursion(moments: Mapping[str, pd.DataFrame], runs: Mapping[str, Mapping[str, np.ndarray]]) -> Figure:
    """Mean ± two standard deviations by theory (line and band) and simulated runs (thin lines), a row a recursion.

    moments: by recursion, frames of `analysis.theory`; runs: by recursion and signal, (runs, generations) from
    generation 1 on.
    """
    figure, panels = plt.subplots(len(moments), 2, figsize=(WIDTH, 2.1 * len(moments)), layout="constrained")
    for (name, frame), row in zip(moments.items(), panels, strict=True):
        for axes, (signal, found) in zip(row, frame.groupby("signal"), strict=True):
            title, shade = SIGNALS[signal]
            x, mean, spread = (found[column].to_numpy() for column in ("generation", "mean", "deviation"))
            axes.plot(x, runs[name][signal].T, color="0.6", linewidth=0.5, alpha=0.6)
            axes.plot(x, mean, color=shade)
            axes.fill_between(x, mean - 2 * spread, mean + 2 * spread, color=shade, alpha=0.15, linewidth=0)
            axes.set(title=f"{name}: {title}", xlabel="generation")
            axes.xaxis.set_major_locator(plt.MaxNLocator(integer=True))
    return figure


@drawn
def detectability(found: Mapping[str, Mapping[int, pd.DataFrame]]) -> Figure:
    """d′ by generation, a panel a recursion, a line style a number of draws N; the thin dashed level is d′ = 3."""
    figure, panels = plt.subplots(1, len(found), figsize=(WIDTH, 2.9), layout="constrained", squeeze=False)
    lines = dict(zip(next(iter(found.values())), ("-", "--", ":"), strict=False))
    for (name, by_draws), axes in zip(found.items(), panels[0], strict=True):
        for draws, frame in by_draws.items():
            for mark, (signal, curve) in zip("os", frame.groupby("signal"), strict=True):
                title, shade = SIGNALS[signal]
                style = {"color": shade, "marker": mark, "markersize": 3}
                axes.plot(curve["generation"], curve["d_prime"], lines[draws], **style)
                if draws == next(iter(by_draws)):
                    axes.plot([], [], label=title, **style)
        axes.axhline(3, color="0.5", linewidth=0.6, linestyle=(0, (4, 4)))
        axes.set(title=name, xlabel="generation", ylabel=r"$d'$ against the control")
        axes.set_yscale("symlog", linthresh=1)
        axes.set_ylim(bottom=-0.05)
        axes.xaxis.set_major_locator(plt.MaxNLocator(integer=True))
        axes.legend(fontsize=6.5, loc="upper center", bbox_to_anchor=(0.5, -0.24), ncols=1)
    handles = [plt.Line2D([], [], color="0.3", linestyle=line, label=f"N = {draws:,}") for draws, line in lines.items()]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(lines), fontsize=7)
    return figure
