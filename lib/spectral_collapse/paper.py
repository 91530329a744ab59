"""What a profile puts into the paper: its folder of figures, tables and numbers, and the values of its set-up."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from . import curvature, estimators, figures, formatting, models, paths, provenance, series, statistics, tables
from .params import Params, load
from .runs import BASELINE

Results = Iterable[tuple[str, int, int, dict]]


class Output:
    """The only writer of `paper/generated/<profile>`; `written` lists the names of what it wrote."""

    def __init__(self, profile: str):
        self.folder: Path = paths.generated_folder(profile)
        self.written: list[str] = []

    def _path(self, *parts: str) -> Path:
        self.written.append("/".join(parts))
        return self.folder.joinpath(*parts)

    def figure(self, name: str, figure: Figure) -> Figure:
        """Writes figures/<name>.pdf and returns the figure, for the notebook to show."""
        figures.save(figure, self._path("figures", f"{name}.pdf"))
        return figure

    def table(self, name: str, frame: pd.DataFrame) -> None:
        """Writes tables/<name>.tex."""
        tables.write_table(frame, self._path("tables", f"{name}.tex"))

    def csv(self, name: str, frame: pd.DataFrame) -> None:
        """Writes metrics/<name>."""
        provenance.write_text(self._path("metrics", name), frame.to_csv(index=False))

    def values(self, values: dict[str, str]) -> None:
        """Writes numbers.tex."""
        tables.write_values(values, self._path("numbers.tex"))


def _parameter(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, list):
        return ", ".join(str(item) for item in value)
    if isinstance(value, float):
        return f"{value:g}"
    return str(value)


def design(params: Params) -> pd.DataFrame:
    """Every parameter of the profile with its value, in two columns of pairs; paths of the user's are left out."""
    values = params.model_dump(exclude={"data_path", "held_out_path"})
    pairs = [(name.replace("_", " "), _parameter(value)) for name, value in values.items()]
    half = -(-len(pairs) // 2)
    pairs += [("", "")] * (2 * half - len(pairs))
    rows = [[*pairs[i], *pairs[half + i]] for i in range(half)]
    return pd.DataFrame(rows, columns=["Parameter", "Value", "Parameter ", "Value "])


def _number(value: float | None) -> str:
    """A number of a record, where infinity stands as null."""
    return formatting.format_number(float("inf") if value is None else value)


def _pair(result: dict, name: str, error: str) -> str:
    return rf"{_number(result[name])} $\pm$ {_number(result[f'{name}_{error}'])}"


def _bracket(result: dict, name: str) -> str:
    low, high = map(_number, result[name])
    return f"[{low}, {high}]"


def _interval(result: dict, name: str) -> str:
    return formatting.format_interval(statistics.Interval(result[name], *result[f"{name}_interval"]))


def spectrum_baseline(spectra: Results) -> pd.DataFrame:
    """Spectra of the base models, a column a seed: estimates with their error, and the bracket of the IQR."""

    def cells(result: dict) -> dict[str, str]:
        return {
            r"$\lambda_{\max}$ $\pm$ residual": _pair(result, "lambda_max", "residual"),
            r"$\lambda_{\min}$ $\pm$ residual": _pair(result, "lambda_min", "residual"),
            r"$\mathrm{tr}(H)/n$ $\pm$ s.e.": _pair(result, "mean_eigenvalue", "standard_error"),
            r"$\sigma_{\mathrm{bulk}}$ $\pm$ s.e.": _pair(result, "bulk_sigma", "standard_error"),
            r"\quad s.e.\ over probes alone": _number(result["bulk_sigma_probe_error"]),
            r"$\log(\lambda_{\max}/\sigma_{\mathrm{bulk}})$ $\pm$ s.e.": _pair(
                result, "log_spectral_ratio", "standard_error"
            ),
            r"effective rank $(\mathrm{tr} H)^2/\mathrm{tr} H^2$ $\pm$ s.e.": _pair(
                result, "effective_rank", "standard_error"
            ),
            r"spectral entropy in nats $\pm$ s.e.": _pair(result, "spectral_entropy", "standard_error"),
            "number of outliers, bracket": _bracket(result, "outlier_count_bracket"),
            r"outlier separation, in $\sigma_{\mathrm{bulk}}$": _number(result["outlier_separation"]),
            "share of negative eigenvalues, bracket": _bracket(result, "negative_mass_bracket"),
            "IQR, bracket": _bracket(result, "iqr_bracket"),
            "IQR, published estimator": _number(result["published_iqr"]),
            r"$\lambda_{\max}/$IQR, published estimator": _number(result["published_ratio"]),
        }

    columns = {f"seed {seed}": cells(result) for _, seed, generation, result in spectra if generation == 0}
    rows = [
        [tables.Raw(quantity), *(tables.Number(column[quantity]) for column in columns.values())]
        for quantity in next(iter(columns.values()))
    ]
    return pd.DataFrame(rows, columns=pd.Index(["Quantity", *columns], dtype=object), dtype=object)


def committed(profile: str, *stages: str) -> list[dict]:
    """Results of stages of a profile's base model, first seed, from the records that come with the project.

    ValueError naming the file where one is missing or damaged.
    """
    params = load(profile)
    run = paths.run_folder(params.profile, params.model, BASELINE, params.seeds[0], paths.COMMITTED)
    results = []
    for stage in stages:
        path = paths.generation_folder(run, 0) / f"{stage}.json"
        try:
            results.append(provenance.read_result(path))
        except (FileNotFoundError, provenance.StaleRecord) as reason:
            raise ValueError(f"{path} cannot be used ({reason}): restore it from the repository.") from None
    return results


def estimator_noise() -> pd.DataFrame:
    """`estimators.values` of the committed study of the profile `estimators`."""
    params = load("estimators")
    results = committed("estimators", *(f"estimators_{batch}" for batch in range(params.estimator_batches)))
    return estimators.values(results, params.estimator_steps)


def _published_widths(result: dict) -> list[float]:
    """The published width of every probe of a curvature result."""
    return [
        curvature.interpolated_iqr(np.asarray(nodes), np.asarray(weights))
        for nodes, weights in zip(result["nodes"], result["weights"], strict=True)
    ]


def pretrained(result: dict) -> pd.DataFrame:
    """Both estimators on a pretrained model: the published one by probe, and what the probes say together."""
    widths = _published_widths(result)
    ratios = [curvature.published_ratio(result["published_lambda_max"], width) for width in widths]
    rows = [
        ("IQR, published, by probe", ", ".join(map(_number, widths))),
        (r"$\lambda_{\max}/$IQR, published, by probe", ", ".join(map(_number, ratios))),
        (r"$\lambda_{\max}$, published: power iteration", _number(result["published_lambda_max"])),
        ("IQR, bracket", _bracket(result, "iqr_bracket")),
        (r"$\lambda_{\max}$ $\pm$ residual", _pair(result, "lambda_max", "residual")),
        (r"$\lambda_{\max}$ $\pm$ s.e.\ over blocks", _pair(result, "lambda_max", "batch_error")),
        (r"$\lambda_{\min}$ $\pm$ residual", _pair(result, "lambda_min", "residual")),
        (r"$\mathrm{tr}(H)/n$", _interval(result, "mean_eigenvalue")),
        (r"$\sigma_{\mathrm{bulk}}$", _interval(result, "bulk_sigma")),
        (r"$\log(\lambda_{\max}/\sigma_{\mathrm{bulk}})$", _interval(result, "log_spectral_ratio")),
    ]
    cells = [[tables.Raw(name), tables.Number(value)] for name, value in rows]
    return pd.DataFrame(cells, columns=pd.Index(["Quantity", "Value"], dtype=object), dtype=object)


def committed_values(noise: pd.DataFrame, result: dict) -> dict[str, str]:
    """Numbers of the committed studies: noise.<quantity>.<column of the summary>, and pretrained.<quantity>."""
    text = {}
    for name, column in estimators.summary(noise).items():
        show = formatting.format_percent if name.startswith("cv") else formatting.format_number
        text |= {f"noise.{quantity}.{name}": show(value) for quantity, value in column.items()}
    widths = _published_widths(result)
    return text | {
        "noise.probes": str(noise["probe"].nunique()),
        "noise.batches": str(noise["batch"].nunique()),
        "noise.fewest": str(noise["steps"].min()),
        "noise.most": str(noise["steps"].max()),
        "pretrained.parameters": f"{result['parameters'] / 1e6:.0f} million",
        "pretrained.probes": str(result["probes"]),
        "pretrained.steps": str(result["steps"]),
        "pretrained.blocks": str(result["blocks"]),
        "pretrained.iqr.least": _number(min(widths)),
        "pretrained.iqr.most": _number(max(widths)),
        "pretrained.iqr.bracket": _bracket(result, "iqr_bracket"),
        "pretrained.log_spectral_ratio": _interval(result, "log_spectral_ratio"),
    }


def sigma_coverage() -> pd.DataFrame:
    """The committed study of SIGMA's intervals (`sigma_coverage`): a row a cell and correction.

    ValueError where it is missing, or its table is not the one that its record describes.
    """
    folder = paths.COMMITTED / "sigma_coverage"
    try:
        recorded = provenance.read_result(folder / "study.json")["coverage_csv_sha256"]
        matches = provenance.file_hash(folder / "coverage.csv") == recorded
    except (FileNotFoundError, provenance.StaleRecord) as reason:
        raise ValueError(f"{folder} cannot be used ({reason}): restore it from the repository.") from None
    if not matches:
        raise ValueError(f"{folder / 'coverage.csv'} does not match its record: restore both from the repository.")
    return pd.read_csv(folder / "coverage.csv")


def injected_collapse() -> pd.DataFrame:
    """`series.drifts` of the committed runs of the profile `sigma_injection`."""
    return series.drifts(load("sigma_injection"), root=paths.COMMITTED)


def injection_values(drifts: pd.DataFrame) -> dict[str, str]:
    """injection.<track>.<condition>, the last drift, mean over seeds with its interval; injection.temperature, .seeds,
    .generations, of those runs."""
    params = load("sigma_injection")
    last = drifts[drifts["generation"] == drifts["generation"].max()]
    text = {
        f"injection.{track}.{condition}": formatting.format_interval(statistics.mean_interval(runs["drift"]))
        for (condition, track), runs in last.groupby(["condition", "track"])
    }
    return text | {
        "injection.temperature": f"{params.temperature:g}",
        "injection.seeds": str(len(params.seeds)),
        "injection.generations": str(params.generations),
    }


def sigma_values(results: Results, drifts: pd.DataFrame, covered: pd.DataFrame) -> dict[str, str]:
    """Values of SIGMA's set-up, of the runs whose drift is not 0, and of the coverage study.

    sigma.dimension, sigma.live, sigma.blocks.{least,most} of a checkpoint, sigma.checkpoints and sigma.warned, those
    with a message of the health checks; moved.<track>.<condition>, "2 of 3" runs whose last drift has p < 0.05;
    coverage.<correction>.{least,most} over columns and n_A/m at the study's largest m, the encoder's.
    """
    found = {(owner if generation else BASELINE, seed, generation): r for owner, seed, generation, r in results}
    counts = [result["observed_blocks"] for result in found.values()]
    one = next(iter(found.values()))
    text = {
        "sigma.dimension": str(one["dimension"]),
        "sigma.live": str(one["live_dimensions"]),
        "sigma.blocks.least": str(min(counts)),
        "sigma.blocks.most": str(max(counts)),
        "sigma.checkpoints": str(len(found)),
        "sigma.warned": str(sum(bool(result["health"]) for result in found.values())),
    }
    last = drifts[drifts["generation"] == drifts["generation"].max()]
    for (condition, track), runs in last.groupby(["condition", "track"]):
        text[f"moved.{track}.{condition}"] = f"{(runs['p_value'] < 0.05).sum()} of {len(runs)}"
    for correction, shares in covered[covered["m"] == covered["m"].max()].groupby("correction")["coverage"]:
        text[f"coverage.{correction}.least"] = formatting.format_percent(shares.min())
        text[f"coverage.{correction}.most"] = formatting.format_percent(shares.max())
    return text


def context(params: Params, training: Results) -> dict[str, str]:
    """Values of the set-up: profile, commit, versions, model size, and every parameter."""
    git, versions = provenance.git_state(), provenance.environment(str(models.pick_device(params.device)))
    parameters = next(iter(training))[3]["parameters"]
    values = params.model_dump(exclude={"data_path", "held_out_path"})
    return {
        "profile": formatting.escape(params.profile),
        "commit": git["commit"][:10] + ("+" if git["dirty"] else ""),
        "model": formatting.escape(params.model),
        "parameters": f"{parameters / 1e6:.2f} million" if parameters >= 1e5 else f"{parameters / 1e3:.0f} thousand",
        "conditions": formatting.escape(", ".join(params.conditions)),
        **{f"version.{name}": formatting.escape(version) for name, version in versions.items()},
        **{f"param.{name}": formatting.escape(_parameter(value)) for name, value in values.items()},
    }
