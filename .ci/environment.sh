# Makes .venv with what setup.cfg asks for; at once where that was done before.
#
#   ROOT=<checkout> EXTRAS=test,parity . .ci/environment.sh
#
# Sets PYTHON to the environment's interpreter. A stamp of the requirements tells whether the
# environment is up to date; an interrupted installation leaves none and is done again.

find_python() {
  for candidate in "${MLPERF_JAX_PYTHON:-}" python3.12 python3.13 python3.11 python3; do
    if [ -n "$candidate" ] && "$candidate" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then
      command -v "$candidate"
      return
    fi
  done
  echo "mlperf_jax: needs Python 3.11, 3.12 or 3.13 with venv; install one, or name it in MLPERF_JAX_PYTHON." >&2
  return 2
}

make_environment() {
  local venv="$ROOT/.venv" stamp wanted
  PYTHON="$venv/bin/python"
  stamp="$venv/installed"
  wanted="$EXTRAS $(cat "$ROOT/setup.cfg" "$ROOT/constraints.txt" "$ROOT/pyproject.toml" | cksum)"
  if [ -x "$PYTHON" ] && [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then
    return
  fi
  if [ -f "$stamp" ]; then # Extras asked for before stay.
    EXTRAS="$(printf '%s,%s' "$(cut -d' ' -f1 "$stamp")" "$EXTRAS" | tr ',' '\n' | sed '/^$/d' | sort -u | paste -sd, -)"
    wanted="$EXTRAS ${wanted#* }"
    if [ "$(cat "$stamp")" = "$wanted" ]; then return; fi
    rm "$stamp"
  fi
  local base
  base="$(find_python)"
  echo "mlperf_jax: installing into .venv (once; a few minutes) ..." >&2
  [ -x "$PYTHON" ] || "$base" -m venv "$venv"
  # An old pip takes many minutes to resolve what a new one resolves in one.
  "$PYTHON" -m pip install --quiet --quiet --upgrade pip
  "$PYTHON" -m pip install --quiet --quiet --constraint "$ROOT/constraints.txt" --editable "$ROOT${EXTRAS:+[$EXTRAS]}"
  printf '%s' "$wanted" > "$stamp"
}

make_environment
