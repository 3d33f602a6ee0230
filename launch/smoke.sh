#!/usr/bin/env bash
# Install the package, as a user does, into a fresh environment of the newest Python on this machine, and run a tiny
# experiment from an empty folder. Do nothing if the tests run on that Python.
#
#   bash launch/smoke.sh [PYTHON]      PYTHON: the Python of the tests
set -euo pipefail
unset PYTHONPATH

repo="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
version_of() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null; }

newest=
for minor in 13 12 11; do # the versions that setup.py names
  for candidate in "python3.$minor" "${PYENV_ROOT:-$HOME/.pyenv}/versions/3.$minor."*/bin/python; do
    if [[ "$(version_of "$candidate")" == "3.$minor" ]]; then
      newest="$candidate"
      break 2
    fi
  done
done
if [[ -z "$newest" || "$(version_of "$newest")" == "$(version_of "${1:-false}")" ]]; then
  echo 'smoke test: no newer Python is installed'
  exit 0
fi

folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
echo "smoke test: a fresh install on Python $(version_of "$newest")"
mkdir "$folder/source" "$folder/empty"
cp -r "$repo"/{epo_jax,configs,setup.py,pyproject.toml,README.md,LICENSE} "$folder/source"
"$newest" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check "$folder/source"
cd "$folder/empty"
"$folder/venv/bin/epo" train --config=sotopia:tiny --workdir=run --config.iterations=1 --config.evaluation.episodes=2
"$folder/venv/bin/python" -c 'import epo_jax, jax; print("smoke test: epo_jax", epo_jax.__version__, "jax", jax.__version__)'
