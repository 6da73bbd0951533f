#!/usr/bin/env bash
# sbatch --nodes 2 --gpus-per-node 8 --ntasks-per-node 8 scripts/slurm.sh DATASET SCHEDULE [CKPT] [--flag value ...]
# Trains under Slurm, one task a GPU, and puts the job back into the queue when it was stopped before its end.
# Submitted from the checkout, or with DDBM_ROOT=/path/to/checkout; DATA_DIR, WORKDIR, VENV as for train_ddbm.sh.
# Without B: the signal before the time limit goes to the training, not to this shell.
#SBATCH --job-name=ddbm
#SBATCH --output=%x-%j.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=USR1@120
set -euo pipefail

die() { echo "error: $*" >&2; exit 2; }

[[ -n "${SLURM_JOB_ID:-}" ]] || die "this is for Slurm: sbatch scripts/slurm.sh DATASET SCHEDULE [--flag value ...]"
ROOT="${DDBM_ROOT:-$SLURM_SUBMIT_DIR}"  # sbatch runs a copy of this file from elsewhere
[[ -f "$ROOT/train_ddbm.sh" ]] ||
    die "no checkout at '$ROOT': submit from the checkout, or set DDBM_ROOT=/path/to/checkout"
gpus=$((${SLURM_GPUS_ON_NODE:-0} * ${SLURM_JOB_NUM_NODES:-1}))
[[ $gpus -eq 0 || ${SLURM_NTASKS:-1} -eq $gpus ]] ||
    die "${SLURM_NTASKS:-1} tasks for $gpus GPUs, expected one a GPU: add --ntasks-per-node $SLURM_GPUS_ON_NODE"
[[ -z "${SLURM_CPUS_PER_TASK:-}" ]] || export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"  # srun does not inherit it

# SIGTERM (pre-emption, scancel) may reach this shell too: with a trap it outlives the training instead of ending first.
trap : TERM USR1
code=0
LAUNCHER=srun bash "$ROOT/train_ddbm.sh" "$@" || code=$?
# 75: stopped and saved; 138, 143: by SIGUSR1 or SIGTERM while Python was still starting.
[[ $code -eq 75 || $code -eq 138 || $code -eq 143 ]] || exit "$code"

# A job that scancel or Slurm itself is ending is COMPLETING here; requeued, it would come back after scancel.
state="$(squeue --noheader --jobs "$SLURM_JOB_ID" --format %T)" || state="not known to squeue"
[[ "$state" == RUNNING ]] || { echo "stopped; the job is $state: submit it again to go on"; exit 75; }
echo "stopped: job $SLURM_JOB_ID goes back into the queue"
scontrol requeue "$SLURM_JOB_ID" || die "job $SLURM_JOB_ID could not be requeued: submit it again to go on"
