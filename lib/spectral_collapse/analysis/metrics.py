"""The registry of metrics: what each is called, measured in and read from. A new metric is one entry here and the
function that computes it, of the stage's result (`value`) or in the stage itself.
"""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """One metric of a model.

    label: for readers; words, and mathematics between dollars, which LaTeX and matplotlib both set.
    stage: whose result holds it, hence what it costs. unit: "" for a pure number.
    collapse: to which side it moves in a collapsing model, 1 up and −1 down, where the studies or the field fixed that
    before these runs; 0 elsewhere. logarithm: it is a logarithm, so that a share is a difference.
    value: computes it from the stage's result; None: the result has it under its name, or it is derived elsewhere.
    """

    name: str
    label: str
    stage: str
    description: str
    unit: str = ""
    collapse: int = 0
    logarithm: bool = False
    value: Callable[[dict], float | None] | None = None


_ENTRIES = (
    Metric("training_loss", "Training loss", "training", "Mean loss over the last steps of training.", "nats/token"),
    Metric(
        "held_out_perplexity", "Perplexity (held out)", "evaluation", "exp of the mean loss on held-out real text.",
        collapse=1,
    ),
    Metric(
        "log_perplexity", "Log perplexity", "evaluation", "Mean loss on held-out real text.", "nats/token",
        logarithm=True,
    ),
    Metric("distinct_1", "Distinct-1", "evaluation", "Unique words over all words of the samples."),
    Metric("distinct_2", "Distinct-2", "evaluation", "Unique word pairs over all of the samples.", collapse=-1),
    Metric("distinct_3", "Distinct-3", "evaluation", "Unique word triples over all of the samples."),
    Metric("distinct_4", "Distinct-4", "evaluation", "Unique word 4-grams over all of the samples."),
    Metric(
        "repetition_4", "Repetition-4", "evaluation", "Repeated share of a sample's word 4-grams, mean over samples.",
        collapse=1,
    ),
    Metric("type_token_ratio", "Type-token ratio", "evaluation", "Distinct over all words, mean over samples."),
    Metric("ngram_entropy_2", "Entropy of word pairs", "evaluation", "Entropy of the samples' word pairs.", "nats"),
    Metric("self_bleu", "Self-BLEU", "evaluation", "BLEU of a sample against all others, mean; high is uniform."),
    Metric("rare_token_coverage", "Rare-token coverage", "evaluation", "Share of real text's rare tokens in samples."),
    Metric("tail_mass_ratio", "Tail mass ratio", "evaluation", "Mass of rare fillers over their true mass."),
    Metric("tail_coverage", "Tail coverage", "evaluation", "Share of storyworld's rare fillers seen.", collapse=-1),
    Metric("slot_kl", "Slot KL divergence", "evaluation", "KL(true, sampled) of slot fillers, mean.", "nats"),
    Metric("slot_entropy", "Slot entropy", "evaluation", "Entropy of sampled slot fillers, mean over slots.", "nats"),
    Metric("bleu", "BLEU", "continuations", "Corpus BLEU of continuations against the true ones."),
    Metric("rouge_l", "ROUGE-L", "continuations", "ROUGE-L of continuations against the true ones."),
    Metric("predictive_entropy", "Anchor entropy", "anchors", "Entropy of the next token at fixed anchors.", "nats"),
    Metric(
        "representation_drift", "Representation drift", "anchors", "Relative change of the anchors' last states.",
        "per generation",
    ),
    Metric(
        "lambda_max", r"$\lambda_{\max}$", "curvature", "Largest Hessian eigenvalue of the batch.", "nats",
        collapse=-1,
    ),
    Metric("lambda_min", r"$\lambda_{\min}$", "curvature", "Least Hessian eigenvalue of the batch.", "nats"),
    Metric(
        "bulk_sigma", r"$\sigma_{\mathrm{bulk}}$", "curvature", "Spread of the spectrum without outliers.", "nats",
        collapse=1,
    ),
    Metric(
        "log_spectral_ratio", r"$\log(\lambda_{\max}/\sigma_{\mathrm{bulk}})$", "curvature", "Converged log ratio.",
        collapse=-1, logarithm=True,
    ),
    Metric("spectral_variance", "Spectral variance", "curvature", "Variance of the spectrum.", "nats²"),
    Metric("effective_rank", "Effective rank", "curvature", "(tr H)²/tr H² of the batch."),
    Metric("published_iqr", "IQR, published", "curvature", "Interpolated IQR of one probe's nodes.", "nats"),
    Metric(
        "held_out_lambda_max", r"$\lambda_{\max}$, held out", "curvature",
        "Lower bound of the expected loss's largest eigenvalue.", "nats",
    ),
    Metric(
        "held_out_lambda_min", r"$\lambda_{\min}$, held out", "curvature",
        "Upper bound of the expected loss's least eigenvalue.", "nats",
    ),
    Metric(
        "population_bulk_sigma", r"Population $\sigma_{\mathrm{bulk}}$", "curvature",
        "Spread without outliers, of the expected loss.", "nats",
    ),
    Metric(
        "population_log_ratio", "Population log ratio", "curvature", "Log spectral ratio of the expected loss.",
    ),
    Metric(
        "population_spectral_variance", "Population spectral variance", "curvature",
        "Variance of the spectrum of the expected loss.", "nats²",
    ),
    Metric(
        "population_effective_rank", "Population effective rank", "curvature",
        "(tr H)²/tr H² of the expected loss.",
    ),
    Metric(
        "log_published_ratio", r"$\log(|\lambda|/\mathrm{IQR})$, published", "curvature",
        "Log of the published ratio, with the exact eigenvalue of largest size.", collapse=-1, logarithm=True,
    ),
    Metric(
        "hashed_ngram_hhi", "Hashed n-gram HHI", "sigma", "Concentration of hashed word triples of the responses.",
        collapse=1,
    ),
    Metric("response_distinct_2", "Distinct-2, responses", "sigma", "Unique word pairs over all of the responses."),
    Metric("track_two_drift", "Track II drift", "sigma", "Change of Track II from generation 0.", "nats", collapse=-1),
    Metric("logdet_drift", r"$\log\det\Sigma$ drift, corrected", "sigma", "Change of log det Σ, corrected.", "nats"),
    Metric("track_one_sharp_drift", "Track I drift, sharp", "sigma", "Change of the water-filling bound.", "nats"),
    Metric("track_one_drift", "Track I drift", "sigma", "Change of Track I from generation 0.", "nats"),
    Metric("coherence", "Coherence", "coherence", "Cosine of consecutive sentences' embeddings, mean."),
    Metric("prompt_similarity", "Prompt similarity", "coherence", "Cosine of responses and prompts, mean."),
    Metric("mauve", "MAUVE", "coherence", "MAUVE of continuations against held-out text."),
    # The study of the estimators.
    Metric("spectral_sigma", r"$\sigma$ of the spectrum", "estimators", "Spread of the whole spectrum.", "nats"),
    Metric(
        "published_iqr_pooled", "IQR, published, pooled", "estimators", "Interpolated IQR of four probes' nodes.",
        "nats",
    ),
    # The mechanism.
    Metric("real_gradient_norm", "Gradient norm, real text", "mechanism", "Norm of the gradient on real text."),
    Metric("own_gradient_norm", "Gradient norm, own text", "mechanism", "Norm of the gradient on the model's text."),
    Metric(
        "gradient_signal", r"Gradient signal $|G|^2/\mathrm{tr}\,\Sigma$", "mechanism",
        "Squared mean gradient over its variance between blocks.",
    ),
    Metric("real_own_cosine", "Gradient cosine, real to own", "mechanism", "Of gradients on real and on own text."),
    Metric("gradient_cosine_start", "Gradient cosine, to generation 0", "mechanism", "Of gradients on real text."),
    Metric("gradient_cosine_before", "Gradient cosine, to the one before", "mechanism", "Of gradients on real text."),
    Metric("relative_drift_start", "Relative drift, from generation 0", "mechanism", "Of the weights, |Δθ|/|θ|."),
    Metric("relative_drift_before", "Relative drift, from the one before", "mechanism", "Of the weights, |Δθ|/|θ|."),
    Metric(
        "drift_aligned", "Drift in leading eigenspace", "mechanism", "Share of |Δθ|² along leading eigenvectors.",
    ),
    Metric(
        "eigenspace_overlap", "Overlap of leading eigenspaces", "mechanism", "With generation 0's, 0 to 1.",
    ),
    Metric("activation_rank", "Activation rank, participation", "mechanism", "Participation ratio of last states."),
    Metric("activation_entropy_rank", "Activation rank, entropy", "mechanism", "exp of the spectrum's entropy."),
    Metric("anisotropy", "Anisotropy", "mechanism", "Mean cosine of two last states."),
    Metric("cka_start", "CKA to generation 0", "mechanism", "Centred kernel alignment of last states."),
    Metric("next_token_entropy", "Next-token entropy", "mechanism", "Of the predictions on real text.", "nats"),
    Metric("calibration_error", "Calibration error", "mechanism", "Confidence less accuracy, in bins of equal mass."),
    Metric("rare_mass_ratio", "Mass on rare tokens, relative", "mechanism", "Predicted over true share of them."),
)  # fmt: skip
METRICS = {metric.name: metric for metric in _ENTRIES}

# Stages whose results the table of the runs is made of.
STAGES = ("training", "evaluation", "continuations", "anchors", "curvature", "sigma", "coherence")
# What a warning should precede.
OUTCOMES = ("held_out_perplexity", "training_loss")
COLLAPSE = {metric.name: metric.collapse for metric in _ENTRIES if metric.collapse}


def label(name: str) -> str:
    """A metric's name for readers; of an unknown one its own, with spaces for underscores."""
    return METRICS[name].label if name in METRICS else name.replace("_", " ")


def is_logarithm(name: str) -> bool:
    """Whether the metric is a logarithm, so that a share of it is a difference."""
    return name in METRICS and METRICS[name].logarithm


def columns(stage: str, result: dict) -> dict[str, float | None]:
    """The stage's metrics that a result of it has, or that can be computed from it."""
    own = [metric for metric in METRICS.values() if metric.stage == stage]
    return {
        metric.name: metric.value(result) if metric.value else result[metric.name]
        for metric in own
        if metric.value or metric.name in result
    }
