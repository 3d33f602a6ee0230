#!/usr/bin/env bash
# Run epo_jax as a SLURM job with one process per node, which uses all GPUs of the node.
#
#   sbatch --nodes=2 launch/slurm.sh WORKDIR --config=configs/sotopia.py:llama3_8b [FLAGS...]
#
# Submit the job from the repository, after `bash launch/setup.sh cuda` on a node that shares its file system. The
# workdir and the models must be on a file system that all nodes share.
#
# Preemption: SLURM sends SIGTERM 30 minutes before the time limit, and when it preempts the job. The run then saves a
# checkpoint after the iteration in flight and stops with status 75, upon which the job requeues itself. When it starts
# again, the run resumes after its last checkpoint. A run that ends with another status is not requeued. If an iteration takes longer, pass a longer notice, such as sbatch --signal=B:TERM@3600;
# otherwise SLURM kills the job at its time limit, and it is not requeued. If a node fails, SLURM requeues the job, and
# only the iteration in flight is lost.
#SBATCH --job-name=epo_jax
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@1800
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

workdir="${1:?WORKDIR is missing}"
shift
cd "${SLURM_SUBMIT_DIR:?submit this script with sbatch}"

# By default, JAX gives a process under SLURM one GPU only.
gpus="${SLURM_GPUS_ON_NODE:?the job has no GPUs}"
export JAX_LOCAL_DEVICE_IDS="${JAX_LOCAL_DEVICE_IDS:-$(seq -s, 0 $((gpus - 1)))}"

unfinished=75 # the status of a run that was stopped, see epo_jax/runtime/errors.py
stopped=0
srun --kill-on-bad-exit=1 .venv/bin/python -m epo_jax.main --hosts=auto --workdir="$workdir" "$@" &
child=$!
# On SIGTERM, srun forwards the signal to every process.
trap 'stopped=1; kill -TERM "$child"' TERM
code=0
wait "$child" || code=$?
if ((stopped)); then # the signal interrupted the wait, and the processes are still saving
  code=0
  wait "$child" || code=$?
fi
# When the first process ends, srun ends the others by signals, whose statuses are larger than 75.
if ((code == unfinished || stopped && code > 128)); then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
