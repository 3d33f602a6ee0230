#!/usr/bin/env bash
# Run epo_jax as a SLURM job: one process a node, which uses all GPUs of the node.
#
#   sbatch --nodes=2 launch/slurm.sh WORKDIR --config=configs/sotopia.py:llama3_8b [FLAGS...]
#
# Submit the job from the repository, after `bash launch/setup.sh cuda` on a node that shares its file system. The
# workdir and the models must be on a file system that all nodes share.
#
# Preemption: SLURM sends SIGTERM two minutes before the time limit, and when it preempts the job. The run then saves a
# checkpoint after the iteration in flight and ends, and the job requeues itself. Started again, by SLURM or by hand, the
# run continues after its last checkpoint. If a node fails, the iteration in flight is lost.
#SBATCH --job-name=epo_jax
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

workdir="${1:?WORKDIR is missing}"
shift
cd "${SLURM_SUBMIT_DIR:?submit this script with sbatch}"

stopped=0
srun --kill-on-bad-exit=1 .venv/bin/python -m epo_jax.main --hosts=auto --workdir="$workdir" "$@" &
child=$!
# srun forwards the signal to every process.
trap 'stopped=1; kill -TERM "$child"' TERM
code=0
wait "$child" || code=$?
if ((stopped)); then # the signal interrupted the wait, and the processes are still saving
  code=0
  wait "$child" || code=$?
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
