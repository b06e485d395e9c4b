#!/usr/bin/env bash
# One run on several GPU nodes of SLURM, a process for each GPU:
#   sbatch launch/slurm.sh --config=configs/resnet50.py --workdir=/shared/runs/resnet50
#   sbatch --nodes=4 --time=48:00:00 launch/slurm.sh --config=...
# Submit from a checkout, with its environment activated; --workdir and data.dir are folders
# that all nodes see. Takes what jaxcls train takes. Five minutes before the time is up all
# processes save and leave with 75; then the job queues itself again and goes on.
#SBATCH --job-name=jaxcls
#SBATCH --nodes=2
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
set -uo pipefail

# Not --gpus-per-task: JAX itself gives process i of a node the GPU i, and must see it.
# No kill on a bad exit: a process that leaves with 75 must not cut the others short.
srun --kill-on-bad-exit=0 --cpu-bind=cores \
    "${PYTHON:-python}" -m jaxcls.main --coordinator=auto "$@"
status=$?
if ((status == 75)); then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
