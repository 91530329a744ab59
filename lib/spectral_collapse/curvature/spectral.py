"""Spectral signatures of a language model's loss, within a budget of memory."""

import hashlib
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from transformers import PreTrainedModel

from .basis import Basis
from .krylov import at_least, joint_ritz, probe_runs
from .memory import available_memory, plan
from .operators import HessianOperator, operator_class
from .parts import parameter_blocks
from .quadrature import Quadrature
from .signature import ONE_PROBE, Nodes, Signature, signature_of_runs


def influences_of_blocks(operator: HessianOperator, run: Quadrature, basis: Basis) -> dict[str, np.ndarray]:
    """Influence of every block on each moment, (blocks,): derivatives of the estimates in the blocks' weights.

    With H = Σ_b H_b / B it is uᵀH_b u for λ_max, u its Ritz vector (Hellmann–Feynman). For the moments of the bulk it
    is vᵀH_b v and 2 (Hv)ᵀH_b v, v the probe with the outliers projected out; for those of the outliers the same with
    v = Σ ± u_i, signs as in the probe, since the derivative of Σ λ_i² is 2 Σ λ_i u_iᵀH_b u_i and the pairs i ≠ j
    average to zero. Only squared deviations from the mean over b are used, so constants do not matter.
    Source: Efron 1982, ch. 6 (infinitesimal jackknife).
    """
    n = operator.n
    order = np.argsort(-np.abs(run.nodes))
    count = Nodes.of(run, n).outliers(n)
    S, out = run.vectors, order[:count]
    tridiagonal = run.extended()[:-1]
    outlying = S[:, out] @ np.sign(S[0, out])
    bulk = (np.eye(len(S))[0] - S[:, out] @ S[0, out]) * math.sqrt(n)
    right, left = [], []
    for coefficients in (outlying, bulk):
        right.append(basis.combine(coefficients))
        product = basis.combine(tridiagonal @ coefficients)  # H Q c = Q T c + β_k c_k q_{k+1}
        product.add_(basis.next, alpha=run.betas[-1] * coefficients[-1])
        left.append([right[-1], product])
    top = basis.combine(S[:, -1])
    forms = operator.block_forms([*left, [top]], [*right, top]).T
    rest = n - count
    return {
        "mean_eigenvalue": (forms[0] + forms[2]) / n,
        "second": 2 * (forms[1] + forms[3]) / n,
        "bulk_center": forms[2] / rest,
        "bulk_second": 2 * forms[3] / rest,
        "lambda_max": forms[4],
    }


def _hash(probes: list[dict]) -> str:
    return hashlib.sha256(json.dumps(probes).encode()).hexdigest()


def _finished_probes(state: Path, identity: str) -> list[dict]:
    """Finished probes of the same measurement in a state file; none if the file is missing, damaged or another's."""
    try:
        content = json.loads(state.read_text(encoding="utf-8"))
        intact = content["sha256"] == _hash(content["probes"])
        return content["probes"] if intact and content["identity"] == identity else []
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _keep_probes(state: Path, identity: str, probes: list[dict]) -> None:
    """Replaces the state file atomically."""
    state.parent.mkdir(parents=True, exist_ok=True)
    temporary = state.with_name(f".{state.name}.{os.getpid()}")
    temporary.write_text(json.dumps({"identity": identity, "probes": probes, "sha256": _hash(probes)}))
    os.replace(temporary, state)


def spectral_signature(
    model: PreTrainedModel,
    batch: torch.Tensor,
    *,
    steps: int = 20,
    probes: int = 2,
    later_steps: int | None = None,
    seed: int = 0,
    kind: Literal["hessian", "gauss_newton"] = "hessian",
    parameters: list[str] | None = None,
    memory_budget: float | None = None,
    batch_errors: bool = True,
    state: Path | None = None,
    identity: str = "",
) -> Signature:
    """Signature of the mean loss on blocks of token ids (B, T): `probes` Lanczos runs of `steps` products.

    later_steps: steps of the probes after the first, the same if None. Both moments are exact after one step, so the
    first probe alone may continue for the eigenvalues; then only outliers found by all probes leave the bulk, and
    brackets, entropy and densities are as coarse as the short probes. parameters: names to differentiate in (see
    `parameter_blocks`), all trainable ones if None. memory_budget: bytes on the model's device, four fifths of the free
    memory if None; `plan` decides what is kept. batch_errors: errors over blocks by the infinitesimal jackknife, for
    one gradient and ten more per probe; needs a basis and more than one block. state: a file for the results of
    finished probes, marked with `identity`; a later call with the same identity continues with the next probe, and the
    caller removes the file in the end. Without later_steps and state, and with full-precision bases, eigenvalues are
    those of `joint_ritz`.
    """
    at_least(1, steps=steps, later_steps=1 if later_steps is None else later_steps, probes=probes)
    if probes < 2:
        raise ValueError(ONE_PROBE)
    operator = operator_class(kind)(model, batch, parameters=parameters)
    together = 1 if operator.device.type == "cpu" else probes
    budgets = [int(0.8 * available_memory(device)) for device in (operator.device, "cpu")]
    if memory_budget is not None:
        budgets[0] = memory_budget
    block_bytes = operator.block_bytes()
    # All ranks must choose the same type, or they would sum products of different vectors.
    *budgets, block_bytes = operator.least(*budgets, block_bytes)
    # All bases together give sharper eigenvalues; probes read from a file have none.
    sizes = operator, min(steps, operator.n), block_bytes, together
    operator.micro_batch, storage = plan(*budgets, *sizes, held=1 if state or later_steps else probes)
    joined = state is None and later_steps is None and storage and storage.dtype == operator.torch_dtype
    bases = []
    finished = _finished_probes(state, identity) if state else []
    for run, basis in probe_runs(operator, steps, probes, seed, storage, len(finished), later_steps):
        influence = {}
        if batch_errors and basis and operator.blocks > 1:
            influence = {name: part.tolist() for name, part in influences_of_blocks(operator, run, basis).items()}
        finished.append({"alphas": run.alphas.tolist(), "betas": run.betas.tolist(), "influence": influence})
        if joined:
            bases.append(basis)
        if state:
            _keep_probes(state, identity, finished)
        basis = None  # frees it before the next run
    runs = [Quadrature(np.array(probe["alphas"]), np.array(probe["betas"])) for probe in finished]
    influences = [{k: np.array(v) for k, v in probe["influence"].items()} for probe in finished if probe["influence"]]
    joint = joint_ritz(list(zip(runs, bases, strict=True))) if bases else None
    kept = str(storage.dtype).removeprefix("torch.") if storage else "none"
    return signature_of_runs(runs, operator.n, influences, joint=joint, basis=kept)


def layerwise_signatures(
    model: PreTrainedModel, batch: torch.Tensor, **options: Any
) -> Iterator[tuple[str, Signature]]:
    """(part, signature) of the Hessian's diagonal block for every part of the network, in the network's order.

    options: those of `spectral_signature`.
    """
    for part, names in parameter_blocks(model).items():
        yield part, spectral_signature(model, batch, parameters=names, **options)
