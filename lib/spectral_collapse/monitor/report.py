"""What a monitor has seen: a table, a line, panels, and one HTML page without network."""

import html as escaping
import math
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from .readings import SIGNALS, label_of

SOUND, WARNING, UNJUDGED = "sound", "warning", "cannot judge"
SUFFIXES = (".html", ".csv", ".parquet", ".jsonl")  # of saved reports
COLUMNS = [
    *("step", "check", "signal", "reference", "value", "expected", "change", "low", "high", "p", "level", "boundary"),
    "alarm",
]
INK, ALARM, EDGE = "#3b6ea5", "#d55e00", "#8a8a8a"
# Of the rise in log perplexity, in the project's runs on TinyStories: what docs/monitor.md has from the evidence.
AVOIDED = {"mixed": "96% [94%, 98%]", "accumulate": "93% [90%, 96%]"}
ADVICE = (
    "Look at the texts first. Then compare with a run on real text alone: a change that it shows too is training, not "
    "collapse. Where it is collapse, real text helps: mixed into every round, accumulated beside the synthetic "
    "text, or as more training on it from the last sound checkpoint. In this project's runs on TinyStories, half of "
    f"real text in every round avoided {AVOIDED['mixed']} of the rise in log perplexity over the control, and drawing "
    f"from all text so far {AVOIDED['accumulate']}. docs/monitor.md has more."
)
MEANING = (
    "An alarm means that a signal has moved, in the direction of collapse, further than the stated rate of false "
    "alarms allows for the whole run, over all signals and checks together. It does not say why."
)
STYLE = """
:root { color-scheme: light dark; --ink: #1c1c1c; --paper: #ffffff; --line: #d8d8d8; --quiet: #5f5f5f; --alarm: #b34700;
  --sound: #1b6e3c; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e8e8; --paper: #16181b; --line: #3a3d42; --quiet: #a5a5a5;
  --alarm: #ff9a55; --sound: #6fcf97; } }
body { background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; margin: 0 auto;
  max-width: 62rem; overflow-x: clip; padding: 1rem; }
h1 { font-size: 1.4rem; margin: .5rem 0; } h2 { font-size: 1.1rem; margin: 1.6rem 0 .4rem; }
h3 { font-size: 1rem; margin: .6rem 0; }
.status { font-size: 1.1rem; font-weight: 600; } .warning { color: var(--alarm); } .sound { color: var(--sound); }
.quiet { color: var(--quiet); } .wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; width: 100%; }
th, td { border-bottom: 1px solid var(--line); padding: .3rem .6rem; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } tr.alarm td { color: var(--alarm); font-weight: 600; }
.texts { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(16rem, 1fr)); }
blockquote { border-left: 3px solid var(--line); margin: .6rem 0; padding: 0 .8rem; white-space: pre-wrap; }
"""


@dataclass(frozen=True, repr=False)
class Report:
    """What a monitor has seen so far.

    status: `sound`, `warning` (an alarm at this check or an earlier one) or `cannot judge`; compared: what the changes
    were held against; left_out: what was not judged at the last check, with the reason; samples: texts of the reference
    and of the last check; step and check: of the last one.
    """

    frame: pd.DataFrame
    status: str
    compared: str
    left_out: tuple[str, ...] = ()
    samples: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
    step: int | float | None = None
    check: int = 0

    def to_frame(self) -> pd.DataFrame:
        """All checks after the reference, a row a signal: step, check, signal, reference, value, expected (by how much
        controls have moved; 0 without), change = value − reference − expected with its 95 % interval low, high, p,
        level (below which p alarms), boundary (the change that would alarm), alarm."""
        return self.frame.copy()

    @property
    def last(self) -> pd.DataFrame:
        """The rows of the last check."""
        return self.frame[self.frame["check"] == self.check]

    @property
    def alarms(self) -> pd.DataFrame:
        """The rows that raised an alarm, the first of each signal."""
        return self.frame[self.frame["alarm"]].drop_duplicates("signal")

    def line(self) -> str:
        """The status in one line."""
        if not self.check:
            return f"{self.status}: nothing to compare yet."
        step, raised = self.step, self.alarms
        if raised.empty and self.last.empty:
            return f"step {step}: {self.status}, left out: {', '.join(self.left_out)}."
        if raised.empty:
            return f"step {step}: {self.status}, {self.frame['signal'].nunique()} signals over {self.check} checks."
        told = ", ".join(
            f"{label_of(row.signal)}{' not finite' if math.isnan(row.value) else ''} at step {row.step}"
            for row in raised.itertuples()
        )
        return f"step {step}: {self.status} ({told})."

    def __repr__(self) -> str:
        return f"Report({self.line()})"

    def __str__(self) -> str:
        names = ["signal", "reference", "value", "change", "low", "high", "p", "level", "alarm"]
        if self.frame["expected"].any():
            names.insert(3, "expected")
        table = self.last[names]
        told = f"\nLeft out at the last check: {', '.join(self.left_out)}." if self.left_out else ""
        return f"{self.line()}\n{table.to_string(index=False, float_format='{:.4g}'.format)}\n{self.compared}{told}"

    def plot(self) -> Figure:
        """Changes with their intervals and boundaries, a panel a signal."""
        return _panels(self.frame)

    def to_html(self) -> str:
        """One HTML page without network: plots, table, what it means, texts then and now."""
        return _html(self)

    def save(self, path: Path | str) -> Path:
        """Writes the page (.html), the table (.csv, .parquet) or the table as lines of JSON (.jsonl)."""
        path = Path(path)
        match path.suffix:
            case ".html":
                path.write_text(self.to_html(), encoding="utf-8")
            case ".csv":
                self.frame.to_csv(path, index=False)
            case ".parquet":
                self.frame.to_parquet(path, index=False)
            case ".jsonl":
                self.frame.to_json(path, orient="records", lines=True)
            case other:
                raise ValueError(
                    f"{path}: a report is one of {', '.join(SUFFIXES)}, not {other or 'without a suffix'}."
                )
        return path


# ---- for the eye


def _signals(frame: pd.DataFrame) -> list[str]:
    return list(frame["signal"].unique())


def _panels(frame: pd.DataFrame) -> Figure:
    """Changes from the reference with 95 % intervals, a panel a signal; dashed where a change would alarm, filled in
    another colour where one did."""
    names = _signals(frame)
    rows = max(1, -(-len(names) // 3))
    figure, axes = plt.subplots(
        rows, min(3, max(1, len(names))), figsize=(9, 2.4 * rows), squeeze=False, layout="constrained"
    )
    for spare in axes.flat[len(names) :]:
        spare.set_visible(False)
    for panel, name in zip(axes.flat, names, strict=False):
        own = frame[frame["signal"] == name]
        spread = np.nan_to_num([own["change"] - own["low"], own["high"] - own["change"]])
        panel.errorbar(own["step"], own["change"], spread, fmt="o-", color=INK, markersize=3, capsize=2)
        panel.plot(own["step"], own["boundary"], "--", color=EDGE, linewidth=1)
        raised = own[own["alarm"]]
        panel.plot(raised["step"], raised["change"], "D", color=ALARM, markersize=6)
        panel.axhline(0, color=EDGE, linewidth=0.6)
        panel.set(title=label_of(name), xlabel="step")
    plt.close(figure)
    return figure


def _number(value: float) -> str:
    return "–" if value is None or math.isnan(value) else f"{value:.4g}"


def _table(frame: pd.DataFrame) -> str:
    held = bool(frame["expected"].any())
    head = ["signal", "reference", "now", *["controls moved"] * held, "change", "95 % interval"]
    head += ["alarms at", "p", "p of an alarm"]
    rows = []
    for row in frame.itertuples():
        interval = f"[{_number(row.low)}, {_number(row.high)}]"
        numbers = (row.reference, row.value, *[row.expected] * held, row.change)
        cells = [escaping.escape(label_of(row.signal)), *map(_number, numbers), interval]
        cells += [_number(row.boundary), f"{row.p:.2g}" if not math.isnan(row.p) else "–", f"{row.level:.2g}"]
        rows.append(
            f"<tr{' class=alarm' if row.alarm else ''}>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
        )
    titles = "".join(f"<th>{title}</th>" for title in head)
    return f"<div class=wide><table><thead><tr>{titles}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"


def _plots(frame: pd.DataFrame) -> str:
    """The panels as one interactive figure, with the library's script in the page."""
    from plotly import graph_objects, subplots  # slow to import

    names = _signals(frame)
    figure = subplots.make_subplots(rows=len(names), cols=1, subplot_titles=[label_of(name) for name in names])
    for place, name in enumerate(names, start=1):
        own = frame[frame["signal"] == name]
        spread = {"type": "data", "array": (own["high"] - own["change"]).tolist(), "color": INK, "thickness": 1}
        marks = {"color": [ALARM if alarm else INK for alarm in own["alarm"]], "size": 8,
                 "symbol": ["diamond" if alarm else "circle" for alarm in own["alarm"]]}  # fmt: skip
        unit = SIGNALS[name].unit if name in SIGNALS else ""
        figure.add_trace(
            graph_objects.Scatter(
                x=own["step"].tolist(), y=own["change"].tolist(), error_y=spread, mode="lines+markers", marker=marks,
                line={"color": INK}, name=label_of(name), showlegend=False,
                hovertemplate=f"step %{{x}}<br>change %{{y:.4g}} {unit}<extra>{label_of(name)}</extra>",
            ),
            row=place, col=1,
        )  # fmt: skip
        edge = {"color": EDGE, "dash": "dash", "width": 1}
        figure.add_trace(
            graph_objects.Scatter(
                x=own["step"].tolist(), y=own["boundary"].tolist(), mode="lines", line=edge, showlegend=False,
                hovertemplate="alarms at %{y:.4g}<extra></extra>",
            ),
            row=place, col=1,
        )  # fmt: skip
    grid = {"gridcolor": "rgba(128,128,128,.25)", "zerolinecolor": "rgba(128,128,128,.6)"}
    figure.update_xaxes(title_text="step", **grid).update_yaxes(title_text="change", **grid)
    figure.update_layout(
        height=60 + 230 * len(names), margin={"l": 60, "r": 20, "t": 40, "b": 40}, font={"color": "#808080"},
        paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)",
    )  # fmt: skip
    return figure.to_html(
        full_html=False, include_plotlyjs=True, default_width="100%", config={"responsive": True, "displaylogo": False}
    )


def _texts(then: tuple[str, ...], now: tuple[str, ...]) -> str:
    if not then and not now:
        return ""
    columns = []
    for title, texts in (("Then", then), ("Now", now)):
        quotes = "".join(f"<blockquote>{escaping.escape(text)}</blockquote>" for text in texts) or "<p>none</p>"
        columns.append(f"<div><h3>{title}</h3>{quotes}</div>")
    return f"<h2>Texts then and now</h2><div class=texts>{''.join(columns)}</div>"


def _html(report: "Report") -> str:
    """The page: status, meaning, plots, table of the last check, texts."""
    frame, state = report.frame, report.status.replace(" ", "-")
    body = [f"<h1>Monitor of collapse</h1><p class='status {state}'>{escaping.escape(report.line())}</p>"]
    body.append(f"<p>{escaping.escape(report.compared)}</p>")
    if report.left_out:
        body.append(f"<p>Left out at the last check: {escaping.escape(', '.join(report.left_out))}.</p>")
    if len(frame):
        judged = _table(report.last) if len(report.last) else "<p>It judged nothing.</p>"
        body.append(f"<h2>Last check, step {report.step}</h2>{judged}")
        body.append(f"<h2>What an alarm means</h2><p>{MEANING}</p>")
        if report.status == WARNING:
            body.append(f"<h2>What to do</h2><p>{ADVICE}</p>")
        body.append(_texts(*report.samples))
        body.append(
            f"<h2>All checks</h2><p class=quiet>Dashed: the change that would raise an alarm.</p>{_plots(frame)}"
        )
    return (
        "<!doctype html><html lang=en><head><meta charset=utf-8><meta name=viewport content='width=device-width, "
        f"initial-scale=1'><title>Monitor of collapse</title><style>{STYLE}</style></head><body>{''.join(body)}"
        "</body></html>"
    )
