"""Training a generation, with a state that survives being killed, and held-out perplexity."""

import contextlib
import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from scipy import stats
from tqdm import tqdm
from transformers import PreTrainedModel

from . import provenance
from .seeding import generator, stable_seed


class TrainingDiverged(ValueError):
    """The loss stopped being finite; `losses` holds those of the steps before."""

    def __init__(self, step: int, losses: list[float]):
        super().__init__(
            f"training stopped at step {step}: the loss is not finite; lower the learning rate. "
            "Everything computed before is kept."
        )
        self.losses = losses


@dataclass(frozen=True)
class Recipe:
    """How to train: AdamW, linear warm-up over a fraction of the steps, then the schedule down to zero.

    `steps`, if given, replaces epochs × batches. `warmup_stable_decay` falls linearly over the last `decay_fraction` of
    the steps (Hu et al. 2024). `sharpness_radius` is ρ of sharpness-aware minimization (Foret et al. 2021).
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


@contextlib.contextmanager
def _dropout(model: PreTrainedModel, rate: float) -> Iterator[None]:
    """Dropout on the output of every attention and MLP, as GPT-2 has it; Llama and Qwen2 have none of their own."""

    def drop(module: torch.nn.Module, _: tuple, output: torch.Tensor | tuple) -> torch.Tensor | tuple:
        if isinstance(output, tuple):
            return (torch.nn.functional.dropout(output[0], rate, module.training), *output[1:])
        return torch.nn.functional.dropout(output, rate, module.training)

    # OPT has its MLP's matrices in the layer itself.
    parts = [part for name, part in model.named_modules() if re.search(r"\.(self_attn|attn|mlp|fc2)$", name)]
    hooks = [part.register_forward_hook(drop) for part in parts if rate > 0]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _optimizer(model: PreTrainedModel, recipe: Recipe) -> torch.optim.Optimizer:
    """AdamW, inside sharpness-aware minimization if the recipe asks for it. Norms' gains are vectors, not decayed."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    if recipe.sharpness_radius == 0:
        return torch.optim.AdamW(groups)
    from pytorch_optimizer import SAM  # takes a while to import

    return SAM(groups, torch.optim.AdamW, rho=recipe.sharpness_radius)


def _digest(note: str, tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    """SHA-256 of a state: safetensors has no checksum, and a flipped bit of a weight would pass for a weight."""
    digest = hashlib.sha256(note.encode())
    for name, tensor in tensors:
        digest.update(name.encode())
        digest.update(tensor.detach().reshape(-1).view(torch.uint8).cpu().numpy())
    return digest.hexdigest()


def _save_state(path: Path, model: PreTrainedModel, optimizer: torch.optim.Optimizer, note: dict) -> None:
    tensors = {}
    for index, parameter in enumerate(model.parameters()):
        tensors[f"weight.{index}"] = parameter.detach()
        for name in ("exp_avg", "exp_avg_sq", "step"):
            tensors[f"{name}.{index}"] = optimizer.state[parameter][name]
    text = json.dumps(note)
    metadata = {"note": text, "sha256": _digest(text, sorted(tensors.items()))}
    provenance.write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata=metadata))


def _load_state(path: Path, model: PreTrainedModel, optimizer: torch.optim.Optimizer, identity: str) -> dict | None:
    """Restores weights and optimizer from a saved state of this very training, otherwise leaves all as it is."""
    try:
        with safe_open(path, framework="pt", device=str(model.device)) as file:
            text = file.metadata()["note"]
            note = json.loads(text)
            if note["identity"] != identity:
                return None
            if file.metadata()["sha256"] != _digest(
                text, ((name, file.get_tensor(name)) for name in sorted(file.keys()))
            ):
                return None
            for index, parameter in enumerate(model.parameters()):
                parameter.data.copy_(file.get_tensor(f"weight.{index}"))
                # AdamW keeps its step counter on the CPU.
                optimizer.state[parameter] = {
                    "step": file.get_tensor(f"step.{index}").cpu(),
                    **{name: file.get_tensor(f"{name}.{index}") for name in ("exp_avg", "exp_avg_sq")},
                }
            return note
    except (FileNotFoundError, SafetensorError, KeyError, TypeError, ValueError):
        return None


@torch.random.fork_rng(devices=[])  # the caller's random numbers stay as they are
def train(
    model: PreTrainedModel,
    blocks: torch.Tensor,
    recipe: Recipe,
    *,
    seed_parts: tuple[str | int, ...],
    state: Path,
    state_steps: int,
    identity: str,
    description: str = "training",
    say: Callable[[str], None] = print,
) -> list[float]:
    """Trains `model` in place on blocks (N, T) of token ids; returns the loss of every step (nats per token).

    The order of the blocks depends on `seed_parts` and the epoch, dropout on `seed_parts` and the step. Every
    `state_steps` steps the state goes to the file `state`, marked with `identity`; a later call with the same
    identity goes on from there and ends with the same weights. Raises TrainingDiverged on a loss that is not
    finite.
    """
    per_epoch = -(-len(blocks) // recipe.batch_size)
    steps = recipe.epochs * per_epoch if recipe.steps is None else recipe.steps
    optimizer = _optimizer(model, recipe)
    losses: list[float] = []
    if note := _load_state(state, model, optimizer, identity):
        losses = note["losses"]
        say(f"{description}: going on from step {len(losses)} of {steps}.")
    model.train()
    order = None
    for step in tqdm(range(len(losses), steps), desc=description, leave=False, delay=2):
        epoch, batch = divmod(step, per_epoch)
        if batch == 0 or order is None:
            order = generator(*seed_parts, "order", epoch).permutation(len(blocks))
        chosen = order[batch * recipe.batch_size : (batch + 1) * recipe.batch_size]
        tokens = blocks[torch.from_numpy(chosen)].to(model.device)  # (B, T)
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate(step, steps)

        def gradients(tokens: torch.Tensor = tokens, step: int = step) -> torch.Tensor:
            torch.manual_seed(stable_seed(*seed_parts, "dropout", step))
            with _dropout(model, recipe.dropout):
                loss = model(input_ids=tokens, labels=tokens).loss
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            return loss.detach()

        loss = gradients()
        if not math.isfinite(loss.item()):
            raise TrainingDiverged(step, losses)
        if recipe.sharpness_radius == 0:
            optimizer.step()
        else:  # from w to w + ρ g/‖g‖, and AdamW's step from w with the gradient there
            optimizer.step(gradients)
        losses.append(loss.item())
        if (step + 1) % state_steps == 0 and step + 1 < steps:
            _save_state(state, model, optimizer, {"identity": identity, "losses": losses})
    model.eval()
    return losses


@torch.no_grad()
def perplexity(model: PreTrainedModel, blocks: torch.Tensor, batch_size: int) -> dict[str, float | list[float]]:
    """Held-out perplexity exp(mean loss) over blocks (N, T), with its standard error and 95 % interval over blocks.

    The loss of a block is the mean over its T − 1 predictions, in nats; the standard error follows from
    that of the mean by the delta method, the interval is exp of the t interval of the mean loss. Both carry the
    noise of the blocks, not that of training. Source: Jurafsky & Martin, Speech and Language Processing, ch. 3.
    """
    model.eval()
    losses = []
    for tokens in blocks.split(batch_size):
        tokens = tokens.to(model.device)
        logits = model(input_ids=tokens).logits[:, :-1].float()  # (B, T-1, V)
        losses.append(
            torch.nn.functional.cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none").mean(1)
        )
    per_block = torch.cat(losses).double().cpu().numpy()
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
