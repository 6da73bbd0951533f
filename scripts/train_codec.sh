#!/usr/bin/env bash
# bash scripts/train_codec.sh DATASET [--flag value ...]
# Trains an autoencoder on both images of the pairs, or continues WORKDIR/DATASET_codec (WORKDIR: workdir of the checkout).
# By CODEC_DATASET of args.sh, and what DATASET_DATASET says of the pairs. With --from_kl PATH a published AutoencoderKL is
# trained further, by KL_TUNING.
# NGPU, LAUNCHER, DATA_DIR as for train_ddbm.sh. --help lists every flag.
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
[[ " $* " != *" --help "* && " $* " != *" -h "* ]] || exec "$PYTHON" -m scripts.train_codec --help
[[ $# -ge 1 && "$1" != -* ]] || die "usage: bash scripts/train_codec.sh DATASET [--flag value ...], such as histology"
DATASET="$1"
shift
[[ "$DATASET" =~ ^[A-Za-z0-9_.-]+$ ]] || die "'$DATASET' cannot be a data set's name: use letters, digits, '_', '-', '.'"
NAME="${DATASET//[^A-Za-z0-9_]/_}" ARGS=()
append_array "DATASET_$NAME"
PRESET=("${ARGS[@]}") ARGS=()
chosen "${PAIRS[*]} --image_size --fit" "${PRESET[@]}"
if [[ " $*" == *" --from_kl"* ]]; then ARGS+=("${KL_TUNING[@]}"); else append_array "CODEC_$NAME"; fi
ARGS+=(--dataset "$DATASET")
[[ -z "${DATA_DIR:-}" ]] || ARGS+=(--data_dir "$DATA_DIR")
ARGS+=(--run_dir "${WORKDIR:-$ROOT/workdir}/${DATASET}_codec")
start_ranks scripts.train_codec "${ARGS[@]}" "$@"
