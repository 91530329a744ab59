"""What a profile puts into the paper: its folder of figures, tables and numbers, and the values of its set-up."""

from collections.abc import Iterable
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from . import figures, models, paths, provenance, statistics, tables
from .params import Params

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


def spectrum_baseline(curvature: Results) -> pd.DataFrame:
    """Spectra of the base models, a column a seed: estimates with their error, and the bracket of the IQR."""
    number = statistics.format_number

    def cells(result: dict) -> dict[str, str]:
        low, high = (number(float("inf") if end is None else end) for end in result["iqr_bracket"])

        def pair(name: str, error: str) -> str:
            return rf"{number(result[name])} $\pm$ {number(result[f'{name}_{error}'])}"

        return {
            r"$\lambda_{\max}$ $\pm$ residual": pair("lambda_max", "residual"),
            r"$\lambda_{\min}$ $\pm$ residual": pair("lambda_min", "residual"),
            r"$\mathrm{tr}(H)/n$ $\pm$ s.e.": pair("mean_eigenvalue", "standard_error"),
            r"$\sigma_{\mathrm{bulk}}$ $\pm$ s.e.": pair("bulk_sigma", "standard_error"),
            r"$\log(\lambda_{\max}/\sigma_{\mathrm{bulk}})$ $\pm$ s.e.": pair("log_spectral_ratio", "standard_error"),
            r"effective rank $(\mathrm{tr} H)^2/\mathrm{tr} H^2$": number(result["effective_rank"]),
            "IQR, bracket": f"[{low}, {high}]",
            "IQR, published estimator": number(result["published_iqr"]),
            r"$\lambda_{\max}/$IQR, published estimator": number(result["published_ratio"]),
        }

    columns = {f"seed {seed}": cells(result) for _, seed, generation, result in curvature if generation == 0}
    rows = [
        [tables.Raw(quantity), *(tables.Number(column[quantity]) for column in columns.values())]
        for quantity in next(iter(columns.values()))
    ]
    return pd.DataFrame(rows, columns=pd.Index(["Quantity", *columns], dtype=object), dtype=object)


def context(params: Params, training: Results) -> dict[str, str]:
    """Values of the set-up: profile, commit, versions, model size, and every parameter."""
    git, versions = provenance.git_state(), provenance.environment(str(models.pick_device(params.device)))
    parameters = next(iter(training))[3]["parameters"]
    values = params.model_dump(exclude={"data_path", "held_out_path"})
    return {
        "profile": tables.escape(params.profile),
        "commit": git["commit"][:10] + ("+" if git["dirty"] else ""),
        "model": tables.escape(params.model),
        "parameters": f"{parameters / 1e6:.2f} million" if parameters >= 1e5 else f"{parameters / 1e3:.0f} thousand",
        "conditions": tables.escape(", ".join(params.conditions)),
        **{f"version.{name}": tables.escape(version) for name, version in versions.items()},
        **{f"param.{name}": tables.escape(_parameter(value)) for name, value in values.items()},
    }
