#!/usr/bin/env bash
# bash sample_ddbm.sh DATASET SCHEDULE MODEL_PATH [CHURN] [GUIDANCE] [SPLIT] [--flag value ...]
# Samples SPLIT (test; of another DATA_DIR without splits all pairs) of the data with the model of MODEL_PATH, a checkpoint or a run's directory. Killed and started
# again it goes on where it was (docs/sampling.md).
# SAMPLER=name NFE=n ORDER=n ETA=x: how; CHURN without SAMPLER means DDBM's, SAMPLER=heun NFE=119.
# NGPU=n: on n GPUs (LAUNCHER=torchrun, mpiexec or srun; docs/training.md).
# DATA_DIR=/path: pairs in another place than at training. --help lists every flag.
source "$(dirname "${BASH_SOURCE[0]}")/scripts/launch.sh"
[[ " $* " != *" --help "* && " $* " != *" -h "* ]] || exec "$PYTHON" -m scripts.sample --help
[[ $# -ge 3 && "$3" != --* ]] ||
    die "usage: bash sample_ddbm.sh DATASET SCHEDULE MODEL_PATH [CHURN] [GUIDANCE] [SPLIT] [--flag value ...]"
DATASET="$1" SCHEDULE="$2" MODEL_PATH="$3"
shift 3
[[ " $(known_names SCHEDULE_)" == *" $SCHEDULE "* ]] || die "unknown schedule '$SCHEDULE': known are $(known_names SCHEDULE_)"
ARGS=(--dataset "$DATASET" --schedule "$SCHEDULE")
[[ -z "${DATA_DIR:-}" ]] || ARGS+=(--data_dir "$DATA_DIR")
if [[ $# -gt 0 && "$1" != --* && -z "${SAMPLER:-}" && " $*" != *" --sampler"* ]]; then
    SAMPLER=heun NFE="${NFE:-119}"
fi
[[ " train val test all " != *" ${1:-} "* ]] || die "'$1' stands in the place of CHURN: write --split $1"
for flag in --churn --guidance --split; do
    if [[ $# -gt 0 && "$1" != --* ]]; then
        ARGS+=("$flag" "$1")
        shift
    fi
done
for name in SAMPLER NFE ORDER ETA; do
    [[ -z "${!name:-}" ]] || ARGS+=("--${name,,}" "${!name}")
done
start_ranks scripts.sample "$MODEL_PATH" "${ARGS[@]}" "$@"
