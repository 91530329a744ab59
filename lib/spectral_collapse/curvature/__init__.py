"""Curvature of a language model's loss: Hessian products, Lanczos quadrature, spectral signatures with their errors.

    from spectral_collapse.curvature import hessian_operator, lanczos, spectral_density, spectral_signature

`kinds`: which matrices there are; `operators`: products with the Hessian and the Gauss–Newton matrix; `fisher`: with
the empirical Fisher matrix; `model`: which models can be measured; `head`: the output head in closed form; `parts`:
parameters by part of the network. `krylov`: the Lanczos iteration on a `basis`, and its `quadrature`; `memory`: what
fits; `trace`: of any operator. `signature`: quantities and errors from Lanczos runs; `spectral`: the same of a model;
`population`: of the expected loss instead of the batch's; `published`: the published estimator.
"""

from .fisher import EmpiricalFisherOperator
from .kinds import hessian_operator
from .krylov import joint_ritz, lanczos, spectral_density
from .operators import GaussNewtonOperator, HessianOperator, mean_loss
from .parts import parameter_blocks
from .population import PopulationSignature, population_of_operators, population_signature
from .published import (
    PowerIteration,
    PublishedSignature,
    interpolated_iqr,
    largest_eigenvalue,
    power_iteration,
    published_ratio,
    published_signature,
)
from .quadrature import Quadrature, cumulated_bounds, quantile_bracket, smoothed_density
from .signature import Nodes, Signature, SpectralEstimate, as_result, signature_of_runs
from .spectral import layerwise_signatures, spectral_signature
from .trace import hutch_plus_plus, hutchinson
