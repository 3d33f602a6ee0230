#!/usr/bin/env bash
# Set up, then train and evaluate SmolLM2 by self-play on the CPU.
#
#   bash launch/quickstart.sh [WORKDIR] [FLAGS...]      default WORKDIR: runs/quickstart in the repository
#
# FLAGS are passed to epo_jax.main, for example --config.iterations=4.
set -euo pipefail

repo="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
workdir="$repo/runs/quickstart"
if [[ $# -gt 0 && "$1" != -* ]]; then
  workdir="$1"
  shift
fi
# A relative path is relative to the caller's directory.
[[ "$workdir" == /* ]] || workdir="$PWD/$workdir"

python="$(bash "$repo/launch/setup.sh")"
# Huge pages: XLA allocates gigabytes at every call, and page faults of 4 KiB pages cost up to a tenth of the time.
export GLIBC_TUNABLES="${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}"
cd "$repo"
exec "$python" -m epo_jax.main --config=configs/sotopia.py:quickstart --workdir="$workdir" "$@"
