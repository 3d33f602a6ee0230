#!/usr/bin/env bash
# Create a TPU VM or a pod slice, install epo_jax on every worker, run it, and delete the TPU.
#
#   NAME=epo ZONE=us-east5-a TYPE=v5p-16 bash launch/tpu_vm.sh create
#   NAME=epo ZONE=us-east5-a bash launch/tpu_vm.sh install
#   NAME=epo ZONE=us-east5-a bash launch/tpu_vm.sh run /mnt/runs/one --config=configs/sotopia.py:llama3_8b FLAGS...
#   NAME=epo ZONE=us-east5-a bash launch/tpu_vm.sh delete
#
# TYPE counts TensorCores for v4 and v5p (v5p-16 has 8 chips, in the topology 2x2x2), and chips for v5e and v6e. VERSION
# is the software version of the TPU VM. The workdir and the models must be on a file system that all workers share,
# such as a mounted bucket or Filestore.
#
# Preemption: with SPOT=1, the slice may be preempted. On SIGTERM, the run saves a checkpoint after the iteration in
# flight and stops with status 75; a run that is killed loses that iteration. In both cases, create, install and run again with the
# same workdir: the run resumes after its last checkpoint, on a slice of any shape.
set -euo pipefail

name="${NAME:?set NAME to the name of the TPU}"
zone="${ZONE:?set ZONE to the zone of the TPU}"
repo="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
command="${1:?give a command: create, install, run or delete}"
shift

tpu() { gcloud compute tpus tpu-vm "$1" --zone="$zone" "${@:2}"; }
on_all_workers() { tpu ssh "$name" --worker=all --command="$1"; }

case "$command" in
  create)
    type="${TYPE:?set TYPE, for example v5p-16}"
    tpu create "$name" --accelerator-type="$type" --version="${VERSION:-v2-alpha-tpuv5}" ${SPOT:+--spot}
    ;;
  install)
    archive="$(mktemp --suffix=.tar.gz)"
    trap 'rm -f "$archive"' EXIT
    git -C "$repo" archive --format=tar.gz --prefix=epo_jax/ HEAD >"$archive"
    tpu scp "$archive" "$name:epo_jax.tar.gz" --worker=all
    on_all_workers 'tar -xzf epo_jax.tar.gz && bash epo_jax/launch/setup.sh tpu'
    ;;
  run)
    workdir="${1:?WORKDIR is missing}"
    shift
    flags="$(printf '%q ' --workdir="$workdir" "$@")"
    # All workers run the same command; with --hosts=auto they find each other.
    on_all_workers "cd epo_jax && .venv/bin/python -m epo_jax.main --hosts=auto $flags"
    ;;
  delete) tpu delete "$name" --quiet ;;
  *)
    echo "error: unknown command $command; use create, install, run or delete" >&2
    exit 2
    ;;
esac
