#!/usr/bin/env bash
# Runs a command and says what takes so long. What the command prints goes to LOG, and to the screen only if it fails.
#
#   show_progress.sh TITLE LOG COMMAND...
#
# On a terminal one line shows the seconds and what the command printed last; elsewhere there is a line for the title and
# one for the seconds. A command that takes less than two seconds is not mentioned.
set -uo pipefail

title=$1 log=$2
shift 2
SECONDS=0

watch() {
  local columns line
  # $$ is the script, also in this subshell: without it there is nothing to watch.
  while sleep 0.5 && kill -0 $$ 2>/dev/null; do
    ((SECONDS >= 2)) || continue
    if [[ ! -t 2 ]]; then
      printf '%s ...\n' "$title" >&2
      return
    fi
    columns=$(stty size <&2 2>/dev/null | cut -d ' ' -f 2)
    line="$title, $SECONDS s: $(tail -n 1 "$log" | tr '\r\t' '  ')"
    # One column less: a full line would wrap.
    ((${columns:-0} > 1)) || columns=80
    printf '\r%s\033[K' "${line:0:columns-1}" >&2
  done
}

finish() {
  kill "$watcher" 2>/dev/null
  wait "$watcher" 2>/dev/null
  [[ ! -t 2 ]] || printf '\r\033[K' >&2
}

mkdir -p "$(dirname "$log")"
: >"$log"
watch &
watcher=$!
trap finish EXIT
trap 'interrupted=1' INT
# In the foreground, so that an interrupt reaches it.
PYTHONUNBUFFERED=1 "$@" >"$log" 2>&1
status=$?
finish
trap - EXIT
if [[ -n ${interrupted:-} ]]; then
  printf '%s: interrupted after %d s; the same command goes on with it.\n' "$title" "$SECONDS" >&2
  exit 130
elif ((status != 0)); then
  # Not what says only that something went well: pip's downloads, ninja's finished files.
  grep -vE '^(\[[0-9]+/[0-9]+\] |Collecting |Requirement already | +(Downloading|Using cached|━))' "$log" >&2
  printf '%s: failed after %d s; everything it printed is in %s\n' "$title" "$SECONDS" "$log" >&2
elif ((SECONDS >= 2)); then
  printf '%s: %d s\n' "$title" "$SECONDS" >&2
fi
exit "$status"
