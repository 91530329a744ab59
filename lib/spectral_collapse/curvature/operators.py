"""Products with the Hessian and with the Gauss–Newton matrix of a causal language model's mean loss."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import scipy.sparse.linalg
import torch
from torch import distributed
from transformers import PreTrainedModel

from .basis import dot
from .head import HeadGradient, head_curvature, probabilities, rows_at_a_time
from .model import (
    Blocks,
    checked_blocks,
    differentiable,
    has_plain_head,
    measurement_mode,
    require_measurable,
    unwrapped,
)

# During a product a batch needs its saved tensors and about half as much again.
WORKING_SHARE = 1.5
# Largest difference of the model's logits and hᵀW, both in float32 or better, relative to the largest logit.
SAME_LOGITS = 1e-4


def mean_loss(model: PreTrainedModel, tokens: torch.Tensor) -> torch.Tensor:
    """L(θ): mean next-token cross-entropy in nats over blocks (B, T)."""
    logits = model(input_ids=tokens).logits[:, :-1]
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())


def differentiating(method: Callable) -> Callable:
    """Wraps a method that differentiates: checks that the model is unchanged and sets torch's modes."""

    @functools.wraps(method)
    def guarded(self: "HessianOperator", *arguments: Any, **options: Any) -> Any:
        if self._parameter_state() != self._made_of:
            raise ValueError("the model's parameters have changed since this operator was made: make a new one.")
        try:
            with differentiable(self.device):
                return method(self, *arguments, **options)
        except RuntimeError as error:
            if "derivative" in str(error) or "inplace operation" in str(error):
                raise ValueError(
                    f"{type(self.model).__name__} cannot be measured here: it changes tensors in place, or takes a "
                    "step, that torch cannot differentiate twice."
                ) from error
            raise

    return guarded


class HessianOperator(scipy.sparse.linalg.LinearOperator):
    """H = ∇²L(θ) ∈ R^{n×n} of the mean loss on frozen blocks; n parameters, tied weights counted once.

    Products by double backward. If the graph of the gradient fits into memory it is built once and kept, and a product
    costs about two gradients, the minimum for an exact one. Otherwise the graphs of `micro_batch` blocks at a time are
    rebuilt for every product (about three gradients), and memory does not grow with the number of blocks. Logits exist
    only in chunks. Dropout is off. Parameters in half precision are read into float32, since the curvature of bfloat16
    arithmetic would be that of its rounding. The model itself is not changed.

    Under an initialised `torch.distributed` every rank passes the same blocks and computes its share; all ranks get the
    sum. Budgets of memory are those of one rank.

    A `scipy.sparse.linalg.LinearOperator`, float64 for a float64 model and else float32; `H @ v` takes and returns
    tensors or arrays (n,) or (n, j). batch: blocks of token ids (B, T), a tensor, an array or lists; rows of unequal
    lengths; or input_ids with attention_mask or labels, as a mapping (`model.checked_blocks`). `fused` says
    whether the model ends in a plain linear head without bias on its last hidden state, which is checked on its
    structure and on the logits of the first block. Any other head (biased, scaled, capped, with an adapter) is
    differentiated through the model's own logits: as exact, slower, and with all logits of a batch at once.
    `torch.compile`'s wrapper and those of adapters are taken off.
    ValueError for blocks, models and vectors that cannot be measured, and for products after the model's parameters
    have changed. Source: Pearlmutter 1994.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        batch: Any,
        *,
        parameters: list[str] | None = None,
        micro_batch: int | None = None,
    ):
        model = unwrapped(model)
        require_measurable(model)
        named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        chosen = list(named) if parameters is None else list(parameters)
        if not named or not chosen:
            raise ValueError("no parameter to differentiate in: none is trainable, or none was named.")
        if unknown := sorted(set(chosen) - set(named)):
            raise ValueError(
                f"{unknown[0]!r} is no trainable parameter of this model; the first is {next(iter(named))!r}."
            )
        if twice := [name for index, name in enumerate(chosen) if name in chosen[:index]]:
            raise ValueError(f"parameter {twice[0]!r} is named twice.")
        double = any(p.dtype == torch.float64 for p in model.parameters())
        self.torch_dtype = torch.float64 if double else torch.float32
        self.model, self.head = model, model.get_output_embeddings()
        self.device = next(model.parameters()).device
        with torch.inference_mode(False):
            blocks = checked_blocks(batch, model).to(self.device)
        with torch.no_grad(), measurement_mode(model):  # RWKV rescales its weights in its first such pass
            model(input_ids=blocks.tokens[:1, :2], use_cache=False)
        self._made_of = self._parameter_state()
        with differentiable(self.device):
            leaves = {id(p): p.detach().to(self.torch_dtype) for p in model.parameters()}
        self.leaves = [leaves[id(named[name])].requires_grad_() for name in chosen]
        self._parameters = {name: leaves[id(p)] for name, p in model.named_parameters(remove_duplicate=False)}
        self.fused = has_plain_head(model)
        if self.fused:
            base = model.base_model.named_parameters(remove_duplicate=False)
            self._base = {name: leaves[id(p)] for name, p in base}
            self._weight = leaves[id(self.head.weight)]
            self._rows = rows_at_a_time(len(self._weight))
        self.sizes = [leaf.numel() for leaf in self.leaves]
        self.n = sum(self.sizes)
        super().__init__(np.dtype(np.float64 if double else np.float32), (self.n, self.n))
        self.blocks = len(blocks)
        self._predictions = blocks.predictions
        rank, world = 0, 1
        if distributed.is_available() and distributed.is_initialized():
            rank, world = distributed.get_rank(), distributed.get_world_size()
        self._shared = world > 1
        self._own = range(rank, self.blocks, world)
        self._batch = blocks[rank::world]  # none where there are fewer blocks than ranks
        self._first = next(one for one in self._each(blocks) if one.predictions)
        self.share = -(-self.blocks // world)
        self.micro_batch = micro_batch
        self._kept: tuple | None = None
        self.fused = self._keeps_plain_head()

    # ---- one batch: hidden states, gradient, product

    @staticmethod
    def _each(blocks: Blocks) -> Iterator[Blocks]:
        return (blocks[place : place + 1] for place in range(len(blocks)))

    def _hidden(self, blocks: Blocks) -> torch.Tensor:
        """Last hidden states of the predicting positions, (N, d)."""
        with measurement_mode(self.model):
            inputs = blocks.inputs | {"use_cache": False}
            out = torch.func.functional_call(self.model.base_model, self._base, kwargs=inputs)
        return blocks.predicting(out.last_hidden_state).to(self.torch_dtype)

    def _logits(self, blocks: Blocks) -> torch.Tensor:
        """The model's logits of the predicting positions, (N, V)."""
        with measurement_mode(self.model):
            inputs = blocks.inputs | {"use_cache": False}
            logits = torch.func.functional_call(self.model, self._parameters, kwargs=inputs).logits
        return blocks.predicting(logits).to(self.torch_dtype)

    def _keeps_plain_head(self) -> bool:
        """Whether the model passes its last hidden state to a plain head unchanged and returns the head's output
        unchanged, and the products here see the same logits. ValueError where the logits are not finite."""
        seen: dict[torch.nn.Module, tuple] = {}

        def note(module: torch.nn.Module, given: tuple, output: Any) -> None:
            seen[module] = given, output

        hooks = [module.register_forward_hook(note) for module in (self.model.base_model, self.head) if self.fused]
        try:
            with differentiable(self.device), torch.no_grad():
                logits = self._logits(self._first)
                found = self._hidden(self._first) @ self._weight.T if self.fused else None
        finally:
            for hook in hooks:
                hook.remove()
        if not logits.isfinite().all():
            name = type(self.model).__name__
            raise ValueError(f"the logits of {name} are not finite on the first block: the model has diverged.")
        if self.head not in seen or len(seen[self.head][0]) != 1:
            return False
        (given,), output = seen[self.head]
        hidden = seen[self.model.base_model][1].last_hidden_state
        returned = self._first.predicting(output).to(self.torch_dtype)
        plain = torch.equal(given, hidden.to(given.dtype)) and torch.equal(logits, returned)
        return plain and bool((found - logits).abs().max() <= SAME_LOGITS * logits.abs().max())

    def _parameter_state(self) -> list[tuple[int, int]]:
        """Address and version counter of every parameter, which change with it."""
        return [(p.data_ptr(), 0 if p.is_inference() else p._version) for p in self.model.parameters()]

    def _linearise(self, blocks: Blocks) -> tuple:
        """The gradient of the summed loss with its graph, one tensor for each parameter."""
        if not self.fused:
            loss = torch.nn.functional.cross_entropy(self._logits(blocks), blocks.predicted, reduction="sum")
            return torch.autograd.grad(loss, self.leaves, create_graph=True, materialize_grads=True)
        hidden = self._hidden(blocks)
        by_hidden, by_weight = HeadGradient.apply(hidden, self._weight, blocks.predicted, self._rows)
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

    @differentiating
    def _sum(self, pieces: list[torch.Tensor], batched: bool = False) -> torch.Tensor:
        if self.micro_batch is None and len(self._batch):
            if self._kept is None:
                self._kept = self._linearise(self._batch)
            total = self._apply(self._kept, pieces, keep=True, batched=batched)
        else:
            total = torch.zeros((*pieces[0].shape[:batched], self.n), dtype=self.torch_dtype, device=self.device)
            size = self.micro_batch or 1
            for start in range(0, len(self._batch), size):
                graph = self._linearise(self._batch[start : start + size])
                total += self._apply(graph, pieces, keep=False, batched=batched)
        return self._everywhere(total / self._predictions)

    def _everywhere(self, total: torch.Tensor) -> torch.Tensor:
        """The sum over all ranks."""
        if self._shared:
            distributed.all_reduce(total)
        return total

    def _fitting(self, vectors: Any, dimensions: int | None = None) -> torch.Tensor | np.ndarray:
        """A tensor, detached, or an array of the operator's type; of shape (n,) or (n, j)."""
        if isinstance(vectors, torch.Tensor):
            vectors, real = vectors.detach(), not vectors.is_complex()
        else:
            vectors = np.asarray(vectors)
            real = vectors.dtype.kind in "fiub"
        if not real:
            raise ValueError(f"vectors must be real numbers, not {vectors.dtype}.")
        if vectors.ndim not in (1, 2) or len(vectors) != self.n or dimensions not in (None, vectors.ndim):
            shape = {None: "(n,) or (n, j)", 1: "(n,)", 2: "(n, j)"}[dimensions]
            raise ValueError(f"vectors must be of shape {shape} with n = {self.n}, not {tuple(vectors.shape)}.")
        return vectors if isinstance(vectors, torch.Tensor) else vectors.astype(self.dtype, copy=False)

    def dot(self, x):
        """H x for a vector (n,) or a matrix (n, j), also as `H @ x`: a tensor for a tensor, an array for an array."""
        if isinstance(x, scipy.sparse.linalg.LinearOperator) or np.isscalar(x) or scipy.sparse.issparse(x):
            return super().dot(x)
        x = self._fitting(x)
        return self.matvec(x) if x.ndim == 1 else self.matmat(x)

    def matvec(self, vector):
        """H v for a vector (n,): a tensor for a tensor, an array for an array."""
        if isinstance(vector, torch.Tensor):
            return self._sum(self._pieces(self._fitting(vector, 1)))
        return super().matvec(self._fitting(vector))

    def matmat(self, vectors):
        """H V for the columns of V (n, j): in one pass over the graph on an accelerator, which small kernels would
        leave idle; one by one on a CPU, where a joint pass costs more."""
        vectors = self._fitting(vectors, 2)
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

    _transpose = _adjoint

    def __repr__(self) -> str:
        length = self._first.tokens.shape[1]
        return (
            f"{type(self).__name__}({type(self.model).__name__}, n = {self.n:,}, {self.blocks} blocks of {length} "
            f"tokens, {self.dtype})"
        )

    @differentiating
    def block_forms(
        self, left: Sequence[Sequence[torch.Tensor]], right: Sequence[torch.Tensor], *, squares: bool = False
    ) -> np.ndarray:
        """ℓᵀ H_b r for every block b and every r with its ℓ's, (blocks, pairs). H_b is the Hessian of the block's own
        summed loss over the mean number of predictions of a block, so the mean over b is ℓᵀ H r. `left` is parallel to
        `right`, each entry i vectors (n,). With `squares` ‖H_b r‖² follows the pairs of every r. Costs one gradient,
        and two more for every r."""
        rows = []
        for block in self._each(self._batch):
            graph, found = self._linearise(block), []
            for vectors, r in zip(left, right, strict=True):
                product = self._apply(graph, self._pieces(r), keep=True)
                product *= self.blocks / self._predictions
                found += [dot(vector, product) for vector in [*vectors, *([product] if squares else [])]]
            rows.append(found)
        return self._from_blocks(rows, sum(map(len, left)) + squares * len(right))

    def _from_blocks(self, rows: list[list[float]], pairs: int) -> np.ndarray:
        """Values (blocks, pairs) of all ranks' blocks, from those of this rank's."""
        forms = torch.zeros(self.blocks, pairs, dtype=torch.float64)
        for index, found in zip(self._own, rows, strict=True):
            forms[index] = torch.tensor(found, dtype=torch.float64)
        if self._shared:
            on_device = forms.to(self.device)
            distributed.all_reduce(on_device)
            forms = on_device.cpu()
        return forms.numpy()

    @differentiating
    def block_bytes(self) -> int:
        """Bytes of one block at work: its retained graph, measured on the first block, and half as much again."""
        sizes: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
            return tensor.detach()

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            graph = self._linearise(self._first)
        for parameter in self._parameters.values():
            sizes.pop(parameter.untyped_storage().data_ptr(), None)
        del graph
        logits = 0  # without the fused head they are among what the graph saves
        if self.fused:
            logits = min(self._rows, self._first.predictions) * len(self._weight) * self._weight.itemsize
        return int(WORKING_SHARE * (sum(sizes.values()) + logits))

    def least(self, *values: int) -> list[int]:
        """The smallest of all ranks' values, so that all ranks decide alike."""
        if not self._shared:
            return list(values)
        agreed = torch.tensor(values, device=self.device)
        distributed.all_reduce(agreed, op=distributed.ReduceOp.MIN)
        return agreed.tolist()


class GaussNewtonOperator(HessianOperator):
    """G = E JᵀSJ, J the Jacobian of the logits and S the cross-entropy's second derivative in them.

    Positive semi-definite: the Hessian without the curvature of the logits, a common approximation of its outliers.
    Interface and memory as `HessianOperator`. J is never formed: its product with a vector passes through the hidden
    states, or without the fused head through the logits, by two transposed products. Source: Schraudolph 2002.
    """

    def _linearise(self, blocks: Blocks) -> tuple:
        if not self.fused:
            logits = self._logits(blocks)
            return (logits, *self._transposed(logits))
        hidden, targets = self._hidden(blocks), blocks.predicted
        kept = None
        if len(hidden) <= self._rows:
            with torch.no_grad():
                kept = probabilities(hidden, self._weight)
        if not hidden.requires_grad:
            return hidden, targets, kept, None, None
        return (hidden, targets, kept, *self._transposed(hidden))

    def _transposed(self, outputs: torch.Tensor) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """A cotangent c of the outputs, and g(c) = Jᵀc: linear in c, so that its derivative in c is J."""
        cotangent = torch.zeros_like(outputs, requires_grad=True)
        transposed = torch.autograd.grad(
            outputs, self.leaves, grad_outputs=cotangent, create_graph=True, materialize_grads=True
        )
        return cotangent, transposed

    @staticmethod
    def _pushed(
        cotangent: torch.Tensor, transposed: tuple[torch.Tensor, ...], pieces: list[torch.Tensor]
    ) -> torch.Tensor:
        """J v, of the outputs' shape."""
        used = [(t, p) for t, p in zip(transposed, pieces, strict=True) if t.requires_grad]
        (pushed,) = torch.autograd.grad([t for t, _ in used], cotangent, [p for _, p in used], retain_graph=True)
        return pushed

    def _apply(self, graph: tuple, pieces: list[torch.Tensor], keep: bool, batched: bool = False) -> torch.Tensor:
        if batched:
            return torch.stack([self._apply(graph, list(piece), keep=True) for piece in zip(*pieces, strict=True)])
        if not self.fused:
            logits, cotangent, transposed = graph
            change = self._pushed(cotangent, transposed, pieces)
            with torch.no_grad():
                P = logits.softmax(1)
                u = change.sub_(torch.linalg.vecdot(P, change)[:, None]).mul_(P)
            found = torch.autograd.grad(logits, self.leaves, u, retain_graph=keep, materialize_grads=True)
            return torch.cat([piece.flatten() for piece in found])
        hidden, targets, kept, cotangent, transposed = graph
        a = B = None
        for leaf, piece in zip(self.leaves, pieces, strict=True):
            if leaf is self._weight:
                B = piece
        if transposed is not None:
            a = self._pushed(cotangent, transposed, pieces)
        with torch.no_grad():
            by_hidden, by_weight = head_curvature(hidden, self._weight, targets, a, B, self._rows, kept, full=False)
        if transposed is None:
            return by_weight.flatten()
        found = torch.autograd.grad(hidden, self.leaves, by_hidden, retain_graph=keep, materialize_grads=True)
        found = [f + by_weight if leaf is self._weight else f for f, leaf in zip(found, self.leaves, strict=True)]
        return torch.cat([piece.flatten() for piece in found])
