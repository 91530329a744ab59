"""The registry of metrics: what each is called, measured in and read from. A new metric is one entry here and the
function that computes it, of the stage's result (`value`) or in the stage itself.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from ..record.schema import split_condition


@dataclass(frozen=True)
class Metric:
    """One metric of a model.

    label: for readers; words, and mathematics between dollars, which LaTeX and matplotlib both set.
    stage: whose result holds it, hence what it costs. unit: "" for a pure number.
    collapse: to which side it moves in a collapsing model, 1 up and −1 down, where the studies or the field fixed that
    before these runs; 0 elsewhere. log: it is a logarithm, so that a share is a difference.
    value: computes it from the stage's result; None: the result has it under its name, or it is derived elsewhere.
    """

    name: str
    label: str
    description: str
    unit: str = ""
    collapse: int = 0
    log: bool = False
    value: Callable[[dict], float | None] | None = None
    stage: str = ""


_BY_STAGE = {
    "training": [
        Metric("training_loss", "Training loss", "Mean loss over the last quarter of the steps.", "nats/token"),
    ],
    "evaluation": [
        Metric("held_out_perplexity", "Perplexity (held out)", "exp of the loss on held-out real text.", collapse=1),
        Metric("log_perplexity", "Log perplexity", "Loss on held-out real text.", "nats/token", log=True),
        Metric("distinct_1", "Distinct-1", "Unique words over all words of the samples."),
        Metric("distinct_2", "Distinct-2", "Unique word pairs over all of the samples.", collapse=-1),
        Metric("distinct_3", "Distinct-3", "Unique word triples over all of the samples."),
        Metric("distinct_4", "Distinct-4", "Unique word 4-grams over all of the samples."),
        Metric("repetition_4", "Repetition-4", "Repeated share of a sample's word 4-grams, mean.", collapse=1),
        Metric("type_token_ratio", "Type-token ratio", "Distinct over all words, mean over samples."),
        Metric("ngram_entropy_2", "Entropy of word pairs", "Entropy of the samples' word pairs.", "nats"),
        Metric("self_bleu", "Self-BLEU", "BLEU of a sample against all others, mean; high is uniform."),
        Metric("rare_token_coverage", "Rare-token coverage", "Share of real text's rare tokens in samples."),
        Metric("tail_mass_ratio", "Tail mass ratio", "Mass of rare fillers over their true mass."),
        Metric("tail_coverage", "Tail coverage", "Share of storyworld's rare fillers seen.", collapse=-1),
        Metric("slot_kl", "Slot KL divergence", "KL(true, sampled) of slot fillers, mean.", "nats"),
        Metric("slot_entropy", "Slot entropy", "Entropy of sampled slot fillers, mean over slots.", "nats"),
    ],
    "continuations": [
        Metric("bleu", "BLEU", "Corpus BLEU of continuations against the true ones."),
        Metric("rouge_l", "ROUGE-L", "ROUGE-L of continuations against the true ones."),
    ],
    "anchors": [
        Metric("predictive_entropy", "Anchor entropy", "Entropy of the next token at fixed anchors.", "nats"),
        Metric("representation_drift", "Representation drift", "Relative change of last states, a generation."),
    ],
    "curvature": [
        Metric("lambda_max", r"$\lambda_{\max}$", "Largest Hessian eigenvalue of the batch.", "nats", collapse=-1),
        Metric("lambda_min", r"$\lambda_{\min}$", "Least Hessian eigenvalue of the batch.", "nats"),
        Metric("bulk_sigma", r"$\sigma_{\mathrm{bulk}}$", "Spread of the bulk, without outliers.", "nats", collapse=1),
        Metric(
            "log_spectral_ratio", r"$\log(\lambda_{\max}/\sigma_{\mathrm{bulk}})$", "Converged log ratio.",
            collapse=-1, log=True,
        ),
        Metric("spectral_variance", "Spectral variance", "Variance of the spectrum.", "nats²"),
        Metric("effective_rank", "Effective rank", "(tr H)²/tr H² of the batch."),
        Metric("published_iqr", "IQR, published", "Interpolated IQR of one probe's nodes.", "nats"),
        Metric("held_out_lambda_max", r"$\lambda_{\max}$, held out", "Lower bound for the expected loss.", "nats"),
        Metric("held_out_lambda_min", r"$\lambda_{\min}$, held out", "Upper bound for the expected loss.", "nats"),
        Metric("population_bulk_sigma", r"Population $\sigma_{\mathrm{bulk}}$", "σ_bulk of the expected loss.", "nats"),
        Metric("population_log_ratio", "Population log ratio", "Log spectral ratio of the expected loss.", log=True),
        Metric(
            "population_spectral_variance", "Population spectral variance", "Spectral variance of the expected loss.",
            "nats²",
        ),
        Metric("population_effective_rank", "Population effective rank", "(tr H)²/tr H² of the expected loss."),
        Metric(
            "log_published_ratio", r"$\log(|\lambda|/\mathrm{IQR})$, published",
            "Log of the exact eigenvalue over the published IQR.", collapse=-1, log=True,
        ),
    ],
    "sigma": [
        Metric("hashed_ngram_hhi", "Hashed n-gram HHI", "Concentration of the responses' triples.", collapse=1),
        Metric("response_distinct_2", "Distinct-2, responses", "Unique word pairs over all of the responses."),
        Metric("track_two_drift", "Track II drift", "Change of Track II from generation 0.", "nats", collapse=-1),
        Metric("logdet_drift", r"$\log\det\Sigma$ drift, corrected", "Change of log det Σ, corrected.", "nats"),
        Metric("track_one_sharp_drift", "Track I drift, sharp", "Change of the water-filling bound.", "nats"),
        Metric("track_one_drift", "Track I drift", "Change of Track I from generation 0.", "nats"),
    ],
    "coherence": [
        Metric("coherence", "Coherence", "Cosine of consecutive sentences' embeddings, mean."),
        Metric("prompt_similarity", "Prompt similarity", "Cosine of responses and prompts, mean."),
        Metric("mauve", "MAUVE", "MAUVE of continuations against held-out text."),
    ],
    "estimators": [
        Metric("spectral_sigma", r"$\sigma$ of the spectrum", "Spread of the whole spectrum.", "nats"),
        Metric("published_iqr_pooled", "IQR, published, pooled", "Of four probes' nodes.", "nats"),
    ],
    "mechanism": [
        Metric("real_gradient_norm", "Gradient norm, real text", "Norm of the gradient on real text."),
        Metric("own_gradient_norm", "Gradient norm, own text", "Norm of the gradient on the model's text."),
        Metric("gradient_signal", r"Gradient signal $|G|^2/\mathrm{tr}\,\Sigma$", "Of the mean over blocks."),
        Metric("real_own_cosine", "Gradient cosine, real to own", "Of gradients on real and on own text."),
        Metric("gradient_cosine_start", "Gradient cosine, to generation 0", "Of gradients on real text."),
        Metric("gradient_cosine_before", "Gradient cosine, to the one before", "Of gradients on real text."),
        Metric("relative_drift_start", "Relative drift, from generation 0", "Of the weights, |Δθ|/|θ|."),
        Metric("relative_drift_before", "Relative drift, from the one before", "Of the weights, |Δθ|/|θ|."),
        Metric("drift_aligned", "Drift in leading eigenspace", "Share of |Δθ|² along leading eigenvectors."),
        Metric("eigenspace_overlap", "Overlap of leading eigenspaces", "With generation 0's, 0 to 1."),
        Metric("activation_rank", "Activation rank, participation", "Participation ratio of last states."),
        Metric("activation_entropy_rank", "Activation rank, entropy", "exp of the spectrum's entropy."),
        Metric("anisotropy", "Anisotropy", "Mean cosine of two last states."),
        Metric("cka_start", "CKA to generation 0", "Centred kernel alignment of last states."),
        Metric("next_token_entropy", "Next-token entropy", "Of the predictions on real text.", "nats"),
        Metric("calibration_error", "Calibration error", "Confidence less accuracy, in bins of equal mass."),
        Metric("rare_mass_ratio", "Mass on rare tokens, relative", "Predicted over true share of them."),
    ],
}  # fmt: skip
METRICS = {metric.name: replace(metric, stage=stage) for stage, own in _BY_STAGE.items() for metric in own}

# Stages whose results the table of the runs is made of.
STAGES = ("training", "evaluation", "continuations", "anchors", "curvature", "sigma", "coherence")
# What a warning should precede.
OUTCOMES = ("held_out_perplexity", "training_loss")
COLLAPSE = {metric.name: metric.collapse for metric in METRICS.values() if metric.collapse}


def label(name: str) -> str:
    """A metric's name for readers; of an unknown one its own, with spaces for underscores."""
    return METRICS[name].label if name in METRICS else name.replace("_", " ")


def condition_label(condition: str) -> str:
    """A condition's name for readers.

    >>> condition_label("recursive_carry"), condition_label("fresh")
    ('recursive, carried', 'fresh')
    """
    source, weights = split_condition(condition, "")
    return source + {"carry": ", carried", "restart": ", restarted"}.get(weights, "")


def is_logarithm(name: str) -> bool:
    """Whether the metric is a logarithm, so that a share of it is a difference."""
    return name in METRICS and METRICS[name].log


def columns(stage: str, result: dict) -> dict[str, float | None]:
    """The stage's metrics that a result of it has, or that can be computed from it."""
    own = [metric for metric in METRICS.values() if metric.stage == stage]
    return {
        metric.name: metric.value(result) if metric.value else result[metric.name]
        for metric in own
        if metric.value or metric.name in result
    }
