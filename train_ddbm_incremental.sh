#!/usr/bin/env bash
# bash train_ddbm_incremental.sh DATASET SCHEDULE [CKPT] [--flag value ...]
# train_ddbm.sh, which every EVAL_INTERVAL (1000) steps also samples validation images, scores them and keeps the best
# checkpoint. The same run: either command continues what the other began.
TRAIN="$(dirname "${BASH_SOURCE[0]}")/train_ddbm.sh"
[[ $# -ge 2 && "$1" != --* && "$2" != --* ]] || exec bash "$TRAIN" "$@" # --help, or what is missing
WORDS=("$1" "$2")
shift 2
if [[ $# -gt 0 && "$1" != --* ]]; then
    WORDS+=("$1")
    shift
fi
exec bash "$TRAIN" "${WORDS[@]}" --eval_interval "${EVAL_INTERVAL:-1000}" "$@"
