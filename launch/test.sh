#!/usr/bin/env bash
# Set up, then run the checks: ruff, a smoke test on the newest Python that is installed, and the tests.
#
#   bash launch/test.sh [PYTEST FLAGS...]      with flags, pytest alone, for example tests/test_config.py -k nearest
set -euo pipefail

repo="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
python="$(bash "$repo/launch/setup.sh" test)"
export GLIBC_TUNABLES="${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}" # see quickstart.sh
cd "$repo"
if [[ $# -gt 0 ]]; then
  exec "$python" -m pytest -q -n 2 --dist worksteal "$@"
fi
"$python" -m ruff check .
bash launch/smoke.sh "$python"
exec "$python" -m pytest -q -n 2 --dist worksteal
