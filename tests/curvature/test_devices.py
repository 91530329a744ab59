"""Devices without float64, played on the CPU: every number that is widened passes through `to_float64`."""

import types

import pytest
import torch
from spectral_collapse import curvature
from spectral_collapse.curvature import basis, krylov
from spectral_collapse.model import generate, train
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

BLOCKS = torch.randint(2, 61, (6, 10), generator=torch.Generator().manual_seed(0))


def doubles(values) -> bool:
    return any(isinstance(value, torch.Tensor) and value.dtype == torch.float64 for value in tree_leaves(values))


class NoDoubles(TorchDispatchMode):
    """A device that cannot make float64 of float32: only `to_float64` does, which leaves the device for it."""

    leaving = False

    def __torch_dispatch__(self, function, kinds, arguments=(), options=None):
        made = function(*arguments, **(options or {}))
        narrow = [value for value in tree_leaves(arguments) if isinstance(value, torch.Tensor)]
        if narrow and not doubles(arguments) and doubles(made) and not self.leaving:
            raise TypeError(f"this device has no float64 ({function})")
        return made


@pytest.fixture
def narrow(monkeypatch):
    device, real = NoDoubles(), basis.to_float64

    def leave(x):
        device.leaving = True
        try:
            return real(x)
        finally:
            device.leaving = False

    for module in (basis, krylov, generate):
        monkeypatch.setattr(module, "to_float64", leave)
    return device


def test_the_device_that_is_played_refuses(narrow):
    with narrow, pytest.raises(TypeError, match="no float64"):
        torch.ones(2).double()


def test_sampling_needs_no_double_on_the_device(tiny_model, architecture, narrow):
    model, prompts = tiny_model(architecture), BLOCKS[:, :4].tolist()
    options = {"temperature": 0.8, "top_k": 50, "top_p": 0.9, "batch_size": 6}
    expected = generate.sample(model, prompts, list(range(6)), 5, **options)
    with narrow:
        assert generate.sample(model, prompts, list(range(6)), 5, **options) == expected


def test_training_needs_no_double_on_the_device(tiny_model, narrow, tmp_path):
    recipe = train.Recipe(1, 3, 1e-2, 0.0, 0.0, "constant")
    with narrow:
        train.train(tiny_model(), BLOCKS, recipe, seed_parts=(1,), state=tmp_path / "s", state_steps=1, identity="")


@pytest.mark.parametrize("probes", [1, 2])
@pytest.mark.parametrize("half", [False, True])
def test_lanczos_needs_no_double_on_the_device(tiny_model, narrow, probes, half):
    operator = curvature.hessian_operator(tiny_model(), BLOCKS)
    storage = basis.Storage("cpu", torch.float16 if half else torch.float32)
    expected = list(krylov.probe_runs(operator, 5, probes, 0, storage))
    with narrow:
        runs = list(krylov.probe_runs(operator, 5, probes, 0, storage))
        for (quadrature, kept), (same, _) in zip(runs, expected, strict=True):
            assert quadrature.nodes.tolist() == same.nodes.tolist()
            kept.combine(quadrature.vectors[:, -1])
        if not half:
            krylov.joint_ritz(runs)


def test_what_is_widened_leaves_a_device_without_float64_first():
    here = torch.ones(3)
    there = types.SimpleNamespace(device=torch.device("mps"), cpu=lambda: here)  # has no double()
    found = basis.to_float64(there)
    assert found.dtype == torch.float64 and found.tolist() == [1, 1, 1]
