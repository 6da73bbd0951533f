#!/usr/bin/env bash
# bash train_ddbm.sh DATASET SCHEDULE [CKPT] [--flag value ...]
# Trains, or continues the newest checkpoint of WORKDIR/DATASET_SCHEDULE (WORKDIR: workdir of the checkout); CKPT: what a
# new run begins from.
# NGPU=n: on n GPUs (LAUNCHER=torchrun, mpiexec or srun; docs/training.md).
# --codec auto, of some presets: between the latents of WORKDIR/DATASET_codec, which scripts/train_codec.sh trains first,
# or goes on training. --restart leaves it alone.
# DATA_DIR=/path is the folder with the pairs, NETWORK=name another network of args.sh. --help lists every flag.
source "$(dirname "${BASH_SOURCE[0]}")/scripts/launch.sh"
[[ " $* " != *" --help "* && " $* " != *" -h "* ]] || exec "$PYTHON" -m scripts.train --help
[[ $# -ge 2 ]] || die "usage: bash train_ddbm.sh DATASET SCHEDULE [CKPT] [--flag value ...], such as histology vp"
DATASET="$1" SCHEDULE="$2"
shift 2
check_names "$DATASET" "$SCHEDULE" "$@"
preset "$DATASET" "$SCHEDULE"
ARGS+=(--run_dir "${WORKDIR:-$ROOT/workdir}/${DATASET}_${SCHEDULE}${NETWORK:+_$NETWORK}")
if [[ $# -gt 0 && "$1" != --* ]]; then
    ARGS+=(--resume "$1")
    shift
fi
set -- "${ARGS[@]}" "$@"
if [[ "$(last_value --codec "$@")" == auto ]]; then
    CODEC="${WORKDIR:-$ROOT/workdir}/${DATASET}_codec" ARGS=() SIZES="--image_size --fit"
    OWN="CODEC_${DATASET//[^A-Za-z0-9_]/_}[@]"
    if declare -p "${OWN%\[*}" >/dev/null 2>&1; then # args.sh says on what it is trained, unless that is too large
        ASKED="$(last_value --image_size "$@")" LARGE="$(last_value --image_size "${!OWN}")"
        [[ "$ASKED" =~ ^[0-9]+$ && "$LARGE" =~ ^[0-9]+$ && "$ASKED" -lt "$LARGE" ]] || SIZES=""
    fi
    chosen "${PAIRS[*]} $SIZES --device" "$@"
    if ! grep -qs '"after"' "$CODEC/codec.json"; then # not trained to its end
        echo "training the codec first, $CODEC (--codec PATH: another)"
        first bash "$ROOT/scripts/train_codec.sh" "$DATASET" "${ARGS[@]}"
    fi
    set -- "$@" --codec "$CODEC"
fi
start_ranks scripts.train "$@"
