#!/usr/bin/env bash
# Runs the tests, two at a time; arguments go to pytest. Tests marked slow run only when asked for.
#
#   bash launch/test.sh
#   bash launch/test.sh -m slow
#   bash launch/test.sh tests/test_config.py -k nearest
set -euo pipefail

repo="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
python="$(bash "$repo/launch/setup.sh" test)"
export GLIBC_TUNABLES="${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}" # see quickstart.sh
cd "$repo"
exec "$python" -m pytest -q -n 2 --dist worksteal "$@"
