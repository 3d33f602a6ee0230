#!/usr/bin/env bash
# A TPU VM, or a whole pod slice: create it, install epo_jax on every worker, run, delete it.
#
#   NAME=epo ZONE=us-east5-a TYPE=v5p-16 bash launch/tpu_vm.sh create
#   NAME=epo ZONE=us-east5-a bash launch/tpu_vm.sh install
#   NAME=epo ZONE=us-east5-a bash launch/tpu_vm.sh run /mnt/runs/one --config=configs/sotopia.py:llama3_8b FLAGS...
#   NAME=epo ZONE=us-east5-a bash launch/tpu_vm.sh delete
#
# TYPE counts TensorCores for v4 and v5p (v5p-16: 8 chips, the topology 2x2x2), chips for v5e and v6e. The workdir
# must be one that all workers see, such as a mounted bucket or Filestore; model paths likewise. Over several hosts
# a run is compiled as a whole, which needs the FLAGS --config.rollout.compiled=True --config.evaluation.episodes=0
# --config.reward.process=potential --config.reward.combine=sum (evaluate afterwards, on one host).
#
# Preemption: with SPOT=1 the slice may be taken away. A worker that is asked to stop (SIGTERM) saves a checkpoint
# after the iteration in flight; one that is killed loses that iteration. Either way: create, install and run again
# with the same workdir, and the run goes on after its last checkpoint, on this slice or on one of another shape.
set -euo pipefail

name="${NAME:?the name of the TPU}"
zone="${ZONE:?its zone}"
repo="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
command="${1:?create, install, run or delete}"
shift

tpu() { gcloud compute tpus tpu-vm "$1" --zone="$zone" "${@:2}"; }
everywhere() { tpu ssh "$name" --worker=all --command="$1"; }

case "$command" in
  create)
    tpu create "$name" --accelerator-type="${TYPE:?for example v5p-16}" --version="${VERSION:-v2-alpha-tpuv5}" ${SPOT:+--spot}
    ;;
  install)
    archive="$(mktemp --suffix=.tar.gz)"
    trap 'rm -f "$archive"' EXIT
    git -C "$repo" archive --format=tar.gz --prefix=epo_jax/ HEAD >"$archive"
    tpu scp "$archive" "$name:epo_jax.tar.gz" --worker=all
    everywhere 'tar -xzf epo_jax.tar.gz && bash epo_jax/launch/setup.sh tpu'
    ;;
  run)
    workdir="${1:?the workdir}"
    shift
    flags="$(printf '%q ' --workdir="$workdir" "$@")"
    # All workers run the same command; --hosts=auto has them find each other.
    everywhere "cd epo_jax && .venv/bin/python -m epo_jax.main --hosts=auto $flags"
    ;;
  delete) tpu delete "$name" --quiet ;;
  *)
    echo "unknown command $command: create, install, run or delete" >&2
    exit 2
    ;;
esac
