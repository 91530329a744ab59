"""Each stage of a generation beside its floor: the arithmetic and the bytes that it needs, at this machine's rates."""

import contextlib
import os
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import pandas as pd
import torch
from spectral_collapse.experiment import encoded, loop, measure, runs
from spectral_collapse.record import params
from timing import table
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

PROFILE = "default"
STAGES = {
    **{"text": loop.text, "training": loop.training, "evaluation": measure.evaluation, "anchors": measure.anchors},
    **{"continuations": measure.continuations, "responses": measure.responses, "curvature": measure.curvature},
    **{"embeddings": encoded.embeddings, "sigma": encoded.sigma, "coherence": encoded.coherence},
}
PRODUCTS = {"mm", "addmm", "bmm", "baddbmm"}  # timed on their own shapes
LARGEST = 16  # shapes that are timed; all others run at the rate of these together
SIZES = (2**18, 2**22, 2**26)  # bytes of an operation: in a core's own cache, in the shared one, in memory


class Work(TorchDispatchMode):
    """Counts what operations compute and move: products by their shapes, others by the size of what they touch.

    An operation is counted as it reaches a kernel, with the bytes of the tensors that it reads and writes. Views count
    nothing.
    """

    def __init__(self):
        super().__init__()
        self.flop, self.bytes = 0, 0
        self.products: Counter[tuple] = Counter()  # of (name, shapes) that PRODUCTS holds
        self.flop_of: dict[tuple, int] = {}
        self.moved: Counter[int] = Counter()  # bytes of all other operations, by SIZES

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        out = function(*args, **(kwargs or {}))
        if function.is_view:
            return out
        tensors = [leaf for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, torch.Tensor)]
        moved = sum({t.data_ptr(): t.numel() * t.element_size() for t in tensors if t.device.type == "cpu"}.values())
        packet = function.overloadpacket
        flop = 0
        if packet in flop_registry:
            flop = flop_registry[packet](*args, **(kwargs or {}), out_val=out)
        elif packet is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu:  # torch does not count this one
            flop = sdpa_flop_count(*(factor.shape for factor in args[:3]))
        self.flop += flop
        self.bytes += moved
        name = packet.__name__
        if name in PRODUCTS:
            factors = [a for a in args if isinstance(a, torch.Tensor)][-2:]
            key = (name, *(tuple(factor.shape) for factor in factors), factors[0].dtype)
            self.products[key] += 1
            self.flop_of[key] = flop
        else:
            self.moved[next((size for size in SIZES if moved <= size), SIZES[-1])] += moved
        return out


def best(call: Callable[[], object], least: float = 0.02, repetitions: int = 5) -> float:
    """CPU seconds of a call, the best of some; each is repeated for at least `least` seconds."""
    call()
    found = []
    for _ in range(repetitions):
        start, count = time.process_time(), 0
        while (elapsed := time.process_time() - start) < least or not count:
            call()
            count += 1
        found.append(elapsed / count)
        if elapsed > 0.5:
            break
    return min(found)


def peak_rate(size: int = 1024) -> float:
    """FLOP/s of one thread in float32 products of large square matrices."""
    left, right = torch.randn(2, size, size)
    return 2 * size**3 / best(lambda: left @ right)


def bandwidths() -> dict[int, float]:
    """Bytes/s of one thread's elementwise operations by the bytes that an operation touches."""
    found = {}
    for size in SIZES:
        source = torch.randn(size // 8)
        target = torch.empty_like(source)
        found[size] = size / best(lambda source=source, target=target: torch.mul(source, 0.5, out=target))
    return found


def product_seconds(works: list[Work]) -> dict[tuple, float]:
    """CPU seconds of one product of every shape: measured for those with the most arithmetic, at their common rate for
    the others."""
    total: Counter[tuple] = Counter()
    flop_of: dict[tuple, int] = {}
    for work in works:
        flop_of |= work.flop_of
        for key, count in work.products.items():
            total[key] += count * work.flop_of[key]
    timed = {}
    for key, _ in total.most_common(LARGEST):
        name, left, right, dtype = key
        a, b = torch.randn(left).to(dtype), torch.randn(right).to(dtype)
        product = torch.bmm if name in ("bmm", "baddbmm") else torch.mm
        timed[key] = best(lambda a=a, b=b, product=product: product(a, b))
    common = sum(total[key] for key in timed) / sum(total[key] / flop_of[key] * timed[key] for key in timed)
    return {key: timed.get(key, flop_of[key] / common) for key in total}


@contextlib.contextmanager
def results_in(folder: str) -> Iterator[None]:
    """Runs write into this folder."""
    before = os.environ.get("SPECTRAL_COLLAPSE_RESULTS")
    os.environ["SPECTRAL_COLLAPSE_RESULTS"] = folder
    try:
        yield
    finally:
        del os.environ["SPECTRAL_COLLAPSE_RESULTS"]
        if before is not None:
            os.environ["SPECTRAL_COLLAPSE_RESULTS"] = before


def computed(profile: str = PROFILE) -> tuple[dict[str, float], dict[str, Work]]:
    """CPU seconds of each stage in generation 1 of `recursive`, and its work, counted in generation 2.

    The base model takes a sixteenth of its training, which changes no cost of a generation.
    """
    settings = params.load(profile, perplexity_bound=1e6)
    settings = settings.model_copy(update={"baseline_blocks": settings.baseline_blocks // 16})
    seconds, works = {}, defaultdict(Work)
    with tempfile.TemporaryDirectory() as folder, results_in(folder):
        run = runs.Run(settings, "recursive", 1, say=lambda _: None)
        for name, stage in STAGES.items():  # of generation 0, which the next ones need
            if name != "text":
                stage(run, 0)
        for name, stage in STAGES.items():
            start = time.process_time()
            stage(run, 1)
            seconds[name] = time.process_time() - start
        for name, stage in STAGES.items():
            with works[name]:
                stage(run, 2)
    return seconds, works


def measured() -> tuple[pd.DataFrame, str]:
    """Rows of stages, their seconds, work and floor; and a sentence on the machine's rates."""
    peak, rates = peak_rate(), bandwidths()
    seconds, works = computed()
    each = product_seconds(list(works.values()))
    rows = {}
    for name, work in works.items():
        products = sum(count * each[key] for key, count in work.products.items())
        others = work.flop - sum(count * work.flop_of[key] for key, count in work.products.items())
        rows[name] = {
            "seconds": seconds[name],
            "gflop": work.flop / 1e9,
            "gbytes": work.bytes / 1e9,
            "at_peak": work.flop / peak,
            "products": products + others / peak,  # the rest is fused attention
            "traffic": sum(moved / rates[size] for size, moved in work.moved.items()),
        }
    found = pd.DataFrame(rows).T
    found.loc["all"] = found.sum()
    shapes = found.loc["all", "gflop"] / found.loc["all", "products"]
    note = (
        f"Profile `{PROFILE}`, one thread: {peak / 1e9:.0f} GFLOP/s in products of 1024 × 1024 matrices, "
        f"{shapes:.0f} in products of the stages' own shapes; elementwise operations "
        + ", ".join(f"{rate / 1e9:.0f} GB/s on {size / 2**20:g} MiB" for size, rate in rates.items())
        + "."
    )
    return found, note


HEAD = "| stage | CPU s | GFLOP | GB | products at the peak rate, s | on their shapes, s | other traffic, s | gap |"


def main() -> dict[str, Any]:
    """The table, all numbers behind it, and as ratios the gaps: CPU seconds over products and traffic."""
    found, note = measured()
    gap = found["seconds"] / (found["products"] + found["traffic"])
    gap = gap.where(found["gflop"] > 0)  # nothing that torch counts: numpy
    lines = table(HEAD, *([name, *row, gap[name]] for name, row in found.iterrows()))
    # A stage of less than a second is its calls and its files.
    ratios = {
        f"stage {name} over its floor": gap[name] for name in gap.dropna().index if found.loc[name, "seconds"] >= 1
    }
    return {"table": [note, "", *lines], "stages": found.T.to_dict(), "ratios": ratios}
