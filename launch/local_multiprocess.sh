#!/usr/bin/env bash
# Trains with N processes on this machine: one for each GPU, or N on the CPU.
#
#   launch/local_multiprocess.sh N --config=configs/X.py --workdir=DIR [--config.key=value ...]
#
# Process 0 prints as it does alone; what the others print goes to stderr behind their number. SIGTERM
# and Ctrl-C are passed on: all processes save at the same step. The exit status is that of the process
# that ended for a reason of its own (`verdict` below). Run it from the repository.
#
# PYTHON         the interpreter (python)
# GRACE_SECONDS  how long the others may take to end once one has failed; longer than
#                config.distributed.heartbeat_timeout_seconds (150)
# JAX_PLATFORMS=cpu keeps to the CPU; JAX_NUM_CPU_DEVICES is the number of its devices for each process.
set -uo pipefail

PYTHON=${PYTHON:-python}
GRACE_SECONDS=${GRACE_SECONDS:-150}

refuse() {
  echo "error: $1" >&2
  exit 2
}

[[ ${1:-} =~ ^[1-9][0-9]*$ ]] ||
  refuse "the number of processes comes first: launch/local_multiprocess.sh N --config=configs/X.py --workdir=DIR"
count=$1
shift

gpus=()
if [[ ${JAX_PLATFORMS:-} != cpu ]]; then
  if [[ -n ${CUDA_VISIBLE_DEVICES+given} ]]; then
    [[ $CUDA_VISIBLE_DEVICES == -1 ]] || IFS=, read -r -a gpus <<<"$CUDA_VISIBLE_DEVICES"
  elif command -v nvidia-smi >/dev/null; then
    mapfile -t gpus < <(nvidia-smi --query-gpu=index --format=csv,noheader)
  fi
fi
((${#gpus[@]} == 0 || count <= ${#gpus[@]})) ||
  refuse "$count processes, but there are ${#gpus[@]} GPUs and each process takes one; give at most ${#gpus[@]}, or JAX_PLATFORMS=cpu"

port=$("$PYTHON" -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])') ||
  refuse "$PYTHON does not run; set PYTHON to the interpreter that has skin_jax"

pids=()
statuses=()
readers=()
asked=

# shellcheck disable=SC2329 # the traps call it
pass_on() {
  asked=$1
  for i in "${!pids[@]}"; do
    [[ -n ${statuses[i]:-} ]] || kill -s "$asked" "${pids[i]}" 2>/dev/null
  done
}

kill_the_rest() {
  for i in "${!pids[@]}"; do
    [[ -n ${statuses[i]:-} ]] || kill -s KILL -- "-${pids[i]}" 2>/dev/null
  done
}

prefixed() {
  trap '' INT TERM HUP # it must outlive the process whose last words it passes on
  while IFS= read -r line || [[ -n $line ]]; do
    printf '[%s] %s\n' "$1" "$line" >&2
  done
}

# The status of the process that ended for a reason of its own, the others following from it: bad
# input; killed or crashed; the watchdog; a failure; asked to end, everything saved; and last 134, which
# is how JAX ends the peers of a process that is gone.
verdict() {
  local status rank chosen=0 lowest=9
  for status in "${statuses[@]}"; do
    case $status in
      0) continue ;;
      2) rank=1 ;;
      75) rank=3 ;;
      143) rank=5 ;;
      130) rank=6 ;;
      134) rank=7 ;;
      killed) rank=8 status=1 ;;
      *) ((rank = status > 128 ? 2 : 4)) ;;
    esac
    ((rank >= lowest)) || { lowest=$rank chosen=$status; }
  done
  return "$chosen"
}

trap 'pass_on TERM' TERM HUP
trap 'pass_on INT' INT
trap kill_the_rest EXIT

# Job control gives every process a group of its own: a Ctrl-C of the terminal reaches this script
# alone, which passes it on once, and a process can be ended with everything that it started.
set -m
for ((i = 0; i < count && ${#asked} == 0; i++)); do
  command=("$PYTHON" -m skin_jax.main "$@"
    "--config.distributed.coordinator_address=localhost:$port"
    "--config.distributed.num_processes=$count" "--config.distributed.process_id=$i")
  [[ ${#gpus[@]} == 0 ]] || export CUDA_VISIBLE_DEVICES=${gpus[i]}
  if ((i == 0)); then
    "${command[@]}" </dev/null &
    pids+=($!)
  else
    exec {words}> >(prefixed "$i")
    readers+=($!)
    "${command[@]}" </dev/null >&"$words" 2>&1 &
    pids+=($!)
    exec {words}>&-
  fi
done

deadline=
while :; do
  running=0
  for i in "${!pids[@]}"; do
    [[ -z ${statuses[i]:-} ]] || continue
    if kill -0 "${pids[i]}" 2>/dev/null; then
      running=$((running + 1))
    else
      wait "${pids[i]}"
      statuses[i]=$?
      ((statuses[i] == 0)) || deadline=${deadline:-$((SECONDS + GRACE_SECONDS))}
    fi
  done
  ((running)) || break
  if [[ -n $deadline ]] && ((SECONDS >= deadline)); then
    echo "error: $running of $count processes did not end within $GRACE_SECONDS s of the first that failed; they are killed" >&2
    kill_the_rest
    for i in "${!pids[@]}"; do
      [[ -n ${statuses[i]:-} ]] || statuses[i]=killed
    done
    break
  fi
  sleep 0.1
done
wait "${readers[@]}" 2>/dev/null

verdict
status=$?
((status == 0)) || echo "the processes ended with status ${statuses[*]}" >&2
exit "$status"
