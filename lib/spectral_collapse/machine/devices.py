"""Devices and precisions by name."""

import torch


def pick_device(name: str) -> torch.device:
    """The device of this name; `auto` takes CUDA, else Apple's MPS, else the CPU. ValueError if it is not available."""
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind in present if present[kind])
    if not present[name]:
        raise ValueError(f"device {name!r} is not available on this machine: set device to 'auto' or 'cpu'.")
    return torch.device(name)


def pick_precision(name: str, device: torch.device) -> str:
    """The precision; `auto` is bfloat16 on a CUDA device whose hardware supports it, else float32."""
    if name == "auto":
        fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return "bfloat16" if fast else "float32"
    return name
