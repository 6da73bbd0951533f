#!/usr/bin/env bash
# bash docker/run_container.sh DATASET SCHEDULE [CKPT] [--flag value ...]
# train_ddbm.sh in a container, on all GPUs. Another launcher as first word: run_container.sh sample_ddbm.sh DATASET ...
# DATA_DIR (read-only) and WORKDIR (default: workdir of the checkout) have the same paths inside as outside.
# NGPU (default: every GPU), LAUNCHER, NETWORK, NNODES, NODE_RANK, MASTER_ADDR, MASTER_PORT, NCCL_*, EVAL_INTERVAL, SAMPLER
# and the like are passed; DDBM_WEIGHTS, DDBM_CACHE and DDBM_STORES are folders, and must lie in WORKDIR.
# The image IMAGE (ddbm) is built when it is missing, and anew with BUILD=1. DOCKER=podman: podman instead of Docker;
# BUILD_FLAGS and DOCKER_FLAGS: further flags of its build and run.
set -euo pipefail
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
DOCKER="${DOCKER:-docker}" IMAGE="${IMAGE:-ddbm}" WORKDIR="${WORKDIR:-$ROOT/workdir}" DATA_DIR="${DATA_DIR:-}"

die() { echo "error: $*" >&2; exit 2; }

[[ $# -ge 2 ]] ||
    die "usage: bash docker/run_container.sh DATASET SCHEDULE [CKPT] [--flag value ...], such as histology vp"
[[ "$1" == *.sh ]] || set -- train_ddbm.sh "$@"
[[ -f "$ROOT/$1" && "$1" != */* ]] || die "no launcher '$1' in $ROOT"
command -v "$DOCKER" >/dev/null || die "'$DOCKER' is not installed: install Docker, or set DOCKER=podman"
"$DOCKER" version >/dev/null 2>&1 || die "'$DOCKER version' fails: start its service, or get the right to use it"

# What the container sees, at the same paths; gs:// and the like need no mount.
FLAGS=()
mount_folder() {  # mount_folder PATH [,readonly]
    [[ "$1" != *,* ]] || die "'$1' has a comma, which a mount cannot have: use another path"
    FLAGS+=(--mount "type=bind,source=$1,target=$1${2:-}")
}
if [[ "$WORKDIR" != *://* ]]; then
    mkdir -p "$WORKDIR" 2>/dev/null && [[ -w "$WORKDIR" ]] || die "cannot write to WORKDIR '$WORKDIR': set WORKDIR=path"
    WORKDIR="$(realpath "$WORKDIR")"
    mount_folder "$WORKDIR"
fi
if [[ -n "$DATA_DIR" ]]; then
    if [[ "$DATA_DIR" != *://* ]]; then
        [[ -d "$DATA_DIR" ]] || die "DATA_DIR '$DATA_DIR' is no folder: set DATA_DIR=/path/to/pairs"
        DATA_DIR="$(realpath "$DATA_DIR")"
        mount_folder "$DATA_DIR" ,readonly
    fi
    FLAGS+=(--env "DATA_DIR=$DATA_DIR")
fi
ARGS=("$1")
for word in "${@:2}"; do
    [[ "$word" != --*=* ]] || { ARGS+=("${word%%=*}"); word="${word#*=}"; }
    if [[ "$word" == */* && "$word" != *://* ]]; then
        path="$(realpath --canonicalize-missing "$word")"
        [[ "$path/" == "$WORKDIR"/* || "$path/" == "${DATA_DIR:-$WORKDIR}"/* ]] ||
            die "the container sees WORKDIR ($WORKDIR) and DATA_DIR (${DATA_DIR:-not set}), not '$word'"
        word="$path"
    fi
    ARGS+=("$word")
done

GPUS=0
if command -v nvidia-smi >/dev/null; then GPUS="$(nvidia-smi --list-gpus 2>/dev/null | grep -c ^GPU)" || GPUS=0; fi
if [[ $GPUS -eq 0 ]]; then echo "note: no GPU found by nvidia-smi: the container uses the CPU" >&2
elif [[ "$DOCKER" == *podman ]]; then FLAGS+=(--device nvidia.com/gpu=all)
else FLAGS+=(--gpus all); fi
if [[ "$DOCKER" == *podman ]]; then
    FLAGS+=(--security-opt label=disable)
    [[ $EUID -eq 0 ]] || FLAGS+=(--userns keep-id)
fi
[[ -z "${MASTER_ADDR:-}" ]] || FLAGS+=(--network host)
PASSED='LAUNCHER|NETWORK|NNODES|NODE_RANK|MASTER_ADDR|MASTER_PORT|OMP_NUM_THREADS|MPIEXEC_FLAGS|CUDA_VISIBLE_DEVICES'
PASSED+='|EVAL_INTERVAL|SAMPLER|NFE|ORDER|ETA|DDBM_(DEBUG|WEIGHTS|CACHE|STORES)|(NCCL|GLOO|WANDB)_.*'
for name in $(compgen -e | grep -xE "$PASSED"); do
    FLAGS+=(--env "$name")
done

commit="$(git -C "$ROOT" describe --always --dirty --abbrev=40 --exclude '*' 2>/dev/null || echo unknown)"
built="$("$DOCKER" image inspect --format '{{index .Config.Labels "ddbm.commit"}}' "$IMAGE" 2>/dev/null)" || built=""
if [[ -z "$built" || "${BUILD:-}" == 1 ]]; then
    # shellcheck disable=SC2086  # flags are words
    "$DOCKER" build --file "$ROOT/docker/Dockerfile" --tag "$IMAGE" --build-arg "DDBM_COMMIT=$commit" \
        ${BUILD_FLAGS:-} "$ROOT" >&2 ||
        die "'$DOCKER build' failed, see above"
elif [[ "$built" != "$commit" ]]; then
    echo "note: the image $IMAGE is of commit $built, the checkout is at $commit: BUILD=1 builds it anew" >&2
fi

# --init passes signals on to the training, which saves and exits with 75; docker stop waits for that.
# shellcheck disable=SC2086
exec "$DOCKER" run --rm --init --stop-timeout 300 --shm-size 16g --user "$(id -u):$(id -g)" \
    "${FLAGS[@]}" --env "WORKDIR=$WORKDIR" --env "NGPU=${NGPU:-$((GPUS > 0 ? GPUS : 1))}" ${DOCKER_FLAGS:-} \
    "$IMAGE" "${ARGS[@]}"
