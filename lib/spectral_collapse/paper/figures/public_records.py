"""The Hessian study's own records: the reported ratio, and what moves it."""

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ...analysis.public_records import RUNS
from .style import COLOURS, WIDTH, drawn, legend_above

MARKERS = {"recursive": "o", "fresh": "s", "static": "^"}


def _lines(axes: Axes, frame: pd.DataFrame, column: str) -> None:
    for condition, marker in MARKERS.items():
        own = frame[frame["condition"] == condition]
        axes.plot(own["generation"], own[column], marker, ls="-", ms=4, color=COLOURS[condition], label=condition)


@drawn
def public_records(spectra: pd.DataFrame, printed: pd.DataFrame, text: pd.DataFrame) -> Figure:
    """Four panels by generation, of SmolLM2 (frames of `analysis.public_records`): the recorded ratio, with the printed
    one of the recursive run hollow; its numerator; its denominator with the brackets that its nodes prove; held-out
    perplexity."""
    small = spectra.assign(condition=spectra["run"].map(RUNS)).dropna(subset="condition")
    figure, panels = plt.subplots(2, 2, figsize=(WIDTH, 4.2), layout="constrained", sharex=True)
    (ratio, numerator), (width, perplexity) = panels
    _lines(ratio, small, "published_ratio")
    shown = printed[(printed["condition"] == "recursive") & (printed["generation"] > 0)]
    ratio.plot(
        shown["generation"], shown["printed"], "o", ls=":", ms=4, mfc="none", lw=0.8, color=COLOURS["recursive"],
        label="recursive, as printed in its README",
    )  # fmt: skip
    ratio.set(
        yscale="log", title="The reported ratio jumps by orders of magnitude …", ylabel=r"$\lambda_{\max}$ / width"
    )
    _lines(numerator, small, "lambda_max")
    numerator.set(title=r"… not for its numerator …", ylabel=r"$\lambda_{\max}$", ylim=(0, None))
    for shift, condition in zip((-0.12, 0, 0.12), MARKERS, strict=True):
        own = small[small["condition"] == condition]
        x = own["generation"] + shift
        width.vlines(x, own["iqr_low"], own["iqr_high"], color=COLOURS[condition], alpha=0.4, lw=3)
        width.plot(x, own["published_iqr"], MARKERS[condition], ms=4, color=COLOURS[condition])
    width.set(
        title="… but for a width that its nodes do not fix:\nbars are all values that they allow",
        ylabel="interquartile width",
        xlabel="generation",
    )
    _lines(perplexity, text, "perplexity")
    perplexity.set(title="Its own perplexity parts at generation 1", ylabel="perplexity", xlabel="generation")
    legend_above(figure, ratio)
    return figure
