#!/usr/bin/env bash
# One run on a TPU pod slice, from asking for it to giving it back:
#   export NAME=pod ZONE=europe-west4-b TYPE=v5litepod-16 RUNTIME=v2-alpha-tpuv5-lite
#   launch/tpu.sh create              # Waits until it is there; SPOT=--spot costs less.
#   SHARE=10.0.0.2:/runs launch/tpu.sh install
#   launch/tpu.sh train --config=configs/resnet50.py --workdir=/mnt/share/resnet50
#   launch/tpu.sh delete
# Needs gcloud with a project set. SHARE is an NFS share (Filestore) for --workdir, which all
# hosts must see; train takes what jaxcls train takes, and run again it goes on.
set -euo pipefail

NAME=${NAME:-jaxcls} ZONE=${ZONE:?such as europe-west4-b} SPOT=${SPOT:-} SHARE=${SHARE:-}
TPUS=(gcloud compute tpus)

everywhere() { # The command on every host of the slice.
    "${TPUS[@]}" tpu-vm ssh "$NAME" --zone="$ZONE" --worker=all --command="$1"
}

verb=${1:?create, install, train or delete}
shift
case $verb in
create)
    "${TPUS[@]}" queued-resources create "$NAME" --node-id="$NAME" --zone="$ZONE" \
        --accelerator-type="${TYPE:?such as v5litepod-16}" \
        --runtime-version="${RUNTIME:?such as v2-alpha-tpuv5-lite}" ${SPOT:+"$SPOT"}
    while
        state=$("${TPUS[@]}" queued-resources describe "$NAME" --zone="$ZONE" \
            --format='value(state.state)')
        echo "$NAME: $state"
        [[ $state != ACTIVE ]]
    do
        if [[ $state == FAILED || $state == SUSPENDED ]]; then exit 1; fi
        sleep "${PAUSE:-30}"
    done
    ;;
install)
    archive=$(mktemp)
    trap 'rm "$archive"' EXIT
    git archive --format=tar.gz --output="$archive" HEAD
    "${TPUS[@]}" tpu-vm scp "$archive" "$NAME:jaxcls.tar.gz" --zone="$ZONE" --worker=all
    # The images' own Python may be older than we need; uv fetches one.
    everywhere 'set -e; rm -rf jaxcls; mkdir jaxcls; tar -xzf jaxcls.tar.gz -C jaxcls
        python3 -m pip install --user uv
        python3 -m uv venv --clear --python=3.12 venv
        python3 -m uv pip install --python=venv/bin/python -e "./jaxcls[tpu]"'
    if [[ $SHARE ]]; then
        everywhere "set -e; sudo apt-get install -y nfs-common; sudo mkdir -p /mnt/share
            mountpoint -q /mnt/share || sudo mount -t nfs $(printf %q "$SHARE") /mnt/share
            sudo chmod a+rwxt /mnt/share"
    fi
    ;;
train)
    everywhere "cd jaxcls && ../venv/bin/python -m jaxcls.main --coordinator=auto$(
        printf ' %q' "$@"
    )"
    ;;
delete)
    "${TPUS[@]}" queued-resources delete "$NAME" --zone="$ZONE" --force --quiet
    ;;
*)
    echo "error: $verb is no verb; give create, install, train or delete" >&2
    exit 2
    ;;
esac
