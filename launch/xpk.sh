#!/usr/bin/env bash
# Trains on one or several TPU slices of a GKE cluster, through xpk, which writes the JobSet.
#
#   launch/xpk.sh grpo-1 --cluster my-cluster --tpu-type v6e-64 --slices 2 --storage runs -- \
#     configs/grpo.yaml run_dir=/runs/grpo mesh.data=2 mesh.fsdp=64
#
# Needs: xpk 1.0 or newer, gcloud, kubectl; a cluster that `xpk cluster create` made; and a folder
# that every host sees, for run_dir. A bucket at /runs, once for a cluster:
#
#   xpk storage attach runs --cluster=my-cluster --type=gcsfuse --bucket=my-bucket \
#     --mount-point=/runs --readonly=false --size=1 --auto-mount=false \
#     --mount-options=implicit-dirs,rename-dir-limit=100000,metadata-cache-ttl-secs=0
#
# Options: --slices N (default 1); --storage NAME, as attached; --zone, --project; --restarts N
# (default 100): what saved before it was preempted, or lost a host, starts again and resumes, while
# what you can put right, exit code 2, ends the workload; --image IMAGE, with rljax[tpu] and your
# configs in its working directory. Without one, xpk builds an image of this checkout, and every
# start installs it. --dry-run: print the command of xpk.
#
# A workload of the same name is left alone, so the command may be given again. Its log is in the
# console that xpk names; it ends with: xpk workload delete --cluster=my-cluster --workload=grpo-1

set -uo pipefail

usage() {
  cat >&2 <<'END'
usage: launch/xpk.sh NAME --cluster CLUSTER --tpu-type TYPE [--slices N] [--storage NAME]
         [--zone ZONE] [--project PROJECT] [--restarts N] [--image IMAGE] [--dry-run]
         -- [CONFIG] key=value ... run_dir=FOLDER
END
  exit 2
}

if [[ ${1-} =~ ^(-h|--help)$ ]]; then
  sed -n '2,/^$/s/^# \{0,1\}//p' "$0"
  exit 0
fi

fail() {
  echo "launch/xpk.sh: error: $1" >&2
  exit 2
}

checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
(($#)) || usage
name=$1
shift
[[ $name =~ ^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$ ]] ||
  fail "a name has up to 40 lower-case letters, digits and -, begins with a letter; got '$name'"

cluster='' type='' slices=1 storage='' restarts=100 image='' dry_run=''
where=()
while (($#)) && [[ $1 != -- ]]; do
  case $1 in
    --dry-run) dry_run=yes ;;
    --cluster | --tpu-type | --slices | --storage | --zone | --project | --restarts | --image)
      [[ -n ${2:-} && ${2:-} != -* ]] || fail "$1 needs a value"
      case $1 in
        --cluster) cluster=$2 ;;
        --tpu-type) type=$2 ;;
        --slices) slices=$2 ;;
        --storage) storage=$2 ;;
        --restarts) restarts=$2 ;;
        --image) image=$2 ;;
        *) where+=("$1=$2") ;;
      esac
      shift
      ;;
    *) fail "no option '$1'" ;;
  esac
  shift
done
[[ -n $cluster && -n $type ]] || usage
[[ $slices =~ ^[1-9][0-9]*$ ]] || fail "--slices is a number from 1; got '$slices'"
[[ $restarts =~ ^[0-9]+$ ]] || fail "--restarts is a number; got '$restarts'"
shift || usage # the --
case " $* " in
  *" run_dir=/"*) ;;
  *) fail "after -- name run_dir=, the whole path of a folder that every host sees" ;;
esac

if [[ -z $dry_run ]]; then
  command -v xpk >/dev/null || fail "xpk is not installed"
  listed=$(xpk workload list --cluster="$cluster" --filter-by-job="^$name\$" \
    ${where[@]+"${where[@]}"}) || exit 1
  if grep -qw -- "$name" <<<"$listed"; then
    echo "launch/xpk.sh: $name is there already, and left alone" >&2
    exit 0
  fi
fi

train="exec python -m rljax.launch$(printf ' %q' "$@")" # exec, for SIGTERM to reach it
if [[ -n $image ]]; then
  container=(--docker-image="$image")
else
  container=(--base-docker-image=python:3.12 --script-dir="$checkout")
  train="pip install --quiet '.[tpu]' && $train"
fi
set -- xpk workload create --workload="$name" --cluster="$cluster" --tpu-type="$type" \
  --num-slices="$slices" "${container[@]}" ${storage:+--storage="$storage"} \
  --max-restarts="$restarts" --restart-on-exit-codes=75 --termination-grace-period-seconds=300 \
  ${where[@]+"${where[@]}"} --command="$train"
if [[ -n $dry_run ]]; then
  printf '%q ' "$@"
  echo
else
  "$@"
fi
