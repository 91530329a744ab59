"""What a profile puts into the paper: its folder of figures, tables and values, and what they say of its set-up."""

import re
from collections.abc import Iterable
from pathlib import Path

import pandas as pd
from IPython.display import display
from matplotlib.figure import Figure

from ..analysis import series
from ..record import cli, paths, provenance
from ..record.params import name_of
from ..record.schema import Params
from . import figures, formatting, tables
from .formatting import bracket_of, interval_of, number_of, pair_of

Results = Iterable[tuple[str, int, int, dict]]


def cited() -> set[str]:
    r"""Keys of the values that the paper's text names: \\val{key}, \\ifval{key}, and val@key of \\ifcsstring."""
    paper = paths.ROOT / "paper"
    text = "".join(file.read_text(encoding="utf-8") for file in [paper / "main.tex", *paper.glob("sections/*.tex")])
    without_comments = re.sub(r"(?<!\\)%.*", "", text)
    return {key for pair in re.findall(r"val\{([^{}#]+)\}|val@([\w.-]+)", without_comments) for key in pair if key}


class Output:
    """The only writer of `paper/generated/<profile or variant>`; `written` lists the names of what it wrote."""

    def __init__(self, params: Params):
        self.folder: Path = paths.generated_folder(name_of(params))
        self.written: list[str] = []

    def _path(self, *parts: str) -> Path:
        self.written.append("/".join(parts))
        return self.folder.joinpath(*parts)

    def figure(self, name: str, figure: Figure) -> None:
        """Writes figures/<name>.pdf, and in a notebook shows the figure, wherever in its cell the call stands."""
        figures.save(figure, self._path("figures", f"{name}.pdf"))
        if cli.notebook():
            display(figure)

    def picture(self, name: str, figure: Figure) -> None:
        """Writes <name>.svg, for pages that show no PDF, such as the README."""
        figures.save(figure, self._path(f"{name}.svg"))

    def table(self, name: str, frame: pd.DataFrame) -> None:
        """Writes tables/<name>.tex."""
        tables.write_table(frame, self._path("tables", f"{name}.tex"))

    def csv(self, name: str, frame: pd.DataFrame) -> None:
        """Writes metrics/<name>."""
        provenance.write_text(self._path("metrics", name), frame.to_csv(index=False))

    def values(self, values: dict[str, str], name: str = "numbers") -> None:
        """Writes those values that the paper cites to <name>.tex."""
        keys = cited()
        chosen = {key: text for key, text in values.items() if key in keys}
        tables.write_values(chosen, self._path(f"{name}.tex"))


def _parameter(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, list):
        return ", ".join(str(item) for item in value)
    if isinstance(value, float):
        return f"{value:g}"
    return str(value)


def design(params: Params) -> pd.DataFrame:
    """Every parameter of the profile with its value, in two columns of pairs; paths of the user's, and what the records
    say nothing of, are left out."""
    values = params.model_dump(exclude={"data_path", "held_out_path"} | series.unrecorded(params))
    pairs = [(name.replace("_", " "), _parameter(value)) for name, value in values.items()]
    half = -(-len(pairs) // 2)
    pairs += [("", "")] * (2 * half - len(pairs))
    rows = [[*pairs[i], *pairs[half + i]] for i in range(half)]
    return pd.DataFrame(rows, columns=["Parameter", "Value", "Parameter ", "Value "])


def spectrum_baseline(spectra: dict[int, dict]) -> pd.DataFrame:
    """Spectra of the base models (`report.base_spectra`), a column a seed: estimates with their errors, and brackets.
    All are of the batch but those that say so, which older records lack."""

    def expected(result: dict) -> dict[str, str]:
        if "population_bulk_sigma" not in result:
            return {}
        return {
            r"$\lambda_{\max}$ of the expected loss, bracket": bracket_of(result, "lambda_max_bracket"),
            r"\quad 95\,\% interval": bracket_of(result, "lambda_max_interval"),
            r"$\sigma_{\mathrm{bulk}}$ of the expected loss": interval_of(result, "population_bulk_sigma"),
            r"$\log(\lambda_{\max}/\sigma_{\mathrm{bulk}})$ of the expected loss, bracket": bracket_of(
                result, "population_log_ratio_bracket"
            ),
            "effective rank of the expected loss": interval_of(result, "population_effective_rank"),
        }

    def cells(result: dict) -> dict[str, str]:
        return {
            r"$\lambda_{\max}$ $\pm$ residual": pair_of(result, "lambda_max", "residual"),
            r"$\lambda_{\min}$ $\pm$ residual": pair_of(result, "lambda_min", "residual"),
            r"$\mathrm{tr}(H)/n$ $\pm$ s.e.": pair_of(result, "mean_eigenvalue", "standard_error"),
            r"$\sigma_{\mathrm{bulk}}$ $\pm$ s.e.": pair_of(result, "bulk_sigma", "standard_error"),
            r"\quad s.e.\ over probes alone": number_of(result["bulk_sigma_probe_error"]),
            r"$\log(\lambda_{\max}/\sigma_{\mathrm{bulk}})$ $\pm$ s.e.": pair_of(
                result, "log_spectral_ratio", "standard_error"
            ),
            r"effective rank $(\mathrm{tr} H)^2/\mathrm{tr} H^2$ $\pm$ s.e.": pair_of(
                result, "effective_rank", "standard_error"
            ),
            r"spectral entropy in nats $\pm$ s.e.\ over probes alone": pair_of(
                result, "spectral_entropy", "standard_error"
            ),
            "number of outliers, bracket": bracket_of(result, "outlier_count_bracket"),
            r"outlier separation, in $\sigma_{\mathrm{bulk}}$": number_of(result["outlier_separation"]),
            "share of negative eigenvalues, bracket": bracket_of(result, "negative_mass_bracket"),
            "IQR, bracket": bracket_of(result, "iqr_bracket"),
            "IQR, published estimator": number_of(result["published_iqr"]),
            r"$\lambda/$IQR, published estimator": number_of(result["exact_ratio"]),
            r"\quad its $\lambda$, of largest $|\lambda|$": number_of(result["exact_lambda"]),
            r"\quad the same by power iteration": number_of(result["published_lambda_max"]),
            **expected(result),
        }

    columns = {f"seed {seed}": cells(result) for seed, result in spectra.items()}
    rows = [
        [tables.Raw(quantity), *(tables.Number(column[quantity]) for column in columns.values())]
        for quantity in next(iter(columns.values()))
    ]
    return tables.frame_of(rows, ["Quantity", *columns])


def context(params: Params, training: Results) -> dict[str, str]:
    """Values of the set-up: profile, commit, versions, model size, and every parameter."""
    git = provenance.git_state()
    parameters = next(iter(training))[3]["parameters"]
    values = params.model_dump(exclude={"data_path", "held_out_path"})
    return {
        "profile": formatting.escape(name_of(params)),
        "commit": git["commit"][:10] + ("+" if git["dirty"] else ""),
        "model": formatting.escape(params.model),
        "parameters": f"{parameters / 1e6:.2f} million" if parameters >= 1e5 else f"{parameters / 1e3:.0f} thousand",
        "conditions": formatting.escape(", ".join(params.conditions)),
        **{f"version.{name}": formatting.escape(version) for name, version in provenance.versions().items()},
        **{f"param.{name}": formatting.escape(_parameter(value)) for name, value in values.items()},
    }
