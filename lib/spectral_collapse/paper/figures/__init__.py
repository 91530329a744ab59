"""Every picture of the notebooks and the paper, one module a subject. Functions return a figure."""

# ruff: noqa: F401
from .ablations import ablation, ablation_effects
from .evidence import alarms, correlations, lagged_correlations
from .mechanism import landscape, mechanism_layers, mechanism_parts, outlier_tracks
from .public_records import public_records
from .runs import doses, rescue, series, training_curves
from .spectra import batch_sizes, density, distribution, estimators, layers, published_estimator
from .style import colour, save
from .theory import detectability, recursion
from .tracks import sigma_buckets, sigma_fifty, sigma_overlay, sigma_published, sigma_tracks
from .warning import shown as shown_warnings
from .warning import warnings
