"""Spectral signatures: quantities of a spectrum from Lanczos runs, with errors over probes and over blocks."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.stats

from .quadrature import Quadrature, cumulated_bounds, merged, quantile_bracket

if TYPE_CHECKING:
    import matplotlib.figure
    import pandas

# A node is a single eigenvalue if its residual is below this share of it and its weight below SINGLE/n; a single
# eigenvalue has a weight of about 1/n.
CONVERGED = 0.01
SINGLE = 30
MOST_OUTLIERS = 10
# A bulk whose standard deviation is below this share of the spectrum's root mean square is rounding: all models of
# transformers compute some steps in float32.
ROUNDING = 1e-5
ONE_PROBE = "one probe gives no standard error: set probes (in a profile lanczos_probes) to 2 or more."


@dataclass(frozen=True, repr=False)
class SpectralEstimate:
    """A value with its standard errors: over probes at fixed blocks, and over blocks (None: not estimated).

    `bound`: largest error at fixed probes and blocks (Lanczos' residual), which no averaging reduces. NaN means that
    the value is not identified.
    """

    value: float
    probe_error: float
    batch_error: float | None
    probes: int
    blocks: int
    bound: float = 0.0

    @property
    def standard_error(self) -> float:
        """Of both errors, which are independent, or of that over probes alone (`errors_over`)."""
        return math.hypot(self.probe_error, self.batch_error or 0.0)

    @property
    def errors_over(self) -> str:
        """What the standard error covers: "probes and blocks", or "probes"."""
        return "probes" if self.batch_error is None else "probes and blocks"

    def interval(self, level: float = 0.95) -> list[float]:
        """[low, high] by Student's t with Welch and Satterthwaite's degrees of freedom, widened by `bound`.

        With normal errors the coverage at 95 % is within three points from three probes and three blocks on; with two
        of either it may be 87 %. [NaN, NaN] if the errors are zero, since probes may agree by chance.

        >>> SpectralEstimate(1.0, probe_error=0.1, batch_error=None, probes=3, blocks=0)
        1 ± 0.1 (over probes)
        >>> [round(end, 3) for end in SpectralEstimate(1.0, 0.1, None, 3, 0).interval()]
        [0.57, 1.43]
        """
        parts = [(self.probe_error**2, self.probes - 1), ((self.batch_error or 0.0) ** 2, self.blocks - 1)]
        spread = sum(variance**2 / freedom for variance, freedom in parts if freedom > 0)
        if not spread > 0:
            return [math.nan, math.nan]
        freedom = self.standard_error**4 / spread
        half = float(scipy.stats.t.ppf(0.5 + level / 2, freedom)) * self.standard_error + self.bound
        return [self.value - half, self.value + half]

    def __repr__(self) -> str:
        if math.isnan(self.value):
            return "not identified"
        bound = f", bound {self.bound:.1g}" if self.bound else ""
        return f"{self.value:.4g} ± {self.standard_error:.2g} (over {self.errors_over}{bound})"


@dataclass(frozen=True, repr=False)
class Signature:
    """Spectral signature of one Hessian or Gauss–Newton matrix; eigenvalues in nats per squared unit of θ.

    Of the mean loss on the given blocks: intervals over blocks are for batches of this size, not for the expected loss
    (`PopulationSignature`). `…_residual` bounds the distance to an eigenvalue, a bracket [low, high] covers the error
    of the quadrature, a `SpectralEstimate` has those of probes and blocks. basis: type of the Lanczos basis, or "none".
    notes: one sentence, with the reason, for each quantity that is not identified and therefore NaN.
    """

    parameters: int
    probes: int
    steps: int
    blocks: int
    basis: str
    lambda_max: float
    lambda_max_residual: float
    lambda_max_batch_error: float | None
    lambda_min: float
    lambda_min_residual: float
    eigenvalue_range: float
    leading_eigenvalues: list[float]
    leading_residuals: list[float]
    mean_eigenvalue: SpectralEstimate
    spectral_variance: SpectralEstimate
    outliers: list[float]
    outlier_count_bracket: list[float]
    outlier_separation: float
    bulk_center: SpectralEstimate
    bulk_sigma: SpectralEstimate
    spectral_ratio: float
    log_spectral_ratio: SpectralEstimate
    effective_rank: SpectralEstimate
    spectral_entropy: SpectralEstimate
    negative_mass_bracket: list[float]
    iqr_bracket: list[float]
    nodes: list[list[float]]
    weights: list[list[float]]
    notes: list[str]

    def to_frame(self) -> "pandas.DataFrame":
        """Estimates by name: value, standard_error, low, high (95 %), errors_over; eigenvalues with their residuals as
        ends, brackets without a value."""
        import pandas  # slow to import, and nothing else here needs it

        rows = {}
        for name, value in vars(self).items():
            if isinstance(value, SpectralEstimate):
                rows[name] = (value.value, value.standard_error, *value.interval(), value.errors_over)
            elif name.endswith("_bracket"):
                rows[name.removesuffix("_bracket")] = (math.nan, math.nan, *value, "bracket")
            elif f"{name}_residual" in vars(self):
                residual = getattr(self, f"{name}_residual")
                rows[name] = (value, math.nan, value - residual, value + residual, "residual")
        columns = ["value", "standard_error", "low", "high", "errors_over"]
        return pandas.DataFrame.from_dict(rows, orient="index", columns=columns)

    def plot(self) -> "matplotlib.figure.Figure":
        """The spectrum that the first probe saw: its nodes, each with its weight, on logarithmic axes of weight."""
        import matplotlib.pyplot  # slow to import, and nothing else here needs it

        figure, axes = matplotlib.pyplot.subplots(figsize=(6, 2.6), layout="constrained")
        axes.vlines(self.nodes[0], 1e-12, self.weights[0], linewidth=1.2)
        axes.plot(self.outliers, [1 / self.parameters] * len(self.outliers), "D", label="outliers")
        axes.set(xlabel="eigenvalue (Ritz value)", ylabel="spectral weight", yscale="log", ylim=(1e-12, 2))
        axes.set_title(f"λ_max {self.lambda_max:.4g}, bulk width {self.bulk_sigma}", fontsize=9)
        if self.outliers:
            axes.legend(fontsize=8)
        matplotlib.pyplot.close(figure)
        return figure

    def __repr__(self) -> str:
        return (
            f"Signature({self.parameters:,} parameters, {self.probes} probes of {self.steps} steps, "
            f"λ_max {self.lambda_max:.4g} ± {self.lambda_max_residual:.1g}, "
            f"λ_min {self.lambda_min:.4g} ± {self.lambda_min_residual:.1g}, "
            f"{len(self.outliers)} outliers, σ_bulk {self.bulk_sigma}, log ratio {self.log_spectral_ratio})"
        )


def as_result(signature: Any) -> dict[str, Any]:
    """A `Signature` or `PublishedSignature` as a flat dictionary for a record: `name`, and of an estimate
    `name_standard_error`, `name_errors_over`, `name_probe_error`, `name_batch_error`, `name_bound` and `name_interval`
    (95 %)."""
    result: dict[str, Any] = {}
    for field in dataclasses.fields(signature):
        value = getattr(signature, field.name)
        if isinstance(value, SpectralEstimate):
            result |= {
                field.name: value.value,
                f"{field.name}_standard_error": value.standard_error,
                f"{field.name}_errors_over": value.errors_over,
                f"{field.name}_probe_error": value.probe_error,
                f"{field.name}_batch_error": value.batch_error,
                f"{field.name}_bound": value.bound,
                f"{field.name}_interval": value.interval(),
            }
        else:
            result[field.name] = value
    return result


# ---- one run


@dataclass(frozen=True, repr=False, eq=False)
class Nodes:
    """Nodes, weights and residuals of one run, the largest |node| first."""

    nodes: np.ndarray
    weights: np.ndarray
    residuals: np.ndarray

    @classmethod
    def of(cls, run: Quadrature, n: int, orthogonal: bool = True) -> "Nodes":
        """The run's nodes. Without reorthogonalisation copies are joined, and new copies are dropped: nodes of almost
        no weight that may belong to a neighbour's eigenvalue."""
        nodes, weights, residuals = run.nodes, run.weights, run.residuals
        if not orthogonal:
            nodes, weights = merged(run.nodes, run.weights, 1e-4)
            nearest = np.abs(run.nodes[:, None] - nodes).argmin(1)
            residuals = np.array([run.residuals[nearest == index].min() for index in range(len(nodes))])
            apart = np.diff(nodes, prepend=-np.inf, append=np.inf)
            real = (weights > 1e-4 / n) | (residuals < np.minimum(apart[1:], apart[:-1]))
            nodes, weights, residuals = nodes[real], weights[real], residuals[real]
        order = np.argsort(-np.abs(nodes))
        return cls(nodes[order], weights[order], residuals[order])

    def with_bulk(self, run: Quadrature, shares: np.ndarray) -> "Nodes":
        """Of a probe v: these outliers with its shares (k,) in them, (uᵀv)²/vᵀv, before the nodes of a run from the
        rest of v."""
        order = np.argsort(-np.abs(run.nodes))
        parts = [(self.nodes[: len(shares)], run.nodes), (shares, (1 - shares.sum()) * run.weights)]
        parts.append((self.residuals[: len(shares)], run.residuals))
        return Nodes(*(np.append(known, found[order]) for known, found in parts))

    def __repr__(self) -> str:
        return f"Nodes({len(self.nodes)} from {self.nodes.min():.4g} to {self.nodes.max():.4g})"

    def outliers(self, n: int) -> int:
        """Number of largest |θ| before the first that is no single, converged eigenvalue; at most ten, and at most half
        of the eigenvalues, so that a bulk remains."""
        head = slice(0, min(MOST_OUTLIERS, n // 2))
        converged = self.residuals[head] <= CONVERGED * np.abs(self.nodes[head])
        single = self.weights[head] <= SINGLE / n
        return int(np.argmin(np.append(converged & single, False)))


def _batch_error(influence: np.ndarray | None) -> float | None:
    """√(Σ (I_b − Ī)² / (B(B − 1)))."""
    if influence is None or len(influence) < 2:
        return None
    return float(influence.std(ddof=1) / math.sqrt(len(influence)))


# ---- the signature


@dataclass(frozen=True)
class _Moment:
    """A function of averages over probes, and its influences: of each probe (probes,) and, up to constants, of each
    block (blocks,)."""

    value: float
    by_probe: np.ndarray
    by_block: np.ndarray | None

    @classmethod
    def of(cls, value: float, *terms: tuple[float, "_Moment"]) -> "_Moment":
        """A function of other moments, from its partial derivative in each of them."""
        by_block = None
        if all(moment.by_block is not None for _, moment in terms):
            by_block = sum(slope * moment.by_block for slope, moment in terms)
        return cls(value, sum(slope * moment.by_probe for slope, moment in terms), by_block)

    def estimate(self, bound: float = 0.0) -> SpectralEstimate:
        """Value and standard errors, and how far the value may be off at fixed probes and blocks."""
        probes, blocks = len(self.by_probe), len(self.by_block) if self.by_block is not None else 0
        return SpectralEstimate(float(self.value), self.probe_error, _batch_error(self.by_block), probes, blocks, bound)

    @property
    def probe_error(self) -> float:
        """√(Σ (x_i − x̄)² / (P(P − 1))) of what the probes give; NaN for one probe."""
        if len(self.by_probe) < 2:
            return math.nan
        return float(self.by_probe.std(ddof=1) / math.sqrt(len(self.by_probe)))


class _Moments:
    """Moments of the spectrum from ranked runs, and what each block adds to them in each run."""

    def __init__(
        self,
        runs: list[Quadrature],
        ranked: list[Nodes],
        influences: list[dict[str, np.ndarray]] | None,
        of_bulk: list[bool] | None = None,
    ):
        """of_bulk: the runs whose influences are of the bulk that all measure; None: all of them."""
        self.ranked = ranked
        # Of the second moment ‖Hv‖²/vᵀv = α₁² + β₁² one node has the first term only; two have it all.
        short = [run.betas[0] ** 2 if len(run.betas) == 1 else 0.0 for run in runs]
        self.lacking = np.array([square * nodes.weights[-1] for square, nodes in zip(short, ranked, strict=True)])
        self.by_block = {}
        if influences:
            bulk = list(itertools.compress(influences, of_bulk or itertools.repeat(True)))
            self.by_block = {
                name: np.mean([part[name] for part in (bulk if name.startswith("bulk") else influences)], axis=0)
                for name in influences[0]
            }

    def average(self, function: Callable, name: str | None = None, leave_out: int = 0, scale: float = 1.0) -> _Moment:
        """scale Σ w f(θ) without the first `leave_out` nodes; `name` is that of its influences over blocks."""
        by_probe = np.array([q.weights[leave_out:] @ function(q.nodes[leave_out:]) for q in self.ranked])
        if function is np.square:
            by_probe += self.lacking
        return _Moment(by_probe.mean() * scale, by_probe * scale, self.by_block.get(name))

    def known(self, value: float, name: str) -> _Moment:
        """A value that is the same for all probes."""
        return _Moment(value, np.zeros(len(self.ranked)), self.by_block.get(name))


def _variance(first: _Moment, second: _Moment) -> _Moment:
    """Second moment less the squared mean; products of two different probes estimate the latter without bias."""
    squared_mean = first.value**2 - first.probe_error**2
    return _Moment.of(second.value - squared_mean, (1.0, second), (-2 * first.value, first))


def signature_of_runs(
    runs: list[Quadrature],
    n: int,
    influences: list[dict[str, np.ndarray]] | None = None,
    *,
    later: Sequence[tuple[Quadrature, np.ndarray]] = (),
    joint: tuple[np.ndarray, np.ndarray] | None = None,
    basis: str = "float32",
) -> Signature:
    """Signature of an n × n matrix from two or more Lanczos runs, and each block's influences in each run.

    later: short runs from further probes v without their components along the outliers u of the only entry of `runs`,
    and the shares (uᵀv)²/n of these. They add to the moments, exact after one step, and to no other quantity.
    λ_max and λ_min are the outermost Ritz values of all runs, none of which lies beyond the spectrum. If `joint` (of
    `joint_ritz`) is given, they and the leading eigenvalues are those of all runs together. Outliers: the largest
    |eigenvalues|, at most ten, that have converged to 1 % in every run. With Σ over the other nodes of a run,
    n(Σ w θ)/(n − n_out) averages to the bulk centre c and n(Σ w θ²)/(n − n_out) to c² + σ_bulk²: since E(uᵀv)² = 1 for
    every eigenvector u, leaving out the outliers' nodes subtracts them exactly in expectation and removes their
    variance (deflation). Spectral ratio: λ_max / σ_bulk. The second moment of a probe is ‖Hv‖²/n, exact after one step.
    Outlier separation: smallest |λ| of an outlier less the largest of any other node, in units of σ_bulk. Effective
    rank: (tr H)²/tr H². Spectral entropy: −Σ p log p of p = |λ|/Σ|λ|; its interval excludes the quadrature's error, and
    one run gives none.
    A bulk width that is rounding or negative, and a log ratio without a positive eigenvalue, are NaN, with a sentence
    in `notes`. ValueError for fewer than two probes, and for a matrix of zeros.
    Source: Ubaru, Chen & Saad 2017 (SLQ); Hutchinson 1989.
    """
    if len(runs) + len(later) < 2:
        raise ValueError(ONE_PROBE)
    ranked = [Nodes.of(run, n, basis != "none") for run in runs]
    full = len(ranked)
    ranked += [ranked[0].with_bulk(run, shares) for run, shares in later]
    leading, leading_residuals = joint or (ranked[0].nodes, ranked[0].residuals)
    values = np.concatenate([*(run.nodes for run in runs), leading])
    residuals = np.concatenate([*(run.residuals for run in runs), leading_residuals])
    top, bottom = values.argmax(), values.argmin()
    # The same number in every run, so that all runs measure the same bulk.
    counts = [nodes.outliers(n) for nodes in ranked[:full]]
    count = min(counts)
    of_bulk = [each == count for each in counts] + [True] * len(later)
    moments = _Moments([*runs, *(run for run, _ in later)], ranked, influences, of_bulk)

    mean, second = moments.average(np.positive, "mean_eigenvalue"), moments.average(np.square, "second")
    deflated = {"leave_out": count, "scale": n / (n - count)}
    center = moments.average(np.positive, "bulk_center", **deflated)
    width = _variance(center, moments.average(np.square, "bulk_second", **deflated))
    if not second.value > 0:
        raise ValueError("all eigenvalues are zero: to second order the loss does not depend on these parameters.")
    notes, undefined = [], _Moment(math.nan, np.full(len(ranked), math.nan), None)
    lambda_max, residual = float(values[top]), float(residuals[top])
    largest = moments.known(lambda_max, "lambda_max")
    sigma = log_ratio = undefined
    bound = 0.0
    if width.value > ROUNDING**2 * second.value:
        sigma = _Moment.of(math.sqrt(width.value), (0.5 / math.sqrt(width.value), width))
    else:
        notes.append(
            f"the bulk's width is not identified: without {count} outliers the variance of {n - count} eigenvalues is "
            f"{width.value:.2g}, rounding or noise of the probes beside a mean square of {second.value:.2g}."
        )
    if lambda_max <= 0:
        notes.append(f"the log ratio is not defined: no eigenvalue is positive, the largest is {lambda_max:.4g}.")
    elif sigma is not undefined:
        log_ratio = _Moment.of(math.log(lambda_max / sigma.value), (1 / lambda_max, largest), (-1 / sigma.value, sigma))
        bound = -math.log1p(-residual / lambda_max) if residual < lambda_max else math.inf
    m, s = mean.value, second.value
    rank = _Moment.of(n * m**2 / s, (2 * n * m / s, mean), (-n * m**2 / s**2, second))
    long = _Moments(runs, ranked[:full], None)
    mass, logs = long.average(np.abs), long.average(lambda x: np.abs(x) * np.log(np.abs(x) + 1e-300))
    entropy = _Moment.of(
        math.log(n * mass.value) - logs.value / mass.value,
        (1 / mass.value + logs.value / mass.value**2, mass),
        (-1 / mass.value, logs),
    )

    head = ranked[0]
    smallest = abs(head.nodes[count - 1]) if count else math.nan
    edge = max(abs(q.nodes[count]) if len(q.nodes) > count else 0.0 for q in ranked[:full])
    points = np.array([-smallest, smallest, 0.0]) if count else np.zeros(3)
    rules = [run.nodes for run in runs], [run.weights for run in runs]
    below, above = cumulated_bounds(*rules, points)
    low, high = quantile_bracket(*rules, 0.25), quantile_bracket(*rules, 0.75)
    return Signature(
        parameters=n,
        probes=len(ranked),
        steps=max(len(run.nodes) for run in runs),
        blocks=len(largest.by_block) if largest.by_block is not None else 0,
        basis=basis,
        lambda_max=lambda_max,
        lambda_max_residual=residual,
        lambda_max_batch_error=_batch_error(largest.by_block),
        lambda_min=float(values[bottom]),
        lambda_min_residual=float(residuals[bottom]),
        eigenvalue_range=lambda_max - float(values[bottom]),
        leading_eigenvalues=leading[:MOST_OUTLIERS].tolist(),
        leading_residuals=leading_residuals[:MOST_OUTLIERS].tolist(),
        mean_eigenvalue=mean.estimate(),
        spectral_variance=_variance(mean, second).estimate(),
        outliers=np.sort(head.nodes[:count])[::-1].tolist(),
        outlier_count_bracket=[float(count), max(float(count), float(n * (above[0] + 1 - below[1]))) if count else 0.0],
        outlier_separation=float((smallest - edge) / sigma.value) if count else 0.0,
        bulk_center=center.estimate(),
        bulk_sigma=sigma.estimate(),
        spectral_ratio=lambda_max / sigma.value,
        log_spectral_ratio=log_ratio.estimate(bound),
        effective_rank=rank.estimate(),
        spectral_entropy=entropy.estimate(),
        negative_mass_bracket=[float(below[2]), float(above[2])],
        iqr_bracket=[max(0.0, high[0] - low[1]), high[1] - low[0]],
        nodes=[run.nodes.tolist() for run in runs],
        weights=[run.weights.tolist() for run in runs],
        notes=notes,
    )
