#!/usr/bin/env bash
# From a fresh clone to a finished self-play run of SmolLM2 on the CPU.
#
#   bash launch/quickstart.sh [WORKDIR] [FLAGS...]      WORKDIR: runs/quickstart in the repository by default
#
# Flags go to epo_jax.main, for example --config.iterations=4.
set -euo pipefail

repo="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
workdir="$repo/runs/quickstart"
if [[ $# -gt 0 && "$1" != -* ]]; then
  workdir="$1"
  shift
fi
# A relative path is the caller's, and must still hold after the cd.
[[ "$workdir" == /* ]] || workdir="$PWD/$workdir"

python="$(bash "$repo/launch/setup.sh")"
# Memory in huge pages: XLA asks for gigabytes anew at every call, and 4 KiB pages cost it up to a tenth of the time.
export GLIBC_TUNABLES="${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}"
cd "$repo"
exec "$python" -m epo_jax.main --config=configs/sotopia.py:quickstart --workdir="$workdir" "$@"
