#!/usr/bin/env bash
# A machine with NVIDIA GPUs: installs epo_jax with CUDA and runs it on all of them.
#
#   bash launch/gpu.sh WORKDIR --config=configs/sotopia.py:llama3_8b --config.model.path=/models/llama3 [FLAGS...]
#
# --config.mesh=1,-1,1 (the preset's) splits parameters over all GPUs; CUDA_VISIBLE_DEVICES takes some of them only.
#
# Preemption: on SIGTERM the run saves a checkpoint after the iteration in flight and ends; killed, it
# loses that iteration. The same command goes on after the last checkpoint.
set -euo pipefail

repo="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
workdir="${1:?the workdir}"
shift
[[ "$workdir" == /* ]] || workdir="$PWD/$workdir"

python="$(bash "$repo/launch/setup.sh" cuda)"
export XLA_PYTHON_CLIENT_MEM_FRACTION="${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.92}" # sessions and training take turns
cd "$repo"
exec "$python" -m epo_jax.main --workdir="$workdir" "$@"
