"""`make bench`: stages beside their floor; sampling, encoder, curvature and SIGMA beside their peers.

Each part is a module whose `main` returns `table` (lines for docs/performance.md), `ratios` (each under its name;
smaller is faster) and whatever else results/work/bench.json is to hold. `make bench-check` measures again and compares
the ratios with those of ratios.json, never times, which are the machine's.
"""

import json
import os
import platform
import sys
import time
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # read when transformers is imported
# CPU seconds of one thread are what other work on the machine disturbs least.
os.environ |= {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}

import bench_curvature
import bench_sampling
import bench_sigma
import bench_stages
import bench_text
import torch
from spectral_collapse.record import paths, provenance
from timing import slower

PARTS = {
    "stages": bench_stages,
    "sampling": bench_sampling,
    "encoder": bench_text,
    "curvature": bench_curvature,
    "sigma": bench_sigma,
}
DOCUMENT = paths.ROOT / "docs" / "performance.md"
RATIOS = Path(__file__).with_name("ratios.json")


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


def with_table(text: str, name: str, lines: list[str]) -> str:
    """The document with these lines between its markers of that name."""
    start, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
    head, rest = text.split(start)
    return head + start + "\n".join(lines) + "\n" + end + rest.split(end)[1]


def main(names: list[str], check: bool) -> int:
    """Runs the parts. Keeps tables, ratios and bench.json as each part ends; with `check` keeps nothing and compares.

    Names choose parts. Returns the exit status: 1 where something has become slower.
    """
    torch.set_num_threads(1)
    kept = json.loads(RATIOS.read_text(encoding="utf-8")) if RATIOS.exists() else {}
    path, worse = paths.results_root() / "bench.json", []
    for name in names or PARTS:
        start = time.perf_counter()
        found = PARTS[name].main()
        print(f"\n{name}, {time.perf_counter() - start:.0f} s\n" + "\n".join(found["table"]), flush=True)
        ratios = {ratio: round(float(value), 4) for ratio, value in found["ratios"].items()}
        if check:
            worse += slower(ratios, kept.get(name, {}))
            continue
        kept[name] = ratios
        provenance.write_text(RATIOS, json.dumps(kept, indent=1) + "\n")
        provenance.write_text(DOCUMENT, with_table(DOCUMENT.read_text(encoding="utf-8"), name, found["table"]))
        before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        written = before | {name: provenance.plain(found), "machine": machine()}
        provenance.write_text(path, json.dumps(written, indent=1) + "\n")
    if check:
        print("\nSlower than committed:\n" + "\n".join(worse) if worse else "\nNothing is slower than committed.")
    return int(bool(worse))


if __name__ == "__main__":
    chosen = sys.argv[1:]
    sys.exit(main([name for name in chosen if name != "--check"], "--check" in chosen))
