"""The matrices that there are of a model's loss on a batch, and the one function that makes an operator."""

from typing import Any, Literal

from transformers import PreTrainedModel

from .fisher import EmpiricalFisherOperator
from .memory import available_memory, fitting_blocks
from .operators import GaussNewtonOperator, HessianOperator

Kind = Literal["hessian", "gauss_newton", "fisher"]
KINDS = {"hessian": HessianOperator, "gauss_newton": GaussNewtonOperator, "fisher": EmpiricalFisherOperator}


def operator_class(kind: str) -> type[HessianOperator]:
    """The operator of a kind in `KINDS`."""
    if kind not in KINDS:
        raise ValueError(f"kind {kind!r} is none of {', '.join(map(repr, KINDS))}.")
    return KINDS[kind]


def hessian_operator(
    model: PreTrainedModel,
    batch: Any,
    *,
    kind: Kind = "hessian",
    parameters: list[str] | None = None,
    memory_budget: float | None = None,
) -> HessianOperator:
    """Hessian, Gauss–Newton or empirical Fisher operator of the mean loss on a batch.

    batch: token ids (B, T), or what else `HessianOperator` takes. parameters: names to differentiate in, such as one
    entry of `parameter_blocks`; all if None. memory_budget: bytes for the graph, half of the free memory if None; if
    the graph of the batch does not fit, products take fewer blocks at a time. MemoryError if not even one block fits.
    """
    operator = operator_class(kind)(model, batch, parameters=parameters)
    budget = available_memory(operator.device) // 2 if memory_budget is None else memory_budget
    operator.micro_batch = fitting_blocks(budget, operator.block_bytes(), operator.share)
    return operator
