"""Products with the Hessian and with the Gauss–Newton matrix of a causal language model's mean loss."""

import contextlib
import re
from collections.abc import Iterator
from typing import Literal

import numpy as np
import scipy.sparse.linalg
import torch
from torch import distributed
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedModel

from .basis import dot
from .head import HeadGradient, head_curvature, probabilities, rows_at_a_time
from .memory import available_memory, fitting_blocks

# A batch needs its saved tensors and, while a product runs, about half as much again.
WORKING_SHARE = 1.5


def mean_loss(model: PreTrainedModel, tokens: torch.Tensor) -> torch.Tensor:
    """L(θ): mean next-token cross-entropy in nats over blocks (B, T)."""
    logits = model(input_ids=tokens).logits[:, :-1]
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())


def parameter_blocks(model: PreTrainedModel) -> dict[str, list[str]]:
    """Names of the trainable parameters by part of the network: embedding, each layer's attention and MLP, head.

    A norm belongs to what reads it, the final norm to the head. A tied output matrix is the embedding's.
    """
    blocks: dict[str, list[str]] = {}
    for name, parameter in model.named_parameters():
        layer = re.search(r"\.(?:layers|h)\.(\d+)\.(.+)", name)
        if layer:
            attention = "attn" in layer[2] or layer[2].startswith(("attention.", "input_layernorm.", "ln_1."))
            part = f"layer {layer[1]} {'attention' if attention else 'mlp'}"
        else:
            part = "embedding" if re.search(r"embed|wte|wpe", name) else "head"
        if parameter.requires_grad:
            blocks.setdefault(part, []).append(name)
    return blocks


@contextlib.contextmanager
def _measured(model: PreTrainedModel) -> Iterator[None]:
    """The model as a function of its parameters alone: no dropout, every row of an embedding counts, and
    attention that can be differentiated twice (of the fused kernels none can)."""
    training = model.training
    embeddings = [m for m in model.modules() if isinstance(m, torch.nn.Embedding) and m.padding_idx is not None]
    padding = [embedding.padding_idx for embedding in embeddings]
    model.eval()
    for embedding in embeddings:
        embedding.padding_idx = None
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        for embedding, index in zip(embeddings, padding, strict=True):
            embedding.padding_idx = index
        model.train(training)


class HessianOperator(scipy.sparse.linalg.LinearOperator):
    """H = ∇²L(θ) ∈ R^{n×n} of the mean loss on frozen blocks; n parameters, tied weights counted once.

    Products by double backward. Where the graph of the gradient fits into memory it is built once and kept,
    and a product costs about two gradients, the floor of an exact one; otherwise `micro_batch` blocks at a time
    have their graphs rebuilt for every product (about three gradients) and memory does not grow with the number
    of blocks. The head's logits exist only in chunks. Dropout is off. Parameters of half precision are read into
    float32: a curvature of bfloat16 arithmetic would be that of its rounding. The model itself is not changed.

    Under an initialised `torch.distributed` every rank passes the same blocks and works on its share; products
    are summed over ranks and equal on all of them. Budgets of memory are those of one rank.

    Vectors are float tensors (n,) or numpy arrays: a `scipy.sparse.linalg.LinearOperator`, float64 for a
    model of that type and else float32. `model` must end in a linear head without bias on its last hidden state.
    Raises ValueError for blocks or models that cannot be measured. Source: Pearlmutter 1994.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokens: torch.Tensor,
        *,
        parameters: list[str] | None = None,
        micro_batch: int | None = None,
    ):
        named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        chosen = list(named) if parameters is None else parameters
        if not named or not chosen:
            raise ValueError("no parameter to differentiate in: none is trainable, or none was named.")
        if unknown := sorted(set(chosen) - set(named)):
            raise ValueError(
                f"{unknown[0]!r} is no trainable parameter of this model; the first is {next(iter(named))!r}."
            )
        double = any(p.dtype == torch.float64 for p in model.parameters())
        self.torch_dtype = torch.float64 if double else torch.float32
        self.model, self.head = model, model.get_output_embeddings()
        self.device = next(model.parameters()).device
        tokens = _checked(tokens, model).to(self.device)
        leaves = {id(p): p.detach().to(self.torch_dtype) for p in model.parameters()}
        self.leaves = [leaves[id(named[name])].requires_grad_() for name in chosen]
        self._base = {name: leaves[id(p)] for name, p in model.base_model.named_parameters(remove_duplicate=False)}
        self._weight = leaves[id(self.head.weight)]
        self.sizes = [leaf.numel() for leaf in self.leaves]
        self.n = sum(self.sizes)
        super().__init__(np.dtype(np.float64 if double else np.float32), (self.n, self.n))
        self._rows = rows_at_a_time(len(self._weight))
        self.blocks = len(tokens)
        self._predictions = tokens[:, 1:].numel()
        rank, world = 0, 1
        if distributed.is_available() and distributed.is_initialized():
            rank, world = distributed.get_rank(), distributed.get_world_size()
        self._shared = world > 1
        self._own = range(rank, self.blocks, world)
        self._tokens = tokens[rank::world]  # none where there are fewer blocks than ranks
        self._first = tokens[:1]
        self.share = -(-self.blocks // world)
        self.micro_batch = micro_batch
        self._kept: tuple | None = None
        self._require_linear_head(self._first)

    # ---- one batch: hidden states, gradient, product

    def _hidden(self, tokens: torch.Tensor) -> torch.Tensor:
        """Last hidden states of the T − 1 predicting positions, (B(T−1), d)."""
        with _measured(self.model):
            out = torch.func.functional_call(
                self.model.base_model, self._base, kwargs={"input_ids": tokens, "use_cache": False}
            )
        return out.last_hidden_state[:, :-1].flatten(0, 1).to(self.torch_dtype)

    def _require_linear_head(self, tokens: torch.Tensor) -> None:
        with torch.no_grad(), _measured(self.model):
            expected = self.model(input_ids=tokens, use_cache=False).logits[:, :-1].flatten(0, 1)
            found = self._hidden(tokens).to(self._weight.dtype) @ self._weight.T
        spread = 0.05 if expected.dtype in (torch.float16, torch.bfloat16) else 1e-3
        if not torch.allclose(found, expected.to(found.dtype), rtol=spread, atol=spread * expected.abs().max().item()):
            raise ValueError(
                f"the logits of {type(self.model).__name__} are not its last hidden state times its output "
                "embeddings (a scaled, capped or biased head): it cannot be measured here."
            )

    def _linearise(self, tokens: torch.Tensor) -> tuple:
        """The gradient of the summed loss with its graph, one tensor for each parameter."""
        hidden = self._hidden(tokens)
        by_hidden, by_weight = HeadGradient.apply(hidden, self._weight, tokens[:, 1:].flatten(), self._rows)
        if not hidden.requires_grad:  # the head alone is differentiated
            return (by_weight,)
        gradient = torch.autograd.grad(
            hidden, self.leaves, grad_outputs=by_hidden, create_graph=True, materialize_grads=True
        )
        return tuple(
            g + by_weight if leaf is self._weight else g for g, leaf in zip(gradient, self.leaves, strict=True)
        )

    def _apply(self, graph: tuple, pieces: list[torch.Tensor], keep: bool, batched: bool = False) -> torch.Tensor:
        """Product with the Hessian of the summed loss; (n,), or (j, n) for `batched` pieces."""
        found = torch.autograd.grad(
            graph, self.leaves, pieces, retain_graph=keep, materialize_grads=True, is_grads_batched=batched
        )
        return torch.cat([piece.flatten(int(batched)) for piece in found], dim=-1)

    def _pieces(self, vector: torch.Tensor) -> list[torch.Tensor]:
        """(…, n) as tensors of the parameters' shapes."""
        vector = vector.to(self.device, self.torch_dtype)
        parts = vector.split(self.sizes, dim=-1)
        return [part.unflatten(-1, leaf.shape) for part, leaf in zip(parts, self.leaves, strict=True)]

    # ---- products

    def _sum(self, pieces: list[torch.Tensor], batched: bool = False) -> torch.Tensor:
        if self.micro_batch is None and len(self._tokens):
            if self._kept is None:
                self._kept = self._linearise(self._tokens)
            total = self._apply(self._kept, pieces, keep=True, batched=batched)
        else:
            total = torch.zeros((*pieces[0].shape[:batched], self.n), dtype=self.torch_dtype, device=self.device)
            size = self.micro_batch or 1
            for start in range(0, len(self._tokens), size):
                graph = self._linearise(self._tokens[start : start + size])
                total += self._apply(graph, pieces, keep=False, batched=batched)
        total /= self._predictions
        if self._shared:
            distributed.all_reduce(total)
        return total

    def matvec(self, vector):
        """H v for a vector (n,): a tensor for a tensor, an array for an array."""
        if isinstance(vector, torch.Tensor):
            return self._sum(self._pieces(vector))
        return super().matvec(vector)

    def matmat(self, vectors):
        """H V for the columns of V (n, j). An accelerator takes them in one pass over the graph, where small
        kernels would leave it idle; a CPU one by one, since there a pass costs more than its share."""
        if not isinstance(vectors, torch.Tensor):
            return super().matmat(vectors)
        if self.device.type == "cpu":
            return torch.stack([self.matvec(column) for column in vectors.T], dim=1)
        return self._batched(vectors.T).T

    def _batched(self, vectors: torch.Tensor) -> torch.Tensor:
        return self._sum(self._pieces(vectors), batched=True)

    def _matvec(self, vector: np.ndarray) -> np.ndarray:
        return self.matvec(torch.from_numpy(np.ascontiguousarray(vector.ravel()))).cpu().numpy()

    def _matmat(self, vectors: np.ndarray) -> np.ndarray:
        return self.matmat(torch.from_numpy(np.ascontiguousarray(vectors))).cpu().numpy()

    def _adjoint(self) -> "HessianOperator":
        return self

    def block_forms(self, left: list[torch.Tensor], right: list[torch.Tensor]) -> np.ndarray:
        """ℓᵀ H_b r for every block b and every pair of one r with its ℓ's, (blocks, pairs): H_b the Hessian of
        the block's own mean loss, so that the mean over b is ℓᵀ H r. `left` is parallel to `right`, each entry
        a matrix (i, n). Costs a gradient and two more for every r, block by block with a graph of its own."""
        pairs = sum(map(len, left))
        forms = torch.zeros(self.blocks, pairs, dtype=torch.float64)
        for index, block in zip(self._own, self._tokens, strict=True):
            graph, found = self._linearise(block[None]), []
            for vectors, r in zip(left, right, strict=True):
                product = self._apply(graph, self._pieces(r), keep=True)
                found += [dot(vector, product) for vector in vectors]
            forms[index] = torch.tensor(found, dtype=torch.float64) * (self.blocks / self._predictions)
        if self._shared:
            on_device = forms.to(self.device)
            distributed.all_reduce(on_device)
            forms = on_device.cpu()
        return forms.numpy()

    def block_bytes(self) -> int:
        """Bytes that one block takes at work: its retained graph, measured on the first block, and half as much."""
        sizes: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
            return tensor.detach()

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            graph = self._linearise(self._first)
        for parameter in [*self._base.values(), self._weight]:
            sizes.pop(parameter.untyped_storage().data_ptr(), None)
        del graph
        logits = min(self._rows, self._first[:, 1:].numel()) * len(self._weight) * self._weight.itemsize
        return int(WORKING_SHARE * (sum(sizes.values()) + logits))

    def least(self, *values: int) -> list[int]:
        """The smallest of all ranks' values, so that what is decided by them is decided alike everywhere."""
        if not self._shared:
            return list(values)
        agreed = torch.tensor(values, device=self.device)
        distributed.all_reduce(agreed, op=distributed.ReduceOp.MIN)
        return agreed.tolist()


class GaussNewtonOperator(HessianOperator):
    """G = E JᵀSJ, J the Jacobian of the logits and S the cross-entropy's second derivative in them.

    Positive semi-definite: the Hessian without the logits' own curvature, and the usual stand-in for its
    outliers. Same interface and memory as `HessianOperator`. The logits' Jacobian is never formed: its product
    with a vector passes through the hidden states, by two transposed products. Source: Schraudolph 2002.
    """

    def _linearise(self, tokens: torch.Tensor) -> tuple:
        hidden = self._hidden(tokens)
        targets = tokens[:, 1:].flatten()
        kept = None
        if len(hidden) <= self._rows:
            with torch.no_grad():
                kept = probabilities(hidden, self._weight)
        if not hidden.requires_grad:
            return hidden, targets, kept, None, None
        # g(c) = Jᵀc is linear in c: its derivative in c is J.
        cotangent = torch.zeros_like(hidden, requires_grad=True)
        transposed = torch.autograd.grad(
            hidden, self.leaves, grad_outputs=cotangent, create_graph=True, materialize_grads=True
        )
        return hidden, targets, kept, cotangent, transposed

    def _apply(self, graph: tuple, pieces: list[torch.Tensor], keep: bool, batched: bool = False) -> torch.Tensor:
        if batched:
            return torch.stack([self._apply(graph, list(piece), keep=True) for piece in zip(*pieces, strict=True)])
        hidden, targets, kept, cotangent, transposed = graph
        a = B = None
        for leaf, piece in zip(self.leaves, pieces, strict=True):
            if leaf is self._weight:
                B = piece
        if transposed is not None:
            used = [(t, p) for t, p in zip(transposed, pieces, strict=True) if t.requires_grad]
            (a,) = torch.autograd.grad([t for t, _ in used], cotangent, [p for _, p in used], retain_graph=True)
        with torch.no_grad():
            by_hidden, by_weight = head_curvature(hidden, self._weight, targets, a, B, self._rows, kept, full=False)
        if transposed is None:
            return by_weight.flatten()
        found = torch.autograd.grad(hidden, self.leaves, by_hidden, retain_graph=keep, materialize_grads=True)
        found = [f + by_weight if leaf is self._weight else f for f, leaf in zip(found, self.leaves, strict=True)]
        return torch.cat([piece.flatten() for piece in found])


def _checked(tokens: torch.Tensor, model: PreTrainedModel) -> torch.Tensor:
    """The blocks, if they can be measured with the model."""
    if tokens.ndim != 2 or tokens.dtype.is_floating_point or len(tokens) == 0 or tokens.shape[1] < 2:
        raise ValueError(
            "blocks must be token ids, whole numbers of shape (B, T), B ≥ 1 and T ≥ 2, "
            f"not {tokens.dtype} of shape {tuple(tokens.shape)}."
        )
    vocabulary = model.get_input_embeddings().num_embeddings
    if len(beyond := tokens[(tokens < 0) | (tokens >= vocabulary)]):
        raise ValueError(f"token {int(beyond[0])} is beyond the model's vocabulary of {vocabulary}.")
    if model.get_output_embeddings() is None:
        raise ValueError(f"the model has no output head: load {type(model).__name__} as a causal language model.")
    attention = getattr(model.config, "_attn_implementation", "eager")
    if attention not in ("eager", "sdpa"):
        raise ValueError(f"attention {attention!r} has no second derivative: load with attn_implementation='eager'.")
    if model.get_output_embeddings().bias is not None:
        raise ValueError(f"the output head of {type(model).__name__} has a bias: it cannot be measured here.")
    return tokens.long()


def operator_class(kind: str) -> type[HessianOperator]:
    """The operator called "hessian" or "gauss_newton"."""
    classes = {"hessian": HessianOperator, "gauss_newton": GaussNewtonOperator}
    if kind not in classes:
        raise ValueError(f"kind {kind!r} is neither 'hessian' nor 'gauss_newton'.")
    return classes[kind]


def hessian_operator(
    model: PreTrainedModel,
    batch: torch.Tensor,
    *,
    kind: Literal["hessian", "gauss_newton"] = "hessian",
    parameters: list[str] | None = None,
    memory_budget: float | None = None,
) -> HessianOperator:
    """Hessian or Gauss–Newton operator of the mean loss on blocks of token ids (B, T).

    parameters: names of those to differentiate in, one entry of `parameter_blocks` for instance; all if None.
    memory_budget: bytes for the graph, half of what is free if None. If the graph of the whole batch does not
    fit, as many blocks at a time as do; MemoryError where not even one does.
    """
    operator = operator_class(kind)(model, batch, parameters=parameters)
    budget = available_memory(operator.device) // 2 if memory_budget is None else memory_budget
    operator.micro_batch = fitting_blocks(budget, operator.block_bytes(), operator.share)
    return operator
