"""Training of a generation, resumable after a kill, and held-out perplexity."""

import contextlib
import hashlib
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from scipy import stats
from transformers import PreTrainedModel

from ..estimate import generator, stable_seed
from ..machine import memory, parallel, processes, speed
from ..record import provenance
from . import build


class TrainingDiverged(ValueError):
    """Loss or weights are no longer finite; `losses` holds the losses of the steps before."""

    def __init__(self, step: int, losses: list[float], what: str = "the loss is"):
        super().__init__(
            f"training stopped at step {step}: {what} not finite; lower the learning rate. "
            "Everything computed before is kept."
        )
        self.losses = losses


@dataclass(frozen=True)
class Recipe:
    """A training recipe: AdamW, linear warm-up over a fraction of the steps, then the schedule down to zero.

    Gradients longer than `gradient_clip` are scaled to it (Pascanu et al. 2013). `steps`, if given, replaces
    epochs × batches. `warmup_stable_decay` falls linearly over the last `decay_fraction` of the steps (Hu et al. 2024).
    `sharpness_radius` is ρ of sharpness-aware minimization (Foret et al. 2021).

    With `precision` bfloat16 products use bfloat16 copies of the weights; weights, gradients and moments stay float32,
    since a step of 5e-5 on a weight of 0.05 is a fifth of bfloat16's spacing and would be lost (Micikevicius et al.
    2018).
    """

    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    warmup_fraction: float
    schedule: str
    steps: int | None = None
    decay_fraction: float = 0.2
    dropout: float = 0.0
    sharpness_radius: float = 0.0
    gradient_clip: float = 1.0
    precision: str = "float32"
    gradient_checkpointing: bool = False

    def rate(self, step: int, steps: int) -> float:
        """Learning rate of step 0 … steps − 1."""
        warmup = int(self.warmup_fraction * steps)
        if step < warmup:
            return self.learning_rate * (step + 1) / warmup
        progress = (step - warmup) / max(1, steps - warmup)
        decay = {
            "constant": 1.0,
            "linear": 1 - progress,
            "cosine": (1 + math.cos(math.pi * progress)) / 2,
            "warmup_stable_decay": min(1.0, (steps - step) / max(1, int(self.decay_fraction * steps))),
        }
        return self.learning_rate * decay[self.schedule]


def _sublayers(model: PreTrainedModel) -> list[torch.nn.Module]:
    """Sublayers of every layer: attention and MLP, or any other parts with matrices; if several matrices lie in the
    layer itself, as OPT's MLP, the last of them. ValueError if the model has no list of layers, or a layer no such
    parts."""
    count = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    lists = [part for part in model.modules() if isinstance(part, torch.nn.ModuleList) and len(part) == count]
    found = []
    for layer in lists[0] if lists else []:
        parts = [part for part in layer.children() if any(weight.ndim >= 2 for weight in part.parameters())]
        bare = [part for part in parts if isinstance(part, torch.nn.Linear)]
        outputs = [part for part in parts if part not in bare] + bare[-1:]
        if not outputs:
            lists = []
        found += outputs
    if not lists:
        raise ValueError(f"dropout: {type(model).__name__} has no layers that it could be set in: set dropout to 0.")
    return found


@contextlib.contextmanager
def _dropout(model: PreTrainedModel, rate: float) -> Iterator[None]:
    """Dropout on the output of every sublayer, as in GPT-2, in place of the model's own, which would drop even at a
    rate of 0."""

    def drop(module: torch.nn.Module, _: tuple, output: torch.Tensor | tuple) -> torch.Tensor | tuple:
        if isinstance(output, tuple):
            return (torch.nn.functional.dropout(output[0], rate, module.training), *output[1:])
        return torch.nn.functional.dropout(output, rate, module.training)

    own = []
    for part in model.modules():
        rates = (
            ["p"] if isinstance(part, torch.nn.modules.dropout._DropoutNd) else [n for n in vars(part) if "drop" in n]
        )
        own += [(part, name, vars(part)[name]) for name in rates if isinstance(vars(part)[name], float)]
    hooks = [part.register_forward_hook(drop) for part in (_sublayers(model) if rate > 0 else [])]
    try:
        for part, name, _ in own:
            setattr(part, name, 0.0)
        yield
    finally:
        for part, name, value in own:
            setattr(part, name, value)
        for hook in hooks:
            hook.remove()


def _optimizer(model: PreTrainedModel, recipe: Recipe) -> torch.optim.Optimizer:
    """AdamW, within sharpness-aware minimization if the recipe asks for it. Vectors (gains, biases) do not decay."""
    trained = [p for p in model.parameters() if p.requires_grad]
    if not trained:
        raise ValueError("training: every parameter of the model is frozen: set requires_grad of some.")
    matrices = [p for p in trained if p.ndim >= 2]
    vectors = [p for p in trained if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    if recipe.sharpness_radius == 0:
        return torch.optim.AdamW(groups, fused=not parallel.sharded(model))
    if parallel.sharded(model):  # the optimizer's library cannot take the norm of sharded gradients
        raise ValueError("sharpness_radius: set it to 0, or launch without --use_fsdp, every process with all weights.")
    from pytorch_optimizer import SAM  # takes a while to import

    return SAM(groups, torch.optim.AdamW, rho=recipe.sharpness_radius, fused=True)


def _digest(note: str, tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    """SHA-256 of a state; safetensors has no checksum, so a flipped bit would go unnoticed."""
    digest = hashlib.sha256(note.encode())
    for name, tensor in tensors:
        digest.update(name.encode())
        digest.update(tensor.detach().reshape(-1).view(torch.uint8).cpu().numpy())
    return digest.hexdigest()


def _save_state(path: Path, model: PreTrainedModel, optimizer: torch.optim.Optimizer, note: dict) -> None:
    """Saves weights and moments of all parameters that have been updated."""
    tensors = {}
    for index, parameter in enumerate(model.parameters()):
        if "exp_avg" not in optimizer.state.get(parameter, {}):
            continue
        tensors[f"weight.{index}"] = parallel.full_tensor(parameter.detach())
        for name in ("exp_avg", "exp_avg_sq", "step"):
            tensors[f"{name}.{index}"] = parallel.full_tensor(optimizer.state[parameter][name])
    text = json.dumps(note)

    def write(temporary: Path) -> None:  # in the first process, which has the full tensors
        metadata = {"note": text, "sha256": _digest(text, sorted(tensors.items()))}
        save_file(tensors, temporary, metadata=metadata)

    provenance.write_atomically(path, write)


def _load_state(path: Path, model: PreTrainedModel, optimizer: torch.optim.Optimizer, identity: str) -> dict | None:
    """Restores weights and optimizer from a saved state of the same training; otherwise changes nothing."""
    try:
        with safe_open(path, framework="pt", device=str(model.device)) as file:
            text = file.metadata()["note"]
            note = json.loads(text)
            if note["identity"] != identity:
                return None
            names = sorted(file.keys())
            if file.metadata()["sha256"] != _digest(text, ((name, file.get_tensor(name)) for name in names)):
                return None
            for index, parameter in enumerate(model.parameters()):
                if f"weight.{index}" not in names:
                    continue
                parameter.detach().copy_(parallel.shard_like(file.get_tensor(f"weight.{index}"), parameter))
                step = file.get_tensor(f"step.{index}")
                optimizer.state[parameter] = {
                    "step": step.cpu() if parallel.sharded(model) else step,  # the fused AdamW's is on the device
                    **{
                        name: parallel.shard_like(file.get_tensor(f"{name}.{index}"), parameter)
                        for name in ("exp_avg", "exp_avg_sq")
                    },
                }
            return note
    except (FileNotFoundError, SafetensorError, KeyError, TypeError, ValueError):
        return None


def _training_mode(model: PreTrainedModel, recipe: Recipe) -> None:
    """Training mode, with activations recomputed in the backward pass if the recipe asks for it."""
    model.train()
    if recipe.gradient_checkpointing:
        model.activation_checkpointing_enable()
    else:
        model.activation_checkpointing_disable()


def _accumulate_gradient(
    model: PreTrainedModel, tokens: torch.Tensor, recipe: Recipe, micro_batch: int, weight: float = 1.0
) -> torch.Tensor:
    """Adds the gradient of `weight` times the mean loss over tokens (B, T), `micro_batch` sequences at a time; returns
    that loss. All sequences have the same length, so means of parts are weighted by their numbers of sequences."""
    total = torch.zeros((), device=tokens.device)
    half = torch.autocast(tokens.device.type, torch.bfloat16, enabled=recipe.precision == "bfloat16")
    with _dropout(model, recipe.dropout):  # around the backward pass too, which may recompute activations
        for part in tokens.split(micro_batch):
            with half:
                loss = model(input_ids=part, labels=part, use_cache=not recipe.gradient_checkpointing).loss
                loss = loss * (weight * len(part) / len(tokens))
            loss.backward()
            total += loss.detach()
    return total


def _halved(micro_batch: int, error: torch.OutOfMemoryError) -> int:
    if micro_batch == 1:
        raise MemoryError(
            "the gradient does not fit into the device's memory, with as few sequences at a time as can be: set "
            "gradient_checkpointing to true, lower batch_size, shorten the blocks, or take a smaller model."
        ) from error
    return -(-micro_batch // 2)


@torch.random.fork_rng(devices=[])
def fitting_batch(model: PreTrainedModel, blocks: torch.Tensor, recipe: Recipe) -> int:
    """The largest number of sequences of blocks (N, T) whose gradient fits into memory (see `memory`)."""
    if not len(blocks) or parallel.sharded(model):
        return recipe.batch_size

    def work(sequences: int) -> None:
        _accumulate_gradient(model, blocks[:1].expand(sequences, -1).to(model.device), recipe, sequences)

    # The gradient exists already, as from the second part of a batch on; only the sequences' part varies.
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    # AdamW's two moments and its step, and SAM's copy of the weights.
    vectors = 3 + (recipe.sharpness_radius > 0)
    later = vectors * memory.FLOAT * sum(parameter.numel() for parameter in trained)
    _training_mode(model, recipe)
    found = memory.measured_batch(work, min(recipe.batch_size, len(blocks)), model.device, later)
    model.eval()
    model.zero_grad(set_to_none=True)
    return found


@torch.random.fork_rng(devices=[])  # leaves the caller's random numbers unchanged
def train(
    model: PreTrainedModel,
    blocks: torch.Tensor,
    recipe: Recipe,
    *,
    seed_parts: tuple[str | int, ...],
    state: Path,
    state_steps: int,
    identity: str,
    micro_batch: int | None = None,
    description: str = "training",
    say: Callable[[str], None] = print,
) -> list[float]:
    """Trains `model` in place on blocks (N, T) of token ids; returns the loss of every step (nats per token).

    Frozen parameters (`requires_grad` false) do not change. The order of the blocks depends on `seed_parts` and the
    epoch, dropout on `seed_parts` and the step. Every `state_steps` steps the state is saved to the file `state`,
    marked with `identity`; a later call with the same identity resumes from it and ends with the same weights.

    The gradient of a batch is accumulated over `micro_batch` sequences at a time (None: all), which affects rounding
    and the masks of dropout only; parts that do not fit into an accelerator's memory are halved. Several processes
    (`parallel`) share the rows of every batch and end with the same weights as one, up to rounding and masks of
    dropout; those that shard the model take all their rows at once, since they must keep step.

    TrainingDiverged if loss or weights stop being finite, ValueError if the weights are not finite at the start,
    MemoryError if not even the gradient of one sequence fits.
    """
    if names := build.not_finite_weights(model):
        raise ValueError(f"{description}: the weights {names} are not finite before it begins: load others.")
    per_epoch = -(-len(blocks) // recipe.batch_size)
    steps = recipe.epochs * per_epoch if recipe.steps is None else recipe.steps
    optimizer = _optimizer(model, recipe)
    losses: list[float] = []
    micro_batch, earlier = micro_batch or recipe.batch_size, 0.0
    if note := _load_state(state, model, optimizer, identity):
        losses, micro_batch, earlier = note["losses"], note["micro_batch"], note["seconds"]
        speed.count_earlier(earlier)
        say(f"{description}: resuming at step {len(losses)} of {steps}.")
    if parallel.sharded(model):
        micro_batch = recipe.batch_size
    _training_mode(model, recipe)
    order, tokens_seen, started = None, 0, time.perf_counter()
    for step in processes.steps(range(len(losses), steps), description):
        epoch, batch = divmod(step, per_epoch)
        if batch == 0 or order is None:
            order = generator(*seed_parts, "order", epoch).permutation(len(blocks))
        chosen = order[batch * recipe.batch_size : (batch + 1) * recipe.batch_size]
        tokens, weight = parallel.shard(blocks[torch.from_numpy(chosen)].to(model.device))  # (B, T)
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate(step, steps)

        def gradients(tokens: torch.Tensor = tokens, weight: float = weight, step: int = step) -> torch.Tensor:
            nonlocal micro_batch
            while True:
                torch.manual_seed(stable_seed(*seed_parts, "dropout", step, *parallel.random_stream()))
                optimizer.zero_grad(set_to_none=True)
                try:
                    loss = _accumulate_gradient(model, tokens, recipe, micro_batch, weight)
                    break
                except torch.OutOfMemoryError as error:
                    micro_batch = _halved(1 if parallel.sharded(model) else micro_batch, error)
            loss = parallel.sum_gradients(model, loss)
            torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.gradient_clip)
            return loss

        loss = gradients()
        if not math.isfinite(loss.item()):
            raise TrainingDiverged(step, losses)
        if recipe.sharpness_radius == 0:
            optimizer.step()
        else:  # from w to w + ρ g/‖g‖, and AdamW's step from w with the gradient there
            optimizer.step(gradients)
        losses.append(loss.item())
        tokens_seen += len(chosen) * blocks.shape[1]
        if (step + 1) % state_steps == 0 and step + 1 < steps:
            note = {"identity": identity, "losses": losses, "micro_batch": micro_batch}
            _save_state(state, model, optimizer, note | {"seconds": earlier + time.perf_counter() - started})
    if names := build.not_finite_weights(model):  # from the last step, after which no loss is computed
        raise TrainingDiverged(len(losses), losses, f"the weights {names} are")
    model.eval()
    speed.count("training", tokens_seen, time.perf_counter() - started)
    return losses


@torch.no_grad()
def block_losses(model: PreTrainedModel, blocks: torch.Tensor, batch_size: int) -> np.ndarray:
    """Mean loss (N,) over the T − 1 predictions of each of the blocks (N, T), in nats, float64."""
    model.eval()
    losses = [torch.empty(0)]
    for tokens in blocks.split(batch_size):
        tokens = tokens.to(model.device)
        logits = model(input_ids=tokens).logits[:, :-1].float()  # (B, T-1, V)
        loss = torch.nn.functional.cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none")
        losses.append(loss.mean(1).cpu())
    return torch.cat(losses).double().numpy()


def perplexity(model: PreTrainedModel, blocks: torch.Tensor, batch_size: int) -> dict[str, float | list[float]]:
    """Held-out perplexity exp(mean loss) over blocks (N, T), with its standard error and 95 % interval over blocks.

    The standard error is that of the mean of `block_losses` by the delta method, the interval exp of that mean's
    t interval. Both cover the noise of the blocks, not of training. ValueError if a block's loss is not finite.
    Source: Jurafsky & Martin, Speech and Language Processing, ch. 3.
    """
    per_block = block_losses(model, blocks, batch_size)
    if not np.isfinite(per_block).all():
        raise build.not_finite(model, "held-out perplexity")
    mean, error = float(per_block.mean()), float(per_block.std(ddof=1)) / math.sqrt(len(per_block))
    half = float(stats.t.ppf(0.975, len(per_block) - 1)) * error
    value, low, high = np.exp([mean, mean - half, mean + half]).tolist()
    return {
        "held_out_loss_nats": mean,
        "held_out_loss_standard_error": error,
        "held_out_perplexity": value,
        "held_out_perplexity_standard_error": value * error,
        "held_out_perplexity_interval": [low, high],
    }
