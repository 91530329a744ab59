"""Curvature as one process or several find it; `torchrun tests/helpers/ranks.py FOLDER` writes it for every rank."""

import json
import sys
from pathlib import Path

import torch
from spectra import frozen_blocks, tiny, vectors
from spectral_collapse import curvature
from spectral_collapse.curvature.kinds import operator_class
from spectral_collapse.curvature.memory import WORKING_VECTORS
from spectral_collapse.curvature.operators import HessianOperator

# An uneven number of blocks for two ranks, and fewer than ranks.
CASES = (("hessian", 5), ("hessian", 1), ("gauss_newton", 5))
STEPS = 8


def half_budget(model, tokens: torch.Tensor) -> int:
    """Bytes in which a float64 basis does not fit beside one block's graph, and a float16 one does."""
    operator = HessianOperator(model, tokens)
    vectors_bytes = WORKING_VECTORS * operator.n * 8
    return vectors_bytes + operator.block_bytes() + 2 * STEPS * operator.n


def measured(kind: str, blocks: int, full_budget: bool = False) -> dict:
    """Products, forms and signatures, the last in a small budget; with `full_budget` this rank has a large one."""
    model, tokens = tiny("gpt2"), frozen_blocks(blocks)
    found = {}
    for micro_batch in (None, 2):
        operator = operator_class(kind)(model, tokens, micro_batch=micro_batch)
        v = vectors(operator.n, 3)
        found |= {
            f"product {micro_batch}": operator.matvec(v[0]).tolist(),
            f"batched {micro_batch}": operator._batched(v).tolist(),
            f"forms {micro_batch}": operator.block_forms([v[1:], v[:1]], [v[0], v[1]]).tolist(),
        }
    for name, budget in (("full", 10**9), ("half", half_budget(model, tokens))):
        budget = 10**9 if full_budget else budget
        signature = curvature.spectral_signature(model, tokens, steps=STEPS, probes=2, kind=kind, memory_budget=budget)
        found[name] = curvature.as_result(signature)
    found["published"] = curvature.as_result(curvature.published_signature(model, tokens, steps=STEPS))
    return found


if __name__ == "__main__":
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    results = {f"{kind} {blocks}": measured(kind, blocks, full_budget=rank == 0) for kind, blocks in CASES}
    Path(sys.argv[1], f"rank_{rank}.json").write_text(json.dumps(results))
    torch.distributed.destroy_process_group()
