"""`make bench`, SIGMA: accumulation against numpy's GEMM, tracks against Cholesky and full spectra, and their error."""

import math
import time
import tracemalloc

import mpmath
import numpy as np
from spectral_collapse import sigma
from spectral_collapse.sigma import scale
from timing import paired, table

DELTA = 1e-3
WIDTHS = (384, 1024)  # of MiniLM and of large encoders
COUNTS = (10_000, 500_000)


def embeddings(count: int, m: int, seed: int = 0) -> np.ndarray:
    """Unit rows (count, m), float32, with a common direction and a decaying spectrum, as of a sentence encoder."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((count, m), dtype=np.float32) * np.geomspace(1, 0.02, m, dtype=np.float32)
    rows += 0.3 * rng.standard_normal(m, dtype=np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def accumulation(m: int) -> dict:
    """Rows per second of `update` on float32 rows, against numpy's products of the same rows, float64 already."""
    rows = embeddings(max(2 * m, 16_384 * 384 // m), m)
    double = rows.astype(np.float64)
    other = double.copy()  # a second operand: numpy would call the half as expensive SYRK on one
    ours, gemm, syrk = paired(
        lambda: sigma.GramAccumulator(m).update(rows, rho=1.0), lambda: double.T @ other, lambda: double.T @ double
    )
    return {
        "m": m,
        "rows": len(rows),
        "embeddings_per_second": len(rows) / ours,
        "gemm_gflops": 2 * m * m * len(rows) / gemm / 1e9,
        "fraction_of_gemm": gemm / ours,
        "fraction_of_numpy_syrk": syrk / ours,
    }


def tracks(m: int) -> dict:
    """Both tracks of a checkpoint, n_A = 2.6 m and n = 20 n_A, in units of one Cholesky factorisation and of m³."""
    count = round(2.6 * m)
    rows = embeddings(count, m).astype(np.float64)
    gram = rows.T @ rows
    other = gram.copy()

    def both(envelope):
        sigma.track_one(gram, count, 20 * count, 1.0, DELTA, envelope)
        sigma.track_two(gram, count, DELTA)

    calls = [
        lambda: sigma.cholesky_logdet(gram, DELTA),
        lambda: both("ky_fan"),
        lambda: both("water_filling"),
        lambda: gram @ other,
        lambda: np.linalg.slogdet(rows.T @ rows + DELTA * np.eye(m)),
        lambda: np.linalg.eigvalsh(rows.T @ rows),
    ]
    cholesky, ky_fan, water, gemm, full_slogdet, full_eigen = paired(*calls)
    cubes = 1.5 * gemm  # seconds of 3 m³ flops at the GEMM's rate; the product above takes 2 m³
    return {
        "m": m,
        "cholesky_seconds": cholesky,
        "ky_fan_over_cholesky": ky_fan / cholesky,
        "water_filling_over_cholesky": water / cholesky,
        "ky_fan_over_3m3_gemm_flops": ky_fan / cubes,
        "water_filling_over_3m3_gemm_flops": water / cubes,
        "full_slogdet_over_ky_fan": full_slogdet / ky_fan,
        "full_eigendecomposition_over_ky_fan": full_eigen / ky_fan,
    }


def stream(count: int, m: int = 384) -> dict:
    """`count` embeddings through the accumulator from an iterator of one chunk, once, with the peak memory."""
    chunk = embeddings(scale.ROWS, m)
    sizes = [scale.ROWS] * (count // scale.ROWS) + [count % scale.ROWS]
    tracemalloc.start()
    start = time.process_time()
    sigma.stream((chunk[:size] for size in sizes), m, 1.0)
    seconds = time.process_time() - start
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return {"n": count, "m": m, "embeddings_per_second": count / seconds, "peak_memory_mib": peak / 2**20}


def exactness(m: int, digits: int = 50) -> dict:
    """Relative error of both tracks against 50-digit arithmetic on the same rows, and the numerical rank.

    Three coordinates are dead, as MiniLM's are.
    """
    count = 3 * m
    rows = embeddings(count, m)
    rows[:, [m // 3, m // 2, m - 2]] = 0
    gram = sigma.GramAccumulator(m).update(rows).gram
    with mpmath.workdps(digits):
        exact = mpmath.matrix(rows.astype(np.float64).tolist())
        exact = exact.T * exact
        errors = []
        for shift, found in (
            (DELTA, sigma.track_two(gram, count, DELTA) + m * math.log(count)),
            (DELTA + count, sigma.track_one(gram, count, 2 * count, 1.0, DELTA) + m * math.log(2 * count)),
        ):
            factor = mpmath.cholesky(exact + shift * mpmath.eye(m))
            truth = 2 * sum(mpmath.log(factor[i, i]) for i in range(m))
            errors.append(float(abs(found - truth) / abs(truth)))
    eigenvalues = np.linalg.eigvalsh(gram)
    rank = int((eigenvalues > m * np.finfo(np.float64).eps * eigenvalues[-1]).sum())
    return {
        "m": m,
        "digits": digits,
        "track_two_relative_error": errors[0],
        "track_one_relative_error": errors[1],
        "numerical_rank": rank,
    }


def main() -> dict:
    """All measurements; as ratios, accumulation at MiniLM's width and both tracks at the widest."""
    rates, costs = [accumulation(m) for m in WIDTHS], [tracks(m) for m in WIDTHS]
    streams, errors = [stream(count) for count in COUNTS], [exactness(m) for m in (32, 64)]
    lines = table(
        "| width | rows per s | of numpy's GEMM | both tracks, in Cholesky factorisations | with water filling | "
        "`slogdet` over tracks | `eigvalsh` over tracks |",
        *(
            [rate["m"], rate["embeddings_per_second"], rate["fraction_of_gemm"], cost["ky_fan_over_cholesky"],
             cost["water_filling_over_cholesky"], cost["full_slogdet_over_ky_fan"],
             cost["full_eigendecomposition_over_ky_fan"]]
            for rate, cost in zip(rates, costs, strict=True)
        ),
    )  # fmt: skip
    sentences = [
        f"{row['n']:,} rows of {row['m']} columns stream at {row['embeddings_per_second']:,.0f} rows/s with "
        f"{row['peak_memory_mib']:.0f} MiB."
        for row in streams
    ]
    worst = max(max(row["track_one_relative_error"], row["track_two_relative_error"]) for row in errors)
    sentences.append(f"Largest relative error against {errors[0]['digits']}-digit arithmetic: {worst:.1e}.")
    ratios = {
        f"accumulation, width {rates[0]['m']}: time over numpy's GEMM": 1 / rates[0]["fraction_of_gemm"],
        f"tracks, width {costs[-1]['m']}: time over a Cholesky factorisation": costs[-1]["ky_fan_over_cholesky"],
    }
    kept = {"accumulation": rates, "tracks": costs, "stream": streams, "exactness": errors}
    return {"table": [*lines, "", *sentences], "ratios": ratios} | kept
