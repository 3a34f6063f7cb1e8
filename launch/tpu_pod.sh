#!/usr/bin/env bash
# Trains on a Cloud TPU slice of one or many hosts (v4, v5e, v5p, v6e), from your own machine.
#
#   launch/tpu_pod.sh up my-pod --type v6e-16 --spot --zone us-east5-b --bucket my-bucket -- \
#     configs/grpo.yaml run_dir=/mnt/my-bucket/grpo mesh.fsdp=16
#   launch/tpu_pod.sh log my-pod --zone us-east5-b       in another terminal: what process 0 prints
#   launch/tpu_pod.sh delete my-pod --zone us-east5-b    ends what you pay for
#
# Needs: gcloud, logged in, with the Cloud TPU API enabled and quota for TYPE in ZONE; and a folder
# that every host sees, for run_dir: a bucket, mounted at /mnt/BUCKET on every host. One in the same
# region, with hierarchical namespace, in which renaming a checkpoint is one operation:
#
#   gcloud storage buckets create gs://my-bucket --location=us-east5 \
#     --uniform-bucket-level-access --enable-hierarchical-namespace
#
# up is these, one after the other; each may be given again, and does what is missing:
#   create   ask for the slice, as a queued resource, and wait for it
#   setup    copy this checkout to every host, install it, mount the bucket
#   run      start the same command on every host, where it outlives your connection and is started
#            again when it saved and stopped, lost a host, or was killed
#   watch    wait for the end; when the slice is preempted, or a host restarts: create, setup, run
# and  log, stop (save, then end), delete.
#
# Options: --project PROJECT; --runtime VERSION, of the TPU's software, by default that of TYPE;
# --delete, the slice after up or watch has ended well; --dry-run, only print what gcloud would be
# told. What ssh needs besides (--internal-ip, --ssh-key-file=FILE) goes into TPU_SSH_FLAGS.
# Several slices, and v7x, are for GKE: launch/xpk.sh, launch/gke_jobset.yaml.

set -uo pipefail

usage() {
  cat >&2 <<'END'
usage: launch/tpu_pod.sh create|setup|run|watch|up|log|stop|delete NAME [--type TYPE] [--spot]
         [--zone ZONE] [--project PROJECT] [--runtime VERSION] [--bucket BUCKET] [--delete]
         [--dry-run] [-- [CONFIG] key=value ... run_dir=FOLDER]
END
  exit 2
}

if [[ ${1-} =~ ^(-h|--help)$ ]]; then
  sed -n '2,/^$/s/^# \{0,1\}//p' "$0"
  exit 0
fi

say() { echo "launch/tpu_pod.sh: $1" >&2; }

fail() {
  say "error: $1"
  exit 2
}

checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
poll_seconds=${POLL_SECONDS:-60}
read -ra ssh_flags <<<"${TPU_SSH_FLAGS:-}"
type='' spot='' runtime='' bucket='' delete_after='' dry_run=''
where=() arguments=()

parse() {
  (($# >= 2)) || usage
  command=$1 name=$2
  shift 2
  [[ $name =~ ^[a-z]([-a-z0-9]{0,61}[a-z0-9])?$ ]] ||
    fail "a name has lower-case letters, digits and -, and begins with a letter; got '$name'"
  while (($#)); do
    case $1 in
      --spot) spot=yes ;;
      --delete) delete_after=yes ;;
      --dry-run) dry_run=yes ;;
      --type | --runtime | --bucket | --zone | --project)
        [[ -n ${2:-} && ${2:-} != -* ]] || fail "$1 needs a value"
        case $1 in
          --type) type=$2 ;;
          --runtime) runtime=$2 ;;
          --bucket) bucket=${2#gs://} ;;
          *) where+=("$1=$2") ;;
        esac
        shift
        ;;
      --)
        shift
        arguments=("$@")
        return
        ;;
      *) fail "no option '$1'" ;;
    esac
    shift
  done
}

check_type() {
  [[ -n $type ]] || fail "$command needs --type, such as v6e-16"
  if [[ -z $runtime ]]; then
    case $type in
      v6e-*) runtime=v2-alpha-tpuv6e ;;
      v5p-*) runtime=v2-alpha-tpuv5 ;;
      v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
      v4-*) runtime=tpu-ubuntu2204-base ;;
      *) fail "no runtime is known for --type $type; name it with --runtime" ;;
    esac
  fi
}

check_arguments() {
  local argument run_dir=''
  for argument in ${arguments[@]+"${arguments[@]}"}; do
    [[ $argument != run_dir=* ]] || run_dir=${argument#run_dir=}
  done
  case $run_dir in
    '') fail "$command needs -- [CONFIG] key=value ... run_dir=FOLDER, which every host sees" ;;
    gs://*) fail "run_dir is a folder: give --bucket BUCKET, and run_dir=/mnt/BUCKET/..." ;;
    /*) ;;
    *) fail "run_dir must be the whole path of a folder that every host sees; got '$run_dir'" ;;
  esac
  if [[ -n $bucket && $run_dir/ != "/mnt/$bucket/"* ]]; then
    fail "the bucket is mounted at /mnt/$bucket, where run_dir=$run_dir is not"
  fi
}

# Runs gcloud compute tpus, or prints it. The first two words are the group and the verb.
tpus() {
  local group=$1 verb=$2
  shift 2
  set -- gcloud compute tpus "$group" "$verb" "$@" ${where[@]+"${where[@]}"} --quiet
  if [[ -n $dry_run ]]; then
    printf '%q ' "$@"
    echo
  else
    command "$@"
  fi
}

# Runs a command line on workers: `all`, or the number of one.
on_workers() {
  tpus tpu-vm ssh "$name" --worker="$1" --command="$2" ${ssh_flags[@]+"${ssh_flags[@]}"}
}

# The state of a queued-resource or tpu-vm named NAME; ABSENT if there is none.
state_of() {
  local path='state' answer
  [[ $1 == tpu-vm ]] || path='state.state'
  if [[ -n $dry_run ]]; then
    echo ABSENT
  elif answer=$(tpus "$1" describe "$name" --format="value($path)" 2>&1); then
    echo "${answer##*$'\n'}"
  elif [[ $answer == *NOT_FOUND* || $answer == *"not found"* ]]; then
    echo ABSENT
  else
    echo "$answer" >&2
    return 1
  fi
}

# Asks for the slice unless it is there or on its way, and waits for it.
create() {
  local state asked=''
  while :; do
    state=$(state_of queued-resources) || return
    case $state in
      ACTIVE) return ;;
      ABSENT | SUSPENDED | FAILED)
        if [[ -n $asked ]]; then
          say "$name is $state: 'gcloud compute tpus queued-resources describe $name' says why"
          return 1
        fi
        [[ $state == ABSENT ]] || tpus queued-resources delete "$name" --force || return
        tpus queued-resources create "$name" --node-id="$name" --accelerator-type="$type" \
          --runtime-version="$runtime" ${spot:+--spot} || return
        [[ -z $dry_run ]] || return 0
        asked=yes
        ;;
      *) say "$name is $state" ;;
    esac
    sleep "$poll_seconds"
  done
}

# Copies what git knows of the checkout, or would not ignore, and installs it.
setup() {
  local archive
  archive=$(mktemp)
  (
    cd "$checkout" && git ls-files -z --cached --others --exclude-standard |
      while IFS= read -r -d '' file; do [[ ! -e $file ]] || printf '%s\0' "$file"; done |
      tar -czf "$archive" --null -T -
  ) && tpus tpu-vm scp "$archive" "$name:rljax.tar.gz" --worker=all \
    ${ssh_flags[@]+"${ssh_flags[@]}"} &&
    on_workers all "mkdir -p rljax && tar -xzf rljax.tar.gz -C rljax" &&
    on_workers all "rljax/launch/tpu_worker.sh setup $bucket"
  local code=$?
  rm "$archive"
  return "$code"
}

run() {
  on_workers all "rljax/launch/tpu_worker.sh start$(printf ' %q' "${arguments[@]}")"
}

stop() {
  on_workers all 'rljax/launch/tpu_worker.sh stop'
}

log() {
  on_workers 0 'rljax/launch/tpu_worker.sh log'
}

delete() {
  local state
  state=$(state_of queued-resources) || return
  if [[ $state != ABSENT || -n $dry_run ]]; then tpus queued-resources delete "$name" --force; fi
}

# Waits for the end of the run, and brings back what was lost. Returns the run's exit code.
watch() {
  local queued node workers ended
  [[ -z $dry_run ]] || return 0
  while :; do
    if ! queued=$(state_of queued-resources) || ! node=$(state_of tpu-vm); then
      say "no answer from gcloud; trying again"
    elif [[ $queued/$node == ACTIVE/READY ]]; then
      workers=$(on_workers all \
        "rljax/launch/tpu_worker.sh status || echo worker \$(hostname) absent") ||
        say "not every host answered"
      ended=$(sed -n 's/^worker .* ended \([0-9]*\)$/\1/p' <<<"$workers" | sort -n | tail -n 1)
      if [[ $workers == *" absent"* ]]; then
        say "a host was restarted: starting the run on it"
        setup && run
      elif [[ -n $ended && $workers != *" running"* ]]; then
        say "the run ended with exit code $ended"
        return "$ended"
      elif ((${ended:-0})); then
        say "a host ended with exit code $ended: stopping the others, which would wait for it"
        stop
        return "$ended"
      fi
    elif [[ $queued/$node =~ ^(ABSENT|SUSPENDED|FAILED)/|/(ABSENT|PREEMPTED|TERMINATED)$ ]]; then
      say "$name was preempted or deleted: asking for it anew"
      delete && create && setup && run
    else
      say "$name is $queued, its machines are $node"
    fi
    sleep "$poll_seconds"
  done
}

parse "$@"
case $command in create | watch | up) check_type ;; esac
case $command in run | watch | up) check_arguments ;; esac
[[ -n $dry_run ]] || command -v gcloud >/dev/null || fail "gcloud is not installed"
case $command in
  create) create ;;
  setup) setup ;;
  run) run ;;
  watch) watch ;;
  up) create && setup && run && watch ;;
  log) log ;;
  stop) stop ;;
  delete) delete ;;
  *) usage ;;
esac
code=$?
if [[ -n $delete_after && $code == 0 && $command =~ ^(watch|up)$ ]]; then delete; fi
exit "$code"
