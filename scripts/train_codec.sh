#!/usr/bin/env bash
# bash scripts/train_codec.sh DATASET [--flag value ...]
# Trains an autoencoder on both images of the pairs, or continues WORKDIR/DATASET_codec (WORKDIR: workdir of the checkout).
# With --from_kl PATH a published AutoencoderKL is trained further, by KL_TUNING of args.sh.
# NGPU, LAUNCHER, DATA_DIR as for train_ddbm.sh. --help lists every flag.
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
[[ " $* " != *" --help "* && " $* " != *" -h "* ]] || exec "$PYTHON" -m scripts.train_codec --help
[[ $# -ge 1 && "$1" != -* ]] || die "usage: bash scripts/train_codec.sh DATASET [--flag value ...], such as histology"
DATASET="$1"
shift
[[ "$DATASET" =~ ^[A-Za-z0-9_.-]+$ ]] || die "'$DATASET' cannot be a data set's name: use letters, digits, '_', '-', '.'"
ARGS=()
append_array "CODEC_${DATASET//[^A-Za-z0-9_]/_}"
[[ " $*" != *" --from_kl"* ]] || ARGS+=("${KL_TUNING[@]}")
ARGS+=(--dataset "$DATASET")
[[ -z "${DATA_DIR:-}" ]] || ARGS+=(--data_dir "$DATA_DIR")
ARGS+=(--run_dir "${WORKDIR:-$ROOT/workdir}/${DATASET}_codec")
start_ranks scripts.train_codec "${ARGS[@]}" "$@"
