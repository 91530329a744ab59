"""Devices and precisions by name."""

import torch


def pick_device(name: str) -> torch.device:
    """`auto`: CUDA where there is one, else Apple's MPS, else the CPU. One asked for by name and absent is an error."""
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind in present if present[kind])
    if not present[name]:
        raise ValueError(f"device {name!r} is not available on this machine: set device to 'auto' or 'cpu'.")
    return torch.device(name)


def pick_precision(name: str, device: torch.device) -> str:
    """`auto`: bfloat16 on a CUDA device whose hardware has it, else float32."""
    if name == "auto":
        fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return "bfloat16" if fast else "float32"
    return name
