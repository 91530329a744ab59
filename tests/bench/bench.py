"""`make bench`: curvature, sampling and SIGMA beside their peers, stages beside their floor.

Printed and kept in results/work/bench.json. Each part is a module whose `main` returns what the file is to hold; single
numbers are printed.
"""

import json
import os
import platform
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # read when transformers is imported

import bench_curvature
import bench_sampling
import bench_sigma
import bench_stages
import torch
from spectral_collapse.record import paths, provenance


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
    """Runs the parts; what one measured is kept before the next begins, and keys of others stay as they are."""
    path = paths.results_root() / "bench.json"
    for part in (bench_stages, bench_sampling, bench_curvature, bench_sigma):
        measured = {"machine": machine()} | part.main()
        kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        provenance.write_text(path, json.dumps(kept | measured, indent=1) + "\n")
        print("\n" + "\n".join(f"{key}: {value:.3g}" for key, value in measured.items() if isinstance(value, float)))


if __name__ == "__main__":
    main()
