#!/usr/bin/env bash
# Several processes on one machine as one run, such as one for each GPU:
#   PROCESSES=4 launch/local.sh --config=configs/digits.py
# Takes what jaxcls train takes. A signal goes to all of them: they save the same step and
# leave with 75, and the same command goes on. The status is that of the first to fail.
set -euo pipefail -m

PROCESSES=${PROCESSES:-2}
GPUS_EACH=${GPUS_EACH:-0} # GPUs that each process sees; 0: as they are.
PYTHON=${PYTHON:-python}
ANY='import socket; s = socket.socket(); s.bind(("localhost", 0)); print(s.getsockname()[1])'
PORT=${PORT:-$("$PYTHON" -c "$ANY")}

processes=() asked=
trap 'asked=yes; kill -TERM "${processes[@]}" 2>/dev/null || true' INT TERM
for ((i = 0; i < PROCESSES; i++)); do
    if ((GPUS_EACH)); then
        CUDA_VISIBLE_DEVICES=$(seq -s, $((i * GPUS_EACH)) $(((i + 1) * GPUS_EACH - 1)))
        export CUDA_VISIBLE_DEVICES
    fi
    "$PYTHON" -m jaxcls.main "$@" \
        --coordinator="localhost:$PORT" --processes="$PROCESSES" --process="$i" &
    processes+=($!)
done

status=0
for process in "${processes[@]}"; do
    # A signal ends a wait before the process has ended: wait again.
    until asked='' code=0; wait "$process" || code=$?; [[ -z $asked ]]; do :; done
    # 70 and 134 are of those that lost another, which knows more.
    case $status in 0 | 70 | 134) ((code == 0)) || status=$code ;; esac
done
exit "$status"
