"""The mechanism: three stages of a generation, and all of a profile's runs through them."""

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from safetensors.torch import load_file

from .. import curvature
from ..estimate import stable_seed
from ..machine import processes
from ..mechanism import activations, drift, eigenvectors, gradients, landscape, outputs, vectors
from ..record import provenance
from ..record.params import BASELINE
from ..record.schema import Params
from ..text import metrics as text_metrics
from . import loop, measure
from .runs import Run, View, stage

EXTENT = 0.5  # of the plane, in lengths of generation 0's filters: about where the loss has doubled
LINE = tuple(round(-0.25 + 0.125 * step, 3) for step in range(13))  # places t along a line, 0 and 1 among them


def _before(generation: int) -> int:
    return max(0, generation - 1)


def _own_blocks(run: View, generation: int) -> torch.Tensor:
    """Blocks that the generation was trained on. For generation 0, whose sequences have another length, real blocks
    that it has not seen: its cosine with the held-out gradient is then that of two batches of real text."""
    blocks = loop.blocks(run, generation) if generation else run.real.slice(run.seed, 0)
    return blocks[: run.params.mechanism_blocks]


def _rare(run: View) -> torch.Tensor:
    """The rare token types of the contexts and of the real text that generation 0 was trained on."""
    text = [run.real.baseline(run.seed).flatten(), run.real.slice(run.seed, 0).flatten()]
    return outputs.rare_tokens(torch.cat(text), len(run.real.tokenizer))


@stage()
def mechanism(run: View, generation: int) -> dict:
    """Gradients, drift, activations and outputs of a generation on frozen real text, compared with earlier generations.

    By part of the network: norms of the gradient on real blocks and on the generation's own, their cosine, cosines of
    the real gradient with that of generation 0 and of the generation before, and drifts from these two. By layer:
    ranks, anisotropy and CKA to generation 0. Generation 0 is compared with itself.
    """
    size, real = run.params.batch_size, run.real.held_out[: run.params.mechanism_blocks]
    earlier: dict[int, tuple[vectors.Vector, vectors.Vector]] = {}
    for number in sorted({0, _before(generation)}):
        model = loop.load(run, number)
        earlier[number] = vectors.weights_of(model), gradients.gradient(model, real, size)
        if number == 0:
            first_states = activations.activations(model, real, size)
    model = loop.load(run, generation)
    weights, gradient = vectors.weights_of(model), gradients.gradient(model, real, size)
    own = gradients.gradient(model, _own_blocks(run, generation), size)
    noise = gradients.noise_scale(*gradients.block_products(model, real, gradient))
    (start_weights, start_gradient), (before_weights, before_gradient) = earlier[0], earlier[_before(generation)]

    parts = {**curvature.parameter_blocks(model), "all": list(weights)}
    from_start = drift.drift(start_weights, weights, parts)
    from_before = drift.drift(before_weights, weights, parts)
    cosines = {
        "gradient_cosine_start": gradients.compared(gradient, start_gradient, parts),
        "gradient_cosine_before": gradients.compared(gradient, before_gradient, parts),
        "real_own_cosine": gradients.compared(gradient, own, parts),
    }
    by_part = {
        part: {
            "real_gradient_norm": vectors.norm(gradient, names),
            "own_gradient_norm": vectors.norm(own, names),
            **{name: found[part] for name, found in cosines.items()},
            "drift_start": from_start[part].absolute,
            "relative_drift_start": from_start[part].relative,
            "drift_before": from_before[part].absolute,
            "relative_drift_before": from_before[part].relative,
        }
        for part, names in parts.items()
    }
    by_layer = []
    for states, first in zip(activations.activations(model, real, size), first_states, strict=True):
        ratio, entropy = activations.effective_ranks(states)
        found = {"activation_rank": ratio, "activation_entropy_rank": entropy}
        found |= {"anisotropy": activations.anisotropy(states), "cka_start": activations.debiased_cka(states, first)}
        by_layer.append(found)
    predicted = outputs.predictions(model, run.real.held_out, _rare(run), size)
    return {
        "parts": by_part,
        "layers": by_layer,
        "noise_scale_blocks": noise.value,
        "noise_scale_blocks_standard_error": noise.standard_error,
        "gradient_signal": noise.squared_norm / noise.trace,
        "calibration_error": outputs.calibration_error(predicted.confidence, predicted.correct),
        **text_metrics.with_intervals(outputs.output_metrics(predicted)),
    }


def _unit(kept: torch.Tensor) -> torch.Tensor:
    """Rows (m, n) that were stored as float16, in float32 and of length 1."""
    rows = kept.float()
    return rows / torch.linalg.vector_norm(rows, dim=1, keepdim=True, dtype=torch.float64).float()


def _read_vectors(run: View, generation: int) -> torch.Tensor:
    """Leading Ritz vectors (m, n) of a generation."""
    return _unit(load_file(eigenpairs.artefact(run, generation))["vectors"])


@stage(file="eigenvectors.safetensors")
def eigenpairs(run: View, generation: int) -> dict:
    """Leading Hessian eigenpairs on the blocks of the stage `curvature`, squared overlaps with the eigenvectors of
    generation 0 and of the generation before, and the share of the drift from generation 0 that lies along the
    `eigenvectors` leading ones of generation 0.

    Twice as many pairs as are followed, so that one that falls in rank is found again. The file holds the vectors as
    float16, scaled by √n.
    """
    params = run.params
    start_weights = vectors.weights_of(loop.load(run, 0))
    model = loop.load(run, generation)
    moved = vectors.flat(vectors.minus(vectors.weights_of(model), start_weights))
    operator = curvature.hessian_operator(
        model, run.real.held_out[: params.curvature_blocks], memory_budget=int(params.curvature_memory_gb * 2**30)
    )
    steps, count = params.lanczos_steps + 2 * params.eigenvectors, 2 * params.eigenvectors
    # The same start of Lanczos for all generations and conditions of a seed.
    pairs = eigenvectors.ritz_pairs(operator, steps, count, stable_seed(run.seed, "eigenvectors"))
    kept = (pairs.vectors * math.sqrt(operator.n)).to(torch.float16).cpu()
    digest = loop.save(run, generation, "eigenvectors.safetensors", {"vectors": kept})
    here = _unit(kept)
    before, start = (_read_vectors(run, number) if generation else here for number in (_before(generation), 0))
    aligned = drift.alignment(moved.cpu(), start[: params.eigenvectors])
    from_before = eigenvectors.squared_overlaps(before, here)
    return {
        "eigenvectors_sha256": digest,
        "values": pairs.values,
        "residuals": pairs.residuals,
        "from_before": np.round(from_before, 6),
        "from_start": np.round(eigenvectors.squared_overlaps(start, here), 6),
        "sunk": eigenvectors.merged_into_bulk(operator, before, from_before, pairs.values),
        "drift_aligned": aligned.share,
        "drift_aligned_by_chance": aligned.by_chance,
    }


@stage(name="landscape")
def slices(run: View, generation: int) -> dict:
    """Mean loss on the blocks of the stage `curvature`, in a plane through the generation, and along the straight lines
    from generation 0 and from the generation before (t = 0) to it (t = 1).

    Both directions of the plane are filter-normalised by the weights of generation 0: the same vectors for all
    generations and conditions of a seed.
    """
    blocks = run.real.held_out[: run.params.curvature_blocks]
    ends = {"start": 0, "before": _before(generation)}
    ends = {since: vectors.weights_of(loop.load(run, number)) for since, number in ends.items()}
    directions = [landscape.filter_normalised(ends["start"], run.seed, "landscape", axis) for axis in (0, 1)]
    model = loop.load(run, generation)
    centre, loss = vectors.weights_of(model), landscape.loss_of(model, blocks)
    offsets = np.linspace(-EXTENT, EXTENT, run.params.landscape_points).round(6).tolist()
    lines = {since: landscape.line(loss, end, centre, LINE) for since, end in ends.items()} if generation else {}
    return {
        "offsets": offsets,
        "plane": landscape.plane(loss, centre, *directions, offsets),
        "places": list(LINE),
        "lines": lines,
        "barriers": {since: landscape.barrier(LINE, losses) for since, losses in lines.items()},
    }


# ---- all runs


STAGES = {
    "training": loop.training,
    "evaluation": measure.evaluation,
    "mechanism": mechanism,
    "eigenpairs": eigenpairs,
    "landscape": slices,
}


def _measured(run: Run, generation: int) -> dict[str, dict]:
    with provenance.locked(run.base.folder, run.say):
        for name in ("training", "evaluation", "mechanism", "eigenpairs"):
            STAGES[name](run, 0)
    with provenance.locked(run.owner(generation).folder, run.say):
        return {name: measured(run, generation) for name, measured in STAGES.items()}


def measured(settings: Params, say: Callable[[str], None] = print) -> Iterator[tuple[str, int, list[dict[str, dict]]]]:
    """Condition, seed, and the stages' results by generation of every run of a profile; what is missing is computed."""
    if settings.mechanism_blocks > settings.held_out_blocks:
        raise ValueError(
            f"mechanism_blocks is {settings.mechanism_blocks} and there are only {settings.held_out_blocks} "
            "held_out_blocks: lower the one or raise the other."
        )
    first = Run(settings, BASELINE, settings.seeds[0], say=say)
    cells = [(seed, condition) for seed in settings.seeds for condition in settings.conditions]
    bases = {seed: Run(settings, BASELINE, seed, real=first.real, say=say) for seed in settings.seeds}
    for seed, condition in processes.steps(cells, "mechanism, runs"):
        run = Run(settings, condition, seed, real=first.real, say=say)
        run.base = bases[seed]  # which holds generation 0 and the model in memory
        yield condition, seed, [_measured(run, generation) for generation in range(settings.generations + 1)]
