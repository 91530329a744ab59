#!/bin/sh
# Every test but the slow ones (`make slow`): the smoke profile from corpus to numbers, the notebooks that it leaves out
# against their outputs, then the library, the workflow and the paper. Results go to a folder of their own.
set -eu
cd "$(dirname "$0")/.."
python=.venv/bin/python
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# Two workers with two threads each would compete for two cores.
export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1
# Kernels over IPC, without progress bars.
export JUPYTER_DEFAULT_PROVISIONER_NAME=ipc TQDM_DISABLE=1
export SPECTRAL_COLLAPSE_RESULTS="$work/results" SPECTRAL_COLLAPSE_GENERATED="$work/generated"

echo "== The smoke profile, from corpus to numbers"
$python -m snakemake --workflow-profile params/cluster/default --quiet rules host --config profile=smoke -- results
echo "== The notebooks that it leaves out, against their outputs"
$python -m pytest -n 2 --dist loadscope --nbval-lax --nbval-cell-timeout=600 notebooks/0[0569]_*.ipynb notebooks/10_*.ipynb
echo "== The library, the workflow and the paper"
$python -m pytest -n 2 --dist loadfile -m "not slow" tests
echo "== The numerics with the kernels of an older processor, two threads and other hashes"
# Chosen by environment variables on x86-64, where every processor has them; elsewhere they are ignored.
export OPENBLAS_CORETYPE=Prescott MKL_CBWR=COMPATIBLE ATEN_CPU_CAPABILITY=default OMP_NUM_THREADS=2 PYTHONHASHSEED=1
$python -m pytest -m "numerics and not slow" $(grep -rl --include='*.py' 'mark.numerics' tests)
