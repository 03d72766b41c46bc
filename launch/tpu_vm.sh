#!/usr/bin/env bash
# Trains on a Cloud TPU VM slice: one process for each of its workers.
#
#   launch/tpu_vm.sh create                             makes the slice
#   launch/tpu_vm.sh run --config=configs/X.py --workdir=/mnt/skin_jax/runs/X [--config.key=value ...]
#   launch/tpu_vm.sh stop                               asks the run to save and end
#   launch/tpu_vm.sh fetch /mnt/skin_jax/runs/X DIR     copies a work folder here
#   launch/tpu_vm.sh delete                             ends the slice, and what it costs
#
# --dry-run as the first argument prints the commands of gcloud and runs nothing. The run needs no
# connection: after one is lost, or after Ctrl-C, `run` with the same arguments shows what the run prints,
# and ends as it does. After a preemption or a failure it goes on from the last checkpoint; a preempted
# slice has to be deleted and created again first.
#
# NAME     of the slice                                  (skin-jax)
# ZONE     such as us-east1-d                            (must be given)
# TYPE     such as v6e-16                                (must be given)
# VERSION  of the runtime, such as v2-alpha-tpuv6e       (must be given, for create)
# IMAGE    of launch/Dockerfile, built with EXTRA=tpu, in Artifact Registry  (must be given, for run)
# STORE    what all workers mount at /mnt/skin_jax: gs://BUCKET (its hierarchical namespace switched
#          on: checkpoints are folders that are renamed) or HOST:/SHARE of Filestore (must be given, for run)
# SPOT=1   makes a slice that may be preempted
set -euo pipefail

NAME=${NAME:-skin-jax}
MOUNT=/mnt/skin_jax

refuse() {
  echo "error: $1" >&2
  exit 2
}

needs() {
  for variable in "$@"; do
    [[ -n ${!variable:-} ]] || refuse "set $variable: see the beginning of launch/tpu_vm.sh"
  done
}

dry_run=
if [[ ${1:-} == --dry-run ]]; then
  dry_run=yes
  shift
fi

tpu() {
  local command=(gcloud compute tpus tpu-vm "$@" --zone="$ZONE")
  if [[ $dry_run ]]; then
    printf '%q ' "${command[@]}"
    echo
  else
    "${command[@]}"
  fi
}

# What every worker runs: mounts the store, then the image, as root: the TPU's devices are root's. The
# container is left alone by the end of the connection; who comes again follows it.
on_worker() {
  local arguments call
  printf -v arguments ' %q' "$@"
  printf -v call %q "$IMAGE$arguments"
  echo 'set -eu'
  cat <<END
state=\$(sudo docker inspect --format '{{.State.Running}} {{index .Config.Labels "call"}}' skin_jax 2> /dev/null || true)
call=$call
if [ "\$state" = "true \$call" ]; then
echo "this run is training already: here is what it prints" >&2
elif [ "\${state%% *}" = true ]; then
echo "error: another run is training on this slice; end it with launch/tpu_vm.sh stop, or wait for it" >&2
exit 2
else
END
  echo "if ! mountpoint -q $MOUNT; then"
  echo "sudo mkdir -p $MOUNT"
  if [[ $STORE == gs://* ]]; then
    cat <<'END'
key=/usr/share/keyrings/cloud.google.asc packages=https://packages.cloud.google.com/apt
curl -fsS $packages/doc/apt-key.gpg | sudo tee $key > /dev/null
echo "deb [signed-by=$key] $packages gcsfuse-$(lsb_release -cs) main" | sudo tee /etc/apt/sources.list.d/gcsfuse.list
sudo apt-get -q update && sudo apt-get -qy install fuse gcsfuse
END
    echo "sudo gcsfuse --implicit-dirs -o allow_other ${STORE#gs://} $MOUNT"
  else
    echo 'sudo apt-get -q update && sudo apt-get -qy install nfs-common'
    echo "sudo mount -t nfs $STORE $MOUNT"
  fi
  echo 'fi'
  cat <<END
gcloud auth print-access-token | sudo docker login -u oauth2accesstoken --password-stdin https://${IMAGE%%/*}
sudo docker rm skin_jax > /dev/null 2>&1 || true
sudo docker run --detach --name skin_jax --label call="\$call" --privileged --net=host --user root --stop-timeout 120 -v $MOUNT:$MOUNT $IMAGE$arguments > /dev/null
fi
sudo docker logs --follow skin_jax
exit "\$(sudo docker wait skin_jax)"
END
}

action=${1:-}
(($# == 0)) || shift
case $action in
  create)
    needs ZONE TYPE VERSION
    tpu create "$NAME" --accelerator-type="$TYPE" --version="$VERSION" \
      --scopes=https://www.googleapis.com/auth/cloud-platform ${SPOT:+--spot}
    ;;
  run)
    needs ZONE IMAGE STORE
    [[ $* == *--workdir=$MOUNT/* ]] || refuse "give --workdir=$MOUNT/...: what lies elsewhere is lost with the slice"
    tpu ssh "$NAME" --worker=all --command="$(on_worker "$@")" || {
      status=$?
      echo "status $status; where the connection was lost, the run continues: the same command follows it again, launch/tpu_vm.sh stop ends it" >&2
      exit "$status"
    }
    ;;
  stop)
    needs ZONE
    tpu ssh "$NAME" --worker=all --command='sudo docker stop skin_jax'
    ;;
  fetch)
    needs ZONE
    (($# == 2)) || refuse "fetch takes a folder of the slice and one here: launch/tpu_vm.sh fetch $MOUNT/runs/X DIR"
    tpu scp --recurse --worker=0 "$NAME:$1" "$2"
    ;;
  delete)
    needs ZONE
    tpu delete "$NAME" --quiet
    ;;
  *)
    refuse "say what to do: launch/tpu_vm.sh [--dry-run] create|run|stop|fetch|delete"
    ;;
esac
