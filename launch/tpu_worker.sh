#!/usr/bin/env bash
# What launch/tpu_pod.sh runs on each host of a TPU pod, in its copy of your checkout, ~/rljax.
#
#   ~/rljax/launch/tpu_worker.sh setup [BUCKET]                install; mount BUCKET at /mnt/BUCKET
#   ~/rljax/launch/tpu_worker.sh start [CONFIG] key=value ...  train, in the background
#   ~/rljax/launch/tpu_worker.sh status | log | stop
#
# Needs: Ubuntu with pip and flock, as the images of TPU VMs are, and sudo to install gcsfuse.
#
# A run that saved and stopped, lost another host (exit code 75), or was killed is started again,
# and resumes; at most MAX_RESTARTS times (default 100). Other exit codes end it. Every subcommand
# may be given again: a run under way is left alone.

set -uo pipefail

checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$HOME/rljax_venv
state=$HOME/rljax_run # lock (held while it runs), pid, code (once it has ended), log

usage() {
  echo "usage: launch/tpu_worker.sh setup [BUCKET] | start [CONFIG] key=value ... |" \
    "status | log | stop" >&2
  exit 2
}

if [[ ${1-} =~ ^(-h|--help)$ ]]; then
  sed -n '2,/^$/s/^# \{0,1\}//p' "$0"
  exit 0
fi

setup() {
  set -e
  if (($#)); then mount_bucket "$1"; fi
  python3 -m pip install --quiet --user uv # the images' own Python is older than rljax needs
  [[ -x $venv/bin/python ]] || "$HOME/.local/bin/uv" venv --quiet --python 3.12 "$venv"
  "$HOME/.local/bin/uv" pip install --quiet --python "$venv/bin/python" -e "${checkout}[tpu]"
}

# Other hosts must see a file at once, so nothing is cached; and Orbax renames folders, which a
# bucket without hierarchical namespace does file by file.
mount_bucket() {
  local folder=/mnt/$1 source=https://packages.cloud.google.com/apt
  local key=/usr/share/keyrings/cloud.google.asc
  if mountpoint --quiet "$folder"; then return; fi
  if ! command -v gcsfuse >/dev/null; then
    curl --fail --silent --show-error "$source/doc/apt-key.gpg" |
      sudo tee "$key" >/dev/null
    echo "deb [signed-by=$key] $source gcsfuse-$(lsb_release -cs) main" |
      sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
    sudo apt-get -o DPkg::Lock::Timeout=300 --quiet update
    sudo apt-get -o DPkg::Lock::Timeout=300 --quiet --yes install gcsfuse
  fi
  sudo mkdir -p "$folder"
  sudo chown "$(id -u):$(id -g)" "$folder"
  gcsfuse --implicit-dirs --rename-dir-limit=100000 --metadata-cache-ttl-secs=0 \
    --metadata-cache-negative-ttl-secs=0 "$1" "$folder"
}

running() {
  mkdir -p "$state"
  ! flock --shared --nonblock "$state/lock" true
}

start() {
  if running; then
    echo "worker $(hostname) running already"
    return
  fi
  rm -f "$state/code"
  nohup setsid flock --wait 5 --close "$state/lock" "$checkout/launch/tpu_worker.sh" loop "$@" \
    >>"$state/log" 2>&1 </dev/null &
  echo "worker $(hostname) started"
}

# Trains, again and again where that helps, in the foreground.
loop() {
  local child='' code='' restarts=0 stopping=''
  trap 'stopping=yes; kill -s TERM "$child"' TERM
  echo $$ >"$state/pid"
  cd "$checkout" || exit
  while :; do
    "$venv/bin/python" -m rljax.launch "$@" &
    child=$!
    wait "$child"
    code=$?
    while kill -0 "$child" 2>/dev/null; do # the signal ended the wait, not the child
      wait "$child"
      code=$?
    done
    case $code in
      75 | 134 | 135 | 137 | 139) [[ -z $stopping ]] && ((restarts < ${MAX_RESTARTS:-100})) ;;
      *) false ;;
    esac || break
    restarts=$((restarts + 1))
    echo "launch/tpu_worker.sh: exit code $code, restart $restarts" >&2
    sleep 10 & # for a signal not to wait for it
    child=$!
    wait "$child"
    [[ -z $stopping ]] || break
  done
  echo "$code" >"$state/code"
}

status() {
  if running; then
    echo "worker $(hostname) running"
  elif [[ -e $state/code ]]; then
    echo "worker $(hostname) ended $(<"$state/code")"
  else
    echo "worker $(hostname) absent" # never started, or the host has been restarted under it
  fi
}

stop() {
  if running; then kill -s TERM "$(<"$state/pid")"; fi
  while running; do sleep 1; done
  status
}

case ${1:-}/$# in
  setup/[12] | status/1 | stop/1) "$@" ;;
  start/1 | loop/1) usage ;;
  start/* | loop/*) "$@" ;;
  log/1) exec tail -n 200 -F "$state/log" ;;
  *) usage ;;
esac
