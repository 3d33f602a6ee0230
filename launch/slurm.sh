#!/usr/bin/env bash
# A SLURM job: one process a node, all its GPUs.
#
#   sbatch --nodes=2 launch/slurm.sh WORKDIR --config=configs/sotopia.py:llama3_8b [FLAGS...]
#
# Submit it from the repository, after `bash launch/setup.sh cuda` on a node that sees the same files; the workdir
# must lie where all nodes see it. Several nodes run one compiled program, which needs the FLAGS
# --config.rollout.compiled=True --config.evaluation.episodes=0 --config.reward.process=potential
# --config.reward.combine=sum.
#
# Preemption: SLURM signals two minutes before the time is over (and on preemption); the run then saves a checkpoint
# after the iteration in flight and ends, and the job puts itself back into the queue. Started again, by SLURM or by
# hand, it goes on after the last checkpoint. A node that dies loses the iteration in flight.
#SBATCH --job-name=epo_jax
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

workdir="${1:?the workdir}"
shift
cd "${SLURM_SUBMIT_DIR:?start it with sbatch}"

stopped=0
srun --kill-on-bad-exit=1 .venv/bin/python -m epo_jax.main --hosts=auto --workdir="$workdir" "$@" &
child=$!
# srun hands the signal on to every process.
trap 'stopped=1; kill -TERM "$child"' TERM
code=0
wait "$child" || code=$?
if ((stopped)); then # the wait ended with the signal: the processes are still saving
  code=0
  wait "$child" || code=$?
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
