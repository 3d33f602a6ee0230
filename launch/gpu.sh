#!/usr/bin/env bash
# Install epo_jax with CUDA on a machine with NVIDIA GPUs, and run it on all of them.
#
#   bash launch/gpu.sh WORKDIR --config=configs/sotopia.py:llama3_8b --config.model.path=/models/llama3 [FLAGS...]
#
# The mesh of the preset, --config.mesh=1,-1,1, splits parameters over all GPUs. Set CUDA_VISIBLE_DEVICES to use only
# some.
#
# Preemption: on SIGTERM or Ctrl-C, the run saves a checkpoint after the iteration in flight and stops with status 75; a
# run that is killed loses that iteration. The same command resumes after the last checkpoint.
set -euo pipefail

repo="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
workdir="${1:?WORKDIR is missing}"
shift
[[ "$workdir" == /* ]] || workdir="$PWD/$workdir"

python="$(bash "$repo/launch/setup.sh" cuda)"
export XLA_PYTHON_CLIENT_MEM_FRACTION="${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.92}" # JAX preallocates 75% by default
cd "$repo"
exec "$python" -m epo_jax.main --workdir="$workdir" "$@"
