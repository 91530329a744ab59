#!/bin/sh
# The smoke graph on a real Slurm: Munge, controller and one node on this host, as root, removed at the end.
#   apt-get install --no-install-recommends slurmctld slurmd slurm-client munge
#   make setup && sh tests/system/cluster/slurm.sh
set -eu
cd "$(dirname "$0")/../../.."
for tool in munged slurmctld slurmd sbatch; do
    command -v $tool >/dev/null || {
        echo "$tool was not found: install slurmctld, slurmd, slurm-client and munge (Debian's names)."
        exit 1
    }
done
[ "$(id -u)" = 0 ] || { echo "slurmd needs root: run this as root, in a container for instance."; exit 1; }
conf=/etc/slurm/slurm.conf # where the steps of a job look; their environment is made clean of Slurm's variables
[ ! -e "$conf" ] || { echo "$conf exists: this host has a Slurm of its own, use that one."; exit 1; }
[ -e .venv/ready ] || { echo ".venv is missing: run make setup first."; exit 1; }

work=$(mktemp -d)
chmod 711 "$work" # Munge wants its socket within reach of all
stop() {
    for daemon in slurmd slurmctld munged; do
        [ -s "$work/$daemon.pid" ] && kill "$(cat "$work/$daemon.pid")" 2>/dev/null
    done
    sleep 1
    rm -rf "$work" "$conf" /etc/slurm/gres.conf
}
trap stop EXIT
trap 'exit 1' INT TERM

dd if=/dev/urandom of="$work/munge.key" bs=128 count=1 2>/dev/null
chmod 600 "$work/munge.key"
munged --key-file="$work/munge.key" --socket="$work/munge.socket" --pid-file="$work/munged.pid" \
    --log-file="$work/munged.log" --seed-file="$work/munge.seed"

host=$(hostname -s)
cpus=$(nproc --all)
# What slurmd itself finds, less a tenth for the system.
memory=$(($(slurmd -C | sed -n 's/.*RealMemory=\([0-9]*\).*/\1/p') * 9 / 10))
mkdir -p /etc/slurm
cat >"$conf" <<END
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
AuthInfo=socket=$work/munge.socket
StateSaveLocation=$work/state
SlurmdSpoolDir=$work/spool
SlurmctldPidFile=$work/slurmctld.pid
SlurmdPidFile=$work/slurmd.pid
SlurmctldLogFile=$work/slurmctld.log
SlurmdLogFile=$work/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SchedulerParameters=sched_interval=5
MinJobAge=100000
GresTypes=gpu
NodeName=$host NodeAddr=127.0.0.1 CPUs=$cpus RealMemory=$memory Gres=gpu:1
PartitionName=main Nodes=$host Default=YES MaxTime=INFINITE
END
echo "Name=gpu File=/dev/null" >/etc/slurm/gres.conf # a GPU that is counted and is not there
mkdir "$work/state" "$work/spool" "$work/profile"
slurmctld
slurmd
for second in 1 2 3 4 5 6 7 8 9 10; do
    sinfo --noheader --states=idle 2>/dev/null | grep -q idle && break
    sleep 1
done
sinfo --Node --long

# As a user would edit it: the base models ask for a GPU.
sed '/^  baseline:/s/gpu: 0/gpu: 1/' params/cluster/slurm/config.yaml >"$work/profile/config.yaml"
# The records of the user are not touched.
export SPECTRAL_COLLAPSE_RESULTS="$work/results" SPECTRAL_COLLAPSE_GENERATED="$work/generated" HF_HUB_OFFLINE=1
# One host keeps no accounts and no database of jobs that have ended.
.venv/bin/python -m snakemake --workflow-profile "$work/profile" --slurm-no-account --slurm-status-command squeue \
    --slurm-init-seconds-before-status-checks 5 --latency-wait 10 --config profile=smoke -- results
gpus=$(scontrol show job | grep -c 'TresPerJob=gres:gpu:1' || true)
jobs=$(grep -c _slurm_rpc_submit_batch_job "$work/slurmctld.log")
[ -s "$work/generated/smoke/numbers.tex" ] && [ "$gpus" = 2 ] &&
    echo "The smoke graph ran as $jobs Slurm jobs, the two base models with a GPU each."
