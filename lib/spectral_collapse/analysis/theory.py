"""Recursions that can be solved: what every signal must do when a model is refitted to N draws of its predecessor.

Categorical (Wright–Fisher): p_{g+1} is the maximum-likelihood fit, the shares of N draws from p_g. Gaussian: μ_{g+1}
and Σ_{g+1} are the mean and the unbiased covariance of N draws from N(μ_g, Σ_g). The control refits to N draws of the
truth each generation, so that each of its generations is distributed as generation 1 of the recursion.

The Hessian of the categorical loss in the logits at the fit is diag(p) − ppᵀ: its trace is 1 − Σp², the chance that two
draws differ. Curvature and diversity are one statistic here, and neither can lead the other.
Sources: Ewens 2004, chapter 3 (heterozygosity); Muirhead 1982, section 3.2 (Wishart moments).
"""

import math

import numpy as np
import pandas as pd
from scipy import optimize
from scipy.special import digamma, polygamma

COLUMNS = ("signal", "generation", "mean", "deviation")


def _frame(rows: list[tuple[str, int, float, float]]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=list(COLUMNS))


def categorical(p: np.ndarray, draws: int, generations: int) -> pd.DataFrame:
    """Exact mean and standard deviation of the categorical recursion's signals at generations 1 …

    diversity: 1 − Σp², whose mean is (1 − 1/N)^g (1 − Σp₀²). Its variance follows from the moments Σp², Σp³ and (Σp²)²
    of four draws, a linear recursion: draws that pick the same of the N individuals have one ancestor.
    excess_loss: χ²(p_g, p₀)/2 = Σ(p_g − p₀)²/(2p₀), the held-out loss above the truth's to second order in p_g − p₀,
    which stays finite where a type is lost; its mean is (K − 1)(1 − (1 − 1/N)^g)/2. The deviation is that of a χ² with
    K − 1 degrees of freedom, to first order in 1/N.
    Columns signal, generation, mean, deviation. ValueError unless all p > 0 and they sum to 1.
    """
    p, n = np.asarray(p, dtype=float), draws
    if p.ndim != 1 or (p <= 0).any() or not math.isclose(p.sum(), 1, rel_tol=1e-9):
        raise ValueError("p must hold positive probabilities that sum to 1.")
    two, three = (p**2).sum(), (p**3).sum()
    square = two**2
    falling = [math.prod(range(n - k + 1, n + 1)) for k in range(5)]  # N (N − 1) … of k factors
    rows = []
    for generation in range(1, generations + 1):
        square = (
            falling[4] * square + falling[3] * (2 * two + 4 * three) + falling[2] * (1 + 6 * two) + falling[1]
        ) / n**4
        three = (falling[3] * three + 3 * falling[2] * two + falling[1]) / n**3
        two = (falling[2] * two + falling[1]) / n**2
        lost = 1 - (1 - 1 / n) ** generation
        rows += [
            ("diversity", generation, 1 - two, math.sqrt(max(square - two**2, 0.0))),
            ("excess_loss", generation, (len(p) - 1) * lost / 2, math.sqrt((len(p) - 1) / 2) * lost),
        ]
    return _frame(rows)


def _halves(m: int, draws: float) -> np.ndarray:
    return (draws - np.arange(1, m + 1)) / 2


def logdet_step(m: int, draws: float) -> float:
    """Mean change of log det Σ in one generation of the Gaussian recursion in m dimensions, N > m draws, in nats."""
    return float((digamma(_halves(m, draws)) - math.log((draws - 1) / 2)).sum())


def gaussian(m: int, draws: int, generations: int) -> pd.DataFrame:
    """Mean and standard deviation of the Gaussian recursion's signals in m dimensions at generations 1 …

    logdet: log det Σ_g − log det Σ₀, a random walk whose steps have the mean Σ_i [ψ((N − i)/2) − log((N − 1)/2)] and
    the variance Σ_i ψ′((N − i)/2), i = 1 … m: exact, and the slope that SIGMA's Track II estimates.
    excess_loss: KL(N(0, Σ₀) ‖ N(μ_g, Σ_g)) = ½ [tr(Σ_g⁻¹Σ₀) + μᵀΣ_g⁻¹μ − m + log det Σ_g − log det Σ₀]. With
    a = (N − 1)/(N − m − 2), E tr = m a^g and E μᵀΣ_g⁻¹μ = q_g, q_{g+1} = a (q_g + m/N): the mean is exact. The
    deviation is that of a χ² with m(m + 3)/2 degrees of freedom, to first order in 1/N.
    Columns signal, generation, mean, deviation. ValueError unless N > m + 2, below which the mean loss is infinite.
    """
    n = draws
    if n <= m + 2:
        raise ValueError(f"{n} draws in {m} dimensions: the mean loss is infinite; take more than {m + 2}.")
    step, variance = logdet_step(m, n), float(polygamma(1, _halves(m, n)).sum())
    growth, mean_part, rows = (n - 1) / (n - m - 2), 0.0, []
    for generation in range(1, generations + 1):
        mean_part = growth * (mean_part + m / n)
        loss = (m * growth**generation + mean_part - m + generation * step) / 2
        rows += [
            ("logdet", generation, generation * step, math.sqrt(generation * variance)),
            ("excess_loss", generation, loss, math.sqrt(m * (m + 3) / 4) * generation / n),
        ]
    return _frame(rows)


def detectability(moments: pd.DataFrame) -> pd.DataFrame:
    """d′ of every signal and generation: |mean − control's mean| / √((variance + control's variance)/2).

    The control's generation is generation 1 of the recursion. Columns signal, generation, d_prime.
    """
    control = moments[moments["generation"] == 1].set_index("signal")
    means, deviations = (moments["signal"].map(control[name]) for name in ("mean", "deviation"))
    pooled = np.sqrt((moments["deviation"] ** 2 + deviations**2) / 2)
    return moments[["signal", "generation"]].assign(d_prime=(moments["mean"] - means).abs() / pooled)


EXAMPLES = {"types": 1000, "dimensions": 20, "draws": 100_000, "generations": 10}


def zipf(types: int) -> np.ndarray:
    """p_k ∝ 1/k, k = 1 … types."""
    p = 1 / np.arange(1, types + 1)
    return p / p.sum()


def examples() -> dict[str, dict[int, pd.DataFrame]]:
    """`detectability` of both recursions of `EXAMPLES`, at a tenth of its draws, at these and at ten times as many."""
    p, m, draws, last = zipf(EXAMPLES["types"]), EXAMPLES["dimensions"], EXAMPLES["draws"], EXAMPLES["generations"]
    sizes = (draws // 10, draws, 10 * draws)
    return {
        "categorical": {n: detectability(categorical(p, n, last)) for n in sizes},
        "Gaussian": {n: detectability(gaussian(m, n, last)) for n in sizes},
    }


# ---- the sample size that a decline would have in these recursions


def draws_of_slope(slope: float, m: int) -> float:
    """N at which log det Σ in m dimensions falls by −slope nats a generation; ∞ where it does not fall.

    >>> round(draws_of_slope(logdet_step(5, 40), 5), 6)
    40.0
    """
    if slope >= 0:
        return math.inf
    return float(optimize.brentq(lambda n: logdet_step(m, n) - slope, m + 1e-6, m + 10 * m**2 / -slope))


def draws_of_concentration(first: float, last: float, generations: int) -> float:
    """N at which Σp² rises from `first` to `last` in so many generations, by 1 − Σp² ∝ (1 − 1/N)^g; ∞ where it does not
    rise.

    >>> round(draws_of_concentration(0.1, 1 - 0.9 * (1 - 1 / 50) ** 3, 3), 6)
    50.0
    """
    if last <= first:
        return math.inf
    return 1 / (1 - ((1 - last) / (1 - first)) ** (1 / generations))


def implied(table: pd.DataFrame, m: int, condition: str) -> dict[str, float]:
    """What a condition's runs would be, were they such recursions: means over seeds, generation 0 to the last.

    generations; slope, of Track II in nats a generation; draws_slope, its N in m dimensions;
    concentration.{first,last}, hashed n-gram HHI, an estimate of Σp²; draws_concentration, its N.
    """
    means = table[table["condition"] == condition].groupby("generation")[["track_two_drift", "hashed_ngram_hhi"]].mean()
    last = int(means.index.max())
    slope = float(np.polyfit(means.index, means["track_two_drift"], 1)[0])
    first, end = means["hashed_ngram_hhi"].iloc[[0, -1]]
    return {
        "generations": last,
        "slope": slope,
        "draws_slope": draws_of_slope(slope, m),
        "concentration.first": float(first),
        "concentration.last": float(end),
        "draws_concentration": draws_of_concentration(first, end, last),
    }


# ---- simulations, which the formulas are tested against and the estimators are run on


def categorical_runs(p: np.ndarray, draws: int, generations: int, runs: int, rng: np.random.Generator) -> np.ndarray:
    """Shares p_g of independent recursions, (runs, generations + 1, K), generation 0 included."""
    shares = np.empty((runs, generations + 1, len(p)))
    shares[:, 0] = p
    for generation in range(generations):
        shares[:, generation + 1] = rng.multinomial(draws, shares[:, generation]) / draws
    return shares


def gaussian_run(m: int, draws: int, generations: int, rng: np.random.Generator) -> list[tuple[np.ndarray, np.ndarray]]:
    """Mean (m,) and covariance (m, m) of every generation of one recursion that starts from N(0, I)."""
    found = [(np.zeros(m), np.eye(m))]
    for _ in range(generations):
        mean, covariance = found[-1]
        rows = mean + rng.normal(size=(draws, m)) @ np.linalg.cholesky(covariance).T
        found.append((rows.mean(axis=0), np.cov(rows, rowvar=False).reshape(m, m)))
    return found


def categorical_signals(p: np.ndarray, shares: np.ndarray) -> dict[str, np.ndarray]:
    """Signals of shares (runs, generations, K) of a recursion that began with p, each (runs, generations)."""
    return {
        "diversity": 1 - np.square(shares).sum(axis=-1),
        "excess_loss": (np.square(shares - p) / p).sum(axis=-1) / 2,
    }


def gaussian_signals(runs: list[list[tuple[np.ndarray, np.ndarray]]]) -> dict[str, np.ndarray]:
    """Signals of recursions that began with N(0, I), each (runs, generations)."""

    def signals(mean: np.ndarray, covariance: np.ndarray) -> tuple[float, float]:
        logdet, inverse = float(np.linalg.slogdet(covariance)[1]), np.linalg.inv(covariance)
        return logdet, float(np.trace(inverse) + mean @ inverse @ mean - len(mean) + logdet) / 2

    found = np.array([[signals(*fit) for fit in run] for run in runs])
    return {"logdet": found[..., 0], "excess_loss": found[..., 1]}
