"""Each stage of a generation beside its floor: the matrix products that it computes, at the rate of this machine."""

import contextlib
import functools
import os
import tempfile
import time
from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
from spectral_collapse.experiment import encoded, loop, measure, runs
from spectral_collapse.record import params, paths, provenance
from torch.utils.flop_counter import FlopCounterMode

PROFILE = "default"
STAGES = {
    **{"text": loop.text, "training": loop.training, "evaluation": measure.evaluation, "anchors": measure.anchors},
    **{"continuations": measure.continuations, "responses": measure.responses, "curvature": measure.curvature},
    **{"embeddings": encoded.embeddings, "sigma": encoded.sigma, "coherence": encoded.coherence},
}
DOCUMENT = paths.ROOT / "docs" / "performance.md"
HEADING = "| stage | CPU seconds | GFLOP | floor, s | seconds / floor |"


def rate(size: int = 1024) -> float:
    """FLOP/s of one thread in float32 products of square matrices: the best of ten."""
    left, right = torch.randn(2, size, size)
    seconds = []
    for _ in range(10):
        start = time.process_time()
        left @ right
        seconds.append(time.process_time() - start)
    return 2 * size**3 / min(seconds)


def measured(profile: str = PROFILE) -> pd.DataFrame:
    """One row a stage of generation 1 of `recursive`: CPU seconds on one thread, and the FLOP of its matrix products,
    counted in a second computation of the same.

    The base model takes a sixteenth of its training, which changes no cost of a generation.
    """
    settings = params.load(profile, perplexity_bound=1e6)
    settings = settings.model_copy(update={"baseline_blocks": settings.baseline_blocks // 16})
    found: dict[str, dict[str, float]] = {}

    def pass_over(column: str, around: Callable[[], object], value: Callable[[object], float]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            os.environ["SPECTRAL_COLLAPSE_RESULTS"] = folder
            run = runs.Run(settings, "recursive", 1, say=lambda _: None)
            for stage in STAGES.values():  # of generation 0, which the next one needs
                if stage is not loop.text:
                    stage(run, 0)
            for name, stage in STAGES.items():
                with around() as state:
                    start = time.process_time()
                    stage(run, 1)
                    elapsed = time.process_time() - start
                found.setdefault(name, {})[column] = value(state) if state is not None else elapsed

    pass_over("seconds", contextlib.nullcontext, float)
    counter = functools.partial(FlopCounterMode, display=False)
    pass_over("flop", counter, lambda mode: float(mode.get_total_flops()))
    return pd.DataFrame(found).T


def main() -> dict[str, float]:
    """Prints the table, puts it into docs/performance.md, and returns seconds by stage and the machine's rate."""
    before = os.environ.get("SPECTRAL_COLLAPSE_RESULTS")
    torch.set_num_threads(1)
    speed = rate()
    table = measured()
    if before is None:
        del os.environ["SPECTRAL_COLLAPSE_RESULTS"]
    else:
        os.environ["SPECTRAL_COLLAPSE_RESULTS"] = before
    floor = table["flop"] / speed
    lines = [HEADING, "|---|---|---|---|---|"]
    for name, row in table.iterrows():
        gap = row["seconds"] / floor[name] if floor[name] else np.nan
        lines.append(f"| {name} | {row['seconds']:.1f} | {row['flop'] / 1e9:.1f} | {floor[name]:.1f} | {gap:.1f} |")
    total = table.sum()
    lines.append(f"| all | {total['seconds']:.1f} | {total['flop'] / 1e9:.0f} | {floor.sum():.1f} | "
                 f"{total['seconds'] / floor.sum():.1f} |")  # fmt: skip
    print("\n".join(lines))
    text = DOCUMENT.read_text(encoding="utf-8")
    start, end = "<!-- stages -->", "<!-- end of stages -->"
    head, rest = text.split(start)
    note = f"One thread at {speed / 1e9:.0f} GFLOP/s in products of 1024 × 1024 matrices; profile `{PROFILE}`."
    provenance.write_text(DOCUMENT, f"{head}{start}\n{note}\n\n" + "\n".join(lines) + f"\n{end}{rest.split(end)[1]}")
    return {"stages_gflops": speed / 1e9} | {f"stage_{name}_s": row["seconds"] for name, row in table.iterrows()}
