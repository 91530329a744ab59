"""One run with all its generations, as notebooks 2 and 3 show it."""

from typing import Any, NamedTuple

import pandas as pd

from ..analysis import series
from ..experiment import loop, measure, runs
from ..record.schema import Params

TEXT = ["training_loss", "held_out_perplexity", "distinct_2", "tail_coverage", "slot_kl", "repetition_4"]
CURVATURE = ["lambda_max", "bulk_sigma", "log_spectral_ratio", "log_published_ratio"]


class Trajectory(NamedTuple):
    """A run, the results of each generation, and the table of its metrics, a row a generation."""

    run: runs.Run
    generations: list[dict[str, Any]]
    table: pd.DataFrame

    def synthetic_blocks(self) -> list[int]:
        """Blocks written by models in the training text of generations 1, 2, …"""
        return [loop.text(self.run, generation)["synthetic_blocks"] for generation in range(1, len(self.generations))]

    def spectra(self, *chosen: int) -> list[tuple[str, dict[str, Any]]]:
        """(title, curvature) of the chosen generations; −1 is the last."""
        numbers = [range(len(self.generations))[generation] for generation in chosen]
        return [(f"generation {number}", self.generations[number]["curvature"]) for number in numbers]

    def layers(self) -> list[tuple[str, dict[str, Any]]]:
        """(title, signatures of the network's parts) of the first and last generation; for the first seed only, and
        where the profile asks for them (`layerwise_spectra`)."""
        settings = self.run.params
        if not settings.layerwise_spectra or self.run.seed != settings.seeds[0]:
            return []
        return [(f"generation {number}", measure.layers(self.run, number)) for number in (0, settings.generations)]


def trajectory(settings: Params, condition: str, seed: int) -> Trajectory:
    """Runs whatever of the condition's generations is not recorded yet, and reads the rest."""
    run = runs.Run(settings, condition, seed)
    generations = [measure.generation(run, generation) for generation in range(settings.generations + 1)]
    return Trajectory(
        run, generations, series.table(settings, [condition], [seed], ("training", "evaluation", "curvature"))
    )
