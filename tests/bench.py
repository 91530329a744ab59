"""`make bench`: cost and error of curvature and SIGMA beside their peers, printed and kept in results/bench/bench.json.

Each part is a module with a function `measure` that prints its tables and returns what the file is to hold.
"""

import importlib
import importlib.util
import json
import os
import platform
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # read when transformers is imported

import torch
from spectral_collapse import paths, provenance

PARTS = ("bench_curvature", "bench_sigma")


def machine() -> dict[str, str | int]:
    """What the times were taken on."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def main() -> None:
    """Runs every part that is there; what a part does not measure stays in the file as it is."""
    path = paths.results_root() / "bench" / "bench.json"
    for name in PARTS:
        if importlib.util.find_spec(name) is None:
            continue
        measured = importlib.import_module(name).measure()
        kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        provenance.write_text(path, json.dumps(kept | {"machine": machine()} | measured, indent=1) + "\n")
    print(f"\nwritten to {path.relative_to(paths.ROOT) if path.is_relative_to(paths.ROOT) else path}")


if __name__ == "__main__":
    main()
