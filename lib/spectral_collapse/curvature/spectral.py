"""Spectral signatures of a language model's loss, within a budget of memory."""

import hashlib
import json
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from .basis import Basis, Storage
from .kinds import Kind, operator_class
from .krylov import at_least, drive, joint_ritz, probe_of, probe_runs, recurrence
from .memory import available_memory, plan
from .operators import HessianOperator
from .parts import parameter_blocks
from .quadrature import Quadrature
from .signature import ONE_PROBE, Nodes, Signature, signature_of_runs


def influences_of_blocks(
    operator: HessianOperator, run: Quadrature, basis: Basis, later: Sequence[tuple[Quadrature, Basis]] = ()
) -> list[dict[str, np.ndarray]]:
    """Influence of every block on each moment, (blocks,), for a run and for the later ones that start without its
    outliers: derivatives of the estimates in the blocks' weights.

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
    outlying = S[:, out] @ np.sign(S[0, out])
    bulk = (np.eye(len(S))[0] - S[:, out] @ S[0, out]) * math.sqrt(n)
    chosen = [(run, basis, outlying), (run, basis, bulk)]
    chosen += [(short, start, np.eye(start.k)[0] * start.length) for short, start in later]
    right, left = [], []
    for each, vectors, coefficients in chosen:
        right.append(vectors.combine(coefficients))
        product = vectors.combine(each.extended()[:-1] @ coefficients)  # H Q c = Q T c + β_k c_k q_{k+1}
        product.add_(vectors.next, alpha=each.betas[-1] * coefficients[-1])
        left.append([right[-1], product])
    top = basis.combine(S[:, -1])
    outer, outer_square, *forms, largest = operator.block_forms([*left, [top]], [*right, top]).T
    rest = n - count
    return [
        {
            "mean_eigenvalue": (outer + inner) / n,
            "second": 2 * (outer_square + inner_square) / n,
            "bulk_center": inner / rest,
            "bulk_second": 2 * inner_square / rest,
            "lambda_max": largest,
        }
        for inner, inner_square in zip(forms[::2], forms[1::2], strict=True)
    ]


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


def _later_runs(
    operator: HessianOperator, first: Quadrature, basis: Basis, steps: int, probes: int, seed: int, storage: Storage
) -> Iterator[tuple[Quadrature, Basis, np.ndarray]]:
    """Runs of the probes after the first, without their components along the first run's outliers u, each with its
    basis and the shares (uᵀv)²/n."""
    n = operator.n
    nodes = np.argsort(-np.abs(first.nodes))[: Nodes.of(first, n).outliers(n)]
    outliers = first.vectors[:, nodes]
    for index in range(1, probes):
        probe = probe_of(operator, seed, index)
        components = outliers.T @ basis.components(probe).cpu().numpy()
        probe -= basis.combine(outliers @ components)
        run, own = drive(operator.matvec, recurrence(probe, min(steps, n), storage))
        yield run, own, components**2 / n


def spectral_signature(
    model: PreTrainedModel,
    batch: Any,
    *,
    steps: int = 20,
    probes: int = 2,
    later_steps: int | None = None,
    tolerance: float | None = None,
    seed: int = 0,
    kind: Kind = "hessian",
    parameters: list[str] | None = None,
    memory_budget: float | None = None,
    batch_errors: bool = True,
    state: Path | None = None,
    identity: str = "",
) -> Signature:
    """Signature of the mean loss on a batch: `probes` Lanczos runs of `steps` products.

    later_steps: steps of the probes after the first, the same if None. Moments are exact after one step, so the first
    probe alone may continue for the eigenvalues; later ones start without their components along its outliers. Without
    a basis, which that needs, all probes take `steps`. tolerance: ends the first run once its three leading eigenvalues
    have residuals below this share of them, `steps` at the latest; needs later_steps. parameters: names to
    differentiate in (see `parameter_blocks`), all trainable ones if None. memory_budget: bytes on the model's device,
    four fifths of the free memory if None; `plan` decides what is kept. batch_errors: errors over blocks by the
    infinitesimal jackknife, for one gradient and six more, with two more for every later probe, or as many for each
    probe of `steps`; needs a basis and more than one block. state: a file for the results of finished probes, marked
    with the options and `identity`, which stands for model and batch; a later call with the same continues with the
    next probe, or after all if the later ones depend on the first one's basis, and the caller removes the file in the
    end. Without later_steps and state, and with full-precision bases, eigenvalues are those of `joint_ritz`.
    """
    at_least(1, steps=steps, later_steps=1 if later_steps is None else later_steps, probes=probes)
    if probes < 2:
        raise ValueError(ONE_PROBE)
    if tolerance is not None and not (later_steps and 0 < tolerance < 1):
        raise ValueError(f"tolerance: a share between 0 and 1, of a run with later_steps, not {tolerance!r}.")
    operator = operator_class(kind)(model, batch, parameters=parameters)
    asked = [identity, operator.n, parameters, steps, probes, later_steps, tolerance, seed, kind, batch_errors]
    identity = json.dumps(asked)
    together = 1 if operator.device.type == "cpu" or later_steps else probes
    budgets = [int(0.8 * available_memory(device)) for device in (operator.device, "cpu")]
    if memory_budget is not None:
        budgets[0] = memory_budget
    block_bytes = operator.block_bytes()
    # All ranks must choose the same type, or they would sum products of different vectors.
    *budgets, block_bytes = operator.least(*budgets, block_bytes)
    # All bases together give sharper eigenvalues; probes read from a file have none.
    kept = min(steps, operator.n) + (probes - 1) * min(later_steps or 0, operator.n)
    sizes = operator, kept, block_bytes, together
    operator.micro_batch, storage = plan(*budgets, *sizes, held=1 if state or later_steps else probes)
    joined = state is None and later_steps is None and storage and storage.dtype == operator.torch_dtype
    influential = batch_errors and storage and operator.blocks > 1
    bases: list[Basis] = []
    finished = _finished_probes(state, identity) if state else []

    def finish(run: Quadrature, influence: dict[str, np.ndarray], shares: Sequence[float] | None = None) -> None:
        found = {"alphas": run.alphas, "betas": run.betas} | ({} if shares is None else {"shares": shares})
        probe = {name: part.tolist() for name, part in found.items()}
        finished.append(probe | {"influence": {name: part.tolist() for name, part in influence.items()}})

    if later_steps and storage and not finished:
        ((run, basis),) = probe_runs(operator, steps, 1, seed, storage, tolerance=tolerance)
        later = list(_later_runs(operator, run, basis, later_steps, probes, seed, storage))
        pairs = [(short, own) for short, own, _ in later]
        influences = influences_of_blocks(operator, run, basis, pairs) if influential else [{}] * probes
        finish(run, influences[0])
        for (short, _, shares), influence in zip(later, influences[1:], strict=True):
            finish(short, influence, shares)
        if state:
            _keep_probes(state, identity, finished)
    for run, basis in probe_runs(operator, steps, probes, seed, storage, len(finished)):
        finish(run, influences_of_blocks(operator, run, basis)[0] if influential else {})
        if joined:
            bases.append(basis)
        if state:
            _keep_probes(state, identity, finished)
        basis = None  # frees it before the next run
    runs = [Quadrature(np.array(probe["alphas"]), np.array(probe["betas"])) for probe in finished]
    shares = [np.array(probe["shares"]) for probe in finished if "shares" in probe]
    full = len(runs) - len(shares)
    influences = [{k: np.array(v) for k, v in probe["influence"].items()} for probe in finished if probe["influence"]]
    return signature_of_runs(
        runs[:full],
        operator.n,
        influences,
        later=list(zip(runs[full:], shares, strict=True)),
        joint=joint_ritz(list(zip(runs, bases, strict=True))) if bases else None,
        basis=str(storage.dtype).removeprefix("torch.") if storage else "none",
    )


def layerwise_signatures(model: PreTrainedModel, batch: Any, **options: Any) -> Iterator[tuple[str, Signature]]:
    """(part, signature) of the Hessian's diagonal block for every part of the network, in the network's order.

    options: those of `spectral_signature`.
    """
    for part, names in parameter_blocks(model).items():
        yield part, spectral_signature(model, batch, parameters=names, **options)
