#!/bin/bash
# One training run on several nodes of a Slurm cluster. After a preemption, a lost node or the end of its time it goes
# on from the last checkpoint.
#
#   sbatch --nodes=4 export/training_kit/slurm.sh maskrcnn_nuclei --data /shared/nuclei --output /shared/runs/nuclei
#
# The arguments are those of `keras-seg train`; --resume is added. The data and the output folder lie where all nodes
# see them. Python's environment: activate it before sbatch, or give its path, sbatch --export=ALL,VENV=/shared/venv ...
#
#SBATCH --job-name=keras_seg
#SBATCH --nodes=2
# a task is a worker; for nodes of 4 GPUs: --ntasks-per-node=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-task=1
#SBATCH --cpus-per-task=8
#SBATCH --mem-per-cpu=4G
#SBATCH --time=12:00:00
# Slurm queues it again where it takes nodes away, and where one fails ...
#SBATCH --requeue
# ... and two minutes before the time is up this script does
#SBATCH --signal=B:USR1@120
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out

set -euo pipefail
[[ -z ${VENV:-} ]] || source "$VENV/bin/activate"

# A worker is a task; those of a node take ports one after the other. Two runs that share a node need different ones.
PORT=${PORT:-$((20000 + SLURM_JOB_ID % 10000))}
workers=()
while read -r host; do
  for ((task = 0; task < SLURM_NTASKS_PER_NODE; task++)); do
    workers+=("\"$host:$((PORT + task))\"")
  done
done < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
CLUSTER=$(IFS=,; echo "${workers[*]}")
export CLUSTER
echo "job $SLURM_JOB_ID, start ${SLURM_RESTART_COUNT:-0}: $CLUSTER"

requeue() {
  echo "job $SLURM_JOB_ID: queued again, to go on from the last checkpoint"
  scontrol requeue "$SLURM_JOB_ID"
}
trap requeue USR1

# Tasks are numbered node by node, as the workers are above. If one ends in an error, the others are ended too.
# srun wants to be told a task's processors again.
# shellcheck disable=SC2016  # the variables are the task's
srun --distribution=block --kill-on-bad-exit=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" bash -c '
  export TF_CONFIG="{\"cluster\": {\"worker\": [$CLUSTER]}, \"task\": {\"type\": \"worker\", \"index\": $SLURM_PROCID}}"
  exec "$@"
' worker keras-seg train "$@" --resume &
training=$!
while true; do
  status=0
  wait "$training" || status=$?
  # a signal that was trapped ends the wait, not the training
  kill -0 "$training" 2>/dev/null || break
done
exit "$status"
