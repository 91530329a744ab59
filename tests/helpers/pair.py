"""Training and sampling as one process or two do them.

`accelerate launch tests/helpers/pair.py FOLDER` writes it for two.
"""

import json
import os
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file
from spectra import VOCABULARY, tiny
from spectral_collapse import estimate
from spectral_collapse.machine import parallel, processes
from spectral_collapse.model import generate
from spectral_collapse.model.train import Recipe, train
from spectral_collapse.record import provenance

CPU = torch.device("cpu")
NO_DROPOUT = {"opt": {"dropout": 0.0}, "gpt2": dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)}
RECIPE = Recipe(epochs=2, batch_size=5, learning_rate=1e-2, weight_decay=0.1, warmup_fraction=0.2, schedule="cosine")
# 11 blocks in batches of 5: shares of 3 and 2, and at the end of an epoch of one block and of none.
BLOCKS = torch.randint(0, VOCABULARY, (11, 10), generator=torch.Generator().manual_seed(0))
STEPS, STATE_STEPS, KILLED_AT = 6, 2, 3
CASES = {
    **{name: (name, {}) for name in ("llama", "qwen2", "opt", "gpt2")},
    "sharpness": ("llama", {"sharpness_radius": 0.1}),
    "dropout": ("llama", {"dropout": 0.3}),
}
# Of several lengths, one more than two processes share evenly, with a token that ends some early.
PROMPTS = [BLOCKS[index, : 1 + index % 5].tolist() for index in range(7)]
SEEDS = [estimate.stable_seed("pair", index) for index in range(len(PROMPTS))]  # `draws.recomputed`: 1.8e-5 at least
DRAWN = {"temperature": 1.0, "top_k": 0, "top_p": 0.95, "batch_size": 2}


class Killed(BaseException):
    pass


def built(architecture: str, layers: int = 2):
    """A float32 model, on its device or in shares."""
    changes = NO_DROPOUT.get(architecture, {})
    model = tiny(architecture, torch.float32, num_hidden_layers=layers, max_position_embeddings=32, **changes)
    return parallel.place(model, CPU)


def trained(case: str, folder: Path, killed_at: int | None = None):
    """A model trained in place and its losses, or Killed before a step; a state in the folder is gone on from."""
    architecture, changes = CASES[case]
    model, step, left = built(architecture), torch.optim.AdamW.step, [killed_at]

    def counted(self, *given, **options):
        if left[0] == 0:
            raise Killed
        left[0] = left[0] and left[0] - 1
        return step(self, *given, **options)

    torch.optim.AdamW.step = counted
    try:
        losses = train(
            model, BLOCKS, replace(RECIPE, **changes), seed_parts=(1, "pair"), state=folder / "state.safetensors",
            state_steps=STATE_STEPS, identity=case, say=lambda _: None,
        )  # fmt: skip
    finally:
        torch.optim.AdamW.step = step
    return model, losses


def sampled(model) -> list[list[int]]:
    """Continuations of all lengths, and ended ones."""
    return [
        *generate.sample(model, PROMPTS, SEEDS, 8, **DRAWN),
        *generate.sample(model, PROMPTS, SEEDS, 8, stop_token=3, **DRAWN),
        *generate.sample(model, PROMPTS[:1], SEEDS[:1], 8, **DRAWN),
    ]


def held_bytes(model) -> dict[str, int]:
    """Bytes in this process: of weights, gradients and the optimizer's two moments; and of whole weights at most, at
    any layer of a training step, or 0 where they lie in the process all the time."""
    most = [0]

    def count(*_) -> None:
        parameters = [parameter for parameter in model.parameters() if parallel.sharded(model)]
        most[0] = max(most[0], sum(p.nbytes for p in parameters if not isinstance(p, parallel.DTensor)))

    for layer in model.model.layers:
        layer.register_forward_pre_hook(count)
        layer.register_full_backward_pre_hook(count)
    optimizer = torch.optim.AdamW(model.parameters())
    model.train()(input_ids=BLOCKS, labels=BLOCKS).loss.backward()
    optimizer.step()
    tensors = [part for p in model.parameters() for part in (p, p.grad, *optimizer.state[p].values()) if part.ndim]
    local = [part.to_local() if isinstance(part, parallel.DTensor) else part for part in tensors]
    return {"state": sum(part.nbytes for part in local), "whole": most[0]}


def measured(folder: Path) -> dict:
    """Losses, continuations and bytes; the trained weights go to <case>.safetensors in the folder."""
    found = {"sampled": sampled(built("llama")), "bytes": held_bytes(built("llama", layers=8))}
    for case in CASES:
        if case == "sharpness" and processes.sharding():
            found[case] = refusal(case, folder)
            continue
        model, found[case] = trained(case, folder)
        weights = {name: parallel.full_tensor(tensor.detach()) for name, tensor in model.named_parameters()}
        provenance.write_atomically(folder / f"{case}.safetensors", partial(save_file, weights))
    return found


def refusal(case: str, folder: Path) -> str:
    try:
        trained(case, folder)
    except ValueError as error:
        return str(error)
    raise AssertionError(f"{case} was trained.")


def interrupted(folder: Path) -> None:
    """Leaves the state of a training that was killed."""
    try:
        trained("llama", folder, KILLED_AT)
    except Killed:
        return
    raise AssertionError("it was not killed.")


if __name__ == "__main__":
    parallel.start(CPU)
    for name, flag in (("replicas", "false"), ("shares", "true")):
        os.environ["ACCELERATE_USE_FSDP"] = flag  # as accelerate launch --use_fsdp sets it
        folder = Path(sys.argv[1], name)
        found = measured(folder)
        # One process goes on with what two have left, and these go on with what one has left.
        interrupted(folder / "left")
        _, found["resumed"] = trained("llama", Path(sys.argv[1], f"left for {name}"))
        (folder / f"rank_{processes.rank()}.json").write_text(json.dumps(found))
