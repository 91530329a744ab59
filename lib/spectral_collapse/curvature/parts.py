"""Trainable parameters by part of the network: embedding, attention, MLPs, mixers, head."""

import functools
import re
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel

from .model import measurement_mode

# Kind of a layer's submodule, by its class or else by its attribute's name.
KINDS = (
    ("mixer", re.compile(r"mamba|mixer|ssm|rwkv.*attention|gateddelta|linear_?attn|recurrent|short_?conv")),
    ("attention", re.compile(r"attention|attn")),
    ("mlp", re.compile(r"mlp|ffn|feed_?forward|moe|expert|^fc\d?$")),
)


def _kind(module: torch.nn.Module, attribute: str) -> str | None:
    for word in (type(module).__name__.lower(), attribute.lower()):
        for kind, pattern in KINDS:
            if pattern.search(word):
                return kind
    return None


def _size(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [tensor for part in value for tensor in _tensors(part)] if isinstance(value, list | tuple) else []


class _Call(NamedTuple):
    """A module's call in a forward pass, and the storages that it read and wrote."""

    module: str
    read: set[int]
    written: set[int]


def _calls(model: PreTrainedModel, names: list[str]) -> list[_Call]:
    """Calls of the named modules in a forward pass over two tokens, in the order in which they end."""
    calls, alive, hooks = [], [], []

    def note(name: str, positional: tuple, named: dict, output: Any) -> None:
        read, written = _tensors([positional, named]), _tensors([output])
        alive.extend(read + written)  # a freed storage's address is used again
        calls.append(_Call(name, *({t.untyped_storage().data_ptr() for t in part} for part in (read, written))))

    for name in names:
        hook = functools.partial(lambda name, module, *seen: note(name, *seen), name)
        hooks.append(model.get_submodule(name).register_forward_hook(hook, with_kwargs=True))
    try:
        with torch.no_grad(), measurement_mode(model):
            device = next(model.parameters()).device
            model(input_ids=torch.zeros(1, 2, dtype=torch.long, device=device), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return calls


class _Part(NamedTuple):
    name: str
    layer: str | None  # None outside of the layers
    norm: bool


def _parts(model: PreTrainedModel) -> dict[str, _Part]:
    """Part of every module with parameters: the direct submodules of layers, and elsewhere the module itself."""
    modules = dict(model.named_modules())
    lists = [name for name, module in modules.items() if isinstance(module, torch.nn.ModuleList)]
    layers = max(lists, key=lambda name: _size(modules[name]), default=None)
    parts = {}
    for name, module in modules.items():
        norm = "norm" in type(module).__name__.lower()
        if layers is not None and name.startswith(f"{layers}."):
            index, _, attribute = name.removeprefix(f"{layers}.").partition(".")
            if not attribute:  # the layer's own parameters, if it has any
                parts[name] = _Part(f"layer {index}", index, False)
            elif "." not in attribute:
                kind = None if norm else _kind(module, attribute)
                parts[name] = _Part(f"layer {index} {kind or attribute}", index, norm)
        elif isinstance(module, torch.nn.Embedding) or module is model.get_input_embeddings():
            parts[name] = _Part("embedding", None, False)
        elif module is model.get_output_embeddings():
            parts[name] = _Part("head", None, False)
        elif any(True for _ in module.parameters(recurse=False)):
            parts[name] = _Part(name or type(model).__name__, None, norm)
    return parts


def _owner(norm: str, parts: dict[str, _Part], calls: list[_Call]) -> str | None:
    """The part that a norm belongs to; None if it is a part of its own."""
    own = [place for place, call in enumerate(calls) if call.module == norm]
    inside = [place for place, call in enumerate(calls) if parts[call.module].layer is not None]
    if not own:
        return None
    if parts[norm].layer is None:
        if not inside or inside[0] < own[0] < inside[-1]:
            return None
        return "embedding" if own[0] < inside[0] else "head"
    others = [c for c in calls if parts[c.module].layer == parts[norm].layer and not parts[c.module].norm]
    read, written = (set().union(*(calls[place][field] for place in own)) for field in (1, 2))
    layer = f"layer {parts[norm].layer}"
    readers = {parts[call.module].name for call in others if call.read & written} - {layer}
    writers = {parts[call.module].name for call in others if call.written & read} - {layer}
    found = readers or writers
    return found.pop() if len(found) == 1 else None


def parameter_blocks(model: PreTrainedModel) -> dict[str, list[str]]:
    """Names of the trainable parameters by part of the network, in the order in which a forward pass uses the parts.

    `embedding`: embeddings of tokens and positions, a norm before the first layer, and a tied output matrix.
    `layer i attention`, `layer i mlp`, `layer i mixer` (Mamba, RWKV): submodules of the layers, which are the largest
    list of modules, recognised by class or attribute. `head`: the output matrix and the norms after the last layer.
    A layer's norm belongs to the one part that reads its output, or else to the one whose output it reads, found by
    sending two tokens through the network. Any other module is a part named after itself.
    """
    parts = _parts(model)
    calls = _calls(model, list(parts))
    belongs = {name: (part.norm and _owner(name, parts, calls)) or part.name for name, part in parts.items()}
    blocks: dict[str, list[str]] = {belongs[call.module]: [] for call in calls}
    blocks["head"] = blocks.pop("head", [])
    for name, parameter in model.named_parameters():
        holder = name.rpartition(".")[0]
        while holder not in belongs:
            holder = holder.rpartition(".")[0]
        if parameter.requires_grad:
            blocks.setdefault(belongs[holder], []).append(name)
    return {part: names for part, names in blocks.items() if names}
