#!/usr/bin/env bash
# Shows that launch/slurm.sbatch does what it says, under a Slurm of its own on this machine:
# munged, slurmctld and slurmd over loopback. Every run is a job of TASKS tasks (default 2).
#
#   apt-get install --no-install-recommends slurmctld slurmd slurm-client munge     # Debian
#   benchmarks/slurm.sh              # a table of runs; exit code 1 if one is not as expected
#   TASKS=1 benchmarks/slurm.sh
#
# Needs: root, as in a container (no systemd), and the environment that holds rljax active. Its
# folder, with the logs, stays only where something is not as expected.

set -uo pipefail

(($# == 0)) || { echo "usage: [TASKS=N] benchmarks/slurm.sh" >&2; exit 2; }
tasks=${TASKS:-2}
checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
folder=$(mktemp -d)
host=$(hostname -s)
export SLURM_CONF=$folder/slurm.conf

start_slurm() {
  mkdir "$folder/state" "$folder/spool"
  head -c 1024 /dev/urandom >"$folder/munge.key"
  chmod 400 "$folder/munge.key"
  cat >"$SLURM_CONF" <<END
ClusterName=loopback
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=16817
SlurmdPort=16818
SlurmUser=root
AuthInfo=socket=$folder/munge.socket
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
NodeName=$host NodeAddr=127.0.0.1 CPUs=$((2 * tasks))
PartitionName=all Nodes=ALL Default=YES State=UP
END
  munged --force --foreground --key-file="$folder/munge.key" --socket="$folder/munge.socket" \
    --pid-file="$folder/munged.pid" --log-file="$folder/munged.log" \
    --seed-file="$folder/munged.seed" &
  daemons=($!)
  slurmctld -D &
  daemons+=($!)
  slurmd -D &
  daemons+=($!)
  for _ in {1..60}; do
    if [[ $(sinfo --noheader --format=%T 2>&1) == idle ]]; then return; fi
    sleep 0.5
  done
  echo "benchmarks/slurm.sh: Slurm does not come up; see $folder" >&2
  return 1
}

stop_slurm() {
  scancel --user=root
  sleep 1
  kill "${daemons[@]}"
  wait "${daemons[@]}"
}

# Submits a run of the embedded task, cut short.
submit() {
  local run=$1
  shift
  sbatch --parsable --chdir="$folder" --ntasks-per-node="$tasks" "$checkout/launch/slurm.sbatch" \
    "$checkout/configs/addition.yaml" "models.policy={fn: llama, layers: 1, width: 16, heads: 1}" \
    warm_start.steps=2 warm_start.buckets=1 warm_start.optimizer.warmup_steps=0 \
    data.prompts_per_step=8 evaluation.prompts=8 checkpoint.every_steps=1 \
    run_dir="$folder/$run" "$@"
}

# One field of a job.
field() {
  scontrol show job "$1" | tr ' ' '\n' | sed -n "s/^$2=//p"
}

steps_of() {
  cat "$folder/$1/metrics.jsonl" 2>/dev/null | grep -c '"step"'
}

# Waits up to ten minutes until a command succeeds.
await() {
  local deadline=$((SECONDS + 600))
  until "$@"; do
    ((SECONDS < deadline)) || return 1
    sleep 0.5
  done
}

is() { [[ $(field "$1" JobState) =~ ^($2)$ ]]; }
ended() { is "$1" 'COMPLETED|FAILED|CANCELLED|TIMEOUT'; }

# Waits for the first steps of a run. Fails if its job ends before.
steps() {
  await begun_or_ended "$1" "$2" && ! ended "$2"
}
begun_or_ended() { (($(steps_of "$1") >= 2)) || ended "$2"; }

# A job that was put back begins two minutes later, unless told to now; where that is too soon,
# slurmd takes it for the one that has just ended.
hurry() {
  await is "$1" PENDING && sleep 5 && scontrol update JobId="$1" StartTime=now
}

row() { printf '%-34s %-10s %-10s %-9s %-6s %s\n' "$@"; }

# Prints a row of the table: what happened, and how the job ended, against what was expected.
report() {
  local what=$1 run=$2 job=$3 expected=$4 got as_expected
  await ended "$job"
  got="$(field "$job" JobState) $(field "$job" ExitCode) $(field "$job" Restarts)"
  as_expected=yes
  [[ $got == "$expected" ]] || as_expected="no: $expected" failed=yes
  # shellcheck disable=SC2086 # the three words of what was got
  row "$what" $got "$(steps_of "$run")" "$as_expected"
}

trap 'stop_slurm 2>/dev/null' EXIT
start_slurm 2>"$folder/daemons.log" || exit 1
failed=
row run state exit-code restarts steps as-expected

job=$(submit undisturbed steps=2)
report "undisturbed" undisturbed "$job" "COMPLETED 0:0 0"

job=$(submit mistaken steps=2 no_such_key=1)
report "a mistake in the config" mistaken "$job" "FAILED 2:0 0"

job=$(submit saved steps=40)
steps saved "$job" && scancel --signal=TERM "$job" && hurry "$job"
report "SIGTERM, as before the time limit" saved "$job" "COMPLETED 0:0 1"

job=$(submit killed steps=40)
steps killed "$job" && kill -KILL "$(pgrep --full --newest "rljax.launch.*$folder/killed")" &&
  hurry "$job"
report "one task killed" killed "$job" "COMPLETED 0:0 1"

job=$(submit cancelled steps=400)
steps cancelled "$job" && scancel "$job"
report "scancel" cancelled "$job" "CANCELLED 75:0 0"

if [[ -n $failed ]]; then
  echo "benchmarks/slurm.sh: not as expected; logs in $folder" >&2
  exit 1
fi
stop_slurm 2>/dev/null
trap - EXIT
rm -r "$folder"
