#!/usr/bin/env bash
# Runs a command as N processes on this machine, each with simulated CPU devices, joined over
# loopback as the hosts of a pod are: for trying what many hosts do, without any.
#
#   launch/local_processes.sh 2 4 -- python -m rljax.launch run_dir=runs/two mesh.fsdp=8
#
# is 2 processes with 4 devices each (default 1).
#
# Needs: the environment that holds rljax active.
#
# The output of processes other than 0 has their number in front. Ctrl-C and SIGTERM go to all of
# them, once. The script ends when all have ended, with the highest of their exit codes: after 75
# the same command goes on. When one fails, the others have GRACE_SECONDS (default 60) to end, and
# are then killed; at once where the command cannot be run.

set -uo pipefail

usage() {
  echo "usage: launch/local_processes.sh PROCESSES [DEVICES_EACH] -- COMMAND [ARGUMENT ...]" >&2
  exit 2
}

if [[ ${1-} =~ ^(-h|--help)$ ]]; then
  sed -n '2,/^$/s/^# \{0,1\}//p' "$0"
  exit 0
fi

numbers=()
while (($#)) && [[ $1 != -- ]]; do
  [[ $1 =~ ^[1-9][0-9]{0,3}$ ]] || usage
  numbers+=("$1")
  shift
done
(($# >= 2 && ${#numbers[@]} >= 1 && ${#numbers[@]} <= 2)) || usage
shift
processes=${numbers[0]}
devices=${numbers[1]:-1}
grace_seconds=${GRACE_SECONDS:-60}

free_port='import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])'
port=$(python -c "$free_port") || exit 2
flags=
for flag in ${XLA_FLAGS:-}; do
  [[ $flag == --xla_force_host_platform_device_count=* ]] || flags+="$flag "
done
export XLA_FLAGS="$flags--xla_force_host_platform_device_count=$devices"
export NPROC=${NPROC:-$((2 * devices))} # with too few threads, devices can wait for ever
export JAX_PLATFORMS=cpu JAX_COORDINATOR_ADDRESS=127.0.0.1:$port JAX_NUM_PROCESSES=$processes

# Runs a command, with a number in front of each line of its output.
numbered() {
  local number=$1 line
  shift
  trap : INT TERM # for the command to end first
  "$@" 2>&1 | (
    trap '' INT TERM
    while IFS= read -r line || [[ -n $line ]]; do printf '[%s] %s\n' "$number" "$line"; done
  )
  return "${PIPESTATUS[0]}"
}

pids=()
set -m # each process in a group of its own, so that a signal reaches it once, through this script
for ((i = 0; i < processes; i++)); do
  export JAX_PROCESS_ID=$i
  if ((i == 0)); then "$@" </dev/null & else numbered "$i" "$@" </dev/null & fi
  pids[i]=$!
done
set +m
exec 3>&2 2>/dev/null # the shell's own notices of killed processes

# Sends a signal to every process that still runs, and to its children.
send() {
  local pid
  for pid in "${pids[@]}"; do
    [[ -z $pid ]] || kill -s "$1" -- "-$pid"
  done
}
trap 'send INT' INT
trap 'send TERM' TERM

worst=0
running=$processes
deadline=
while ((running)); do
  sleep 0.1
  for ((i = 0; i < processes; i++)); do
    pid=${pids[i]}
    if [[ -z $pid ]] || kill -0 "$pid"; then continue; fi
    wait "$pid"
    code=$?
    pids[i]=
    running=$((running - 1))
    if ((code == 0)) || [[ $deadline == past ]]; then continue; fi
    echo "launch/local_processes.sh: process $i ended with exit code $code" >&3
    ((code <= worst)) || worst=$code
    if ((code == 126 || code == 127)); then
      deadline=$SECONDS
    else
      deadline=${deadline:-$((SECONDS + grace_seconds))}
    fi
  done
  if [[ -n $deadline && $deadline != past ]] && ((running && SECONDS >= deadline)); then
    echo "launch/local_processes.sh: killing the $running that still run" >&3
    deadline=past
    send KILL
  fi
done
exit "$worst"
