# shellcheck shell=bash
# What the scripts share. Sourced from the repository root.

# Downloads stay here, so that a second clone and a later run need no network.
# shellcheck disable=SC2034
cache="${XDG_CACHE_HOME:-$HOME/.cache}/blip2"
# The finished programs look for .libtorch/ beside target/, so target/ stays where it is.
unset CARGO_TARGET_DIR

die() {
  printf 'blip2: %s\n' "$*" >&2
  exit 1
}

have() { command -v "$1" >/dev/null 2>&1; }

# needs TEST PROGRAM...: where one of these programs or root is missing, TEST is left out, and says so.
needs() {
  local test=$1 program
  shift
  for program in "$@"; do
    if ! have "$program"; then
      echo "$test: left out, because $program is not installed; scripts/$test --help says from where"
      exit
    fi
  done
  if [ "$(id -u)" != 0 ]; then
    echo "$test: left out, because it wants root"
    exit
  fi
}

# The comment at the head of the script.
usage() { sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"; }

# step WHAT HOW_LONG COMMAND...: says what comes and how long it usually takes, does it, says how long it took.
step() {
  local what=$1 usually=$2 start=$SECONDS
  shift 2
  printf '\n==> %s (usually %s)\n' "$what" "$usually"
  "$@"
  printf '    %s: %d s\n' "$what" $((SECONDS - start))
}
