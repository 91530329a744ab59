"""SIGMA (arXiv 2601.03385): log-determinant tracks of the Gram matrix of sentence embeddings.

`gram`: Gram matrix, bounds, both tracks; `inference`: log det G with intervals; `bands`: drifts with bands and tests;
`health`: checks of the input; `scale`: streams and clusters.
"""

from .bands import (
    TRACKS,
    Budget,
    Observed,
    banded_drift,
    banded_drifts,
    bucket_drifts,
    common,
    prompt_influences,
    track_value,
)
from .gram import (
    Bounds,
    GramAccumulator,
    SingularGram,
    cholesky_logdet,
    deterministic_bounds,
    drift,
    ols_slope,
    overestimation_ratio,
    regularized_logdet,
    track_agreement,
    track_one,
    track_two,
    water_filling,
)
from .health import AIM, LiveSpace, ObservedSet, health_checks, live_space
from .inference import (
    grouped_logdet_estimate,
    least_rows,
    leave_groups_out,
    leverages,
    logdet_estimate,
    mahalanobis_variance,
    required_sample_size,
    shrunk_logdet,
    wishart_moments,
)
from .scale import distributed_gram, read_embeddings, stream
