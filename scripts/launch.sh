# Sourced by the launchers: ROOT, PYTHON, and the functions that turn DATASET and SCHEDULE into flags.
set -euo pipefail
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
source "$ROOT/args.sh"

die() { echo "error: $*" >&2; exit 2; }

# The environment: VENV, else the active one, else .venv of the checkout, else the system's Python.
if [[ -n "${VENV:-}" ]]; then PYTHON="$VENV/bin/python"
elif [[ -n "${VIRTUAL_ENV:-}" ]]; then PYTHON="$VIRTUAL_ENV/bin/python"
elif [[ -x "$ROOT/.venv/bin/python" ]]; then PYTHON="$ROOT/.venv/bin/python"
else PYTHON="$(command -v python3 || true)"; fi
[[ -x "$PYTHON" ]] || die "no Python at '${PYTHON:-python3}': run bash scripts/setup.sh"
"$PYTHON" -c 'import importlib.util as u, sys; sys.exit(any(u.find_spec(m) is None for m in ("torch", "skimage", "piq")))' ||
    die "$PYTHON lacks the packages of this project: run bash scripts/setup.sh, or set VENV=path"

# Not the caller's directory but the checkout comes first on the path.
export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}" PYTHONSAFEPATH=1

# The names of the arrays that begin with a prefix: known_names DATASET_
known_names() { { compgen -A variable "$1" || true; } | sed "s/^$1//" | tr '\n' ' '; }

# Appends the array named $1 to ARGS, if there is one.
append_array() {
    if declare -p "$1" >/dev/null 2>&1; then
        local all="$1[@]"
        ARGS+=("${!all}")
    fi
}

# check_names DATASET SCHEDULE FLAGS: refuses what cannot be a name; whether there are pairs the program sees.
check_names() {
    local schedules datasets
    schedules="$(known_names SCHEDULE_)" schedules="${schedules% }"
    datasets="$(known_names DATASET_ | tr ' ' '\n' | grep -vE "_(${schedules// /|})$" | tr '\n' ' ')"
    [[ " $schedules" == *" $2 "* ]] || die "unknown schedule '$2': known are $schedules"
    [[ "$1" =~ ^[A-Za-z0-9_.-]+$ && "$1" != -* ]] ||
        die "'$1' cannot be a data set's name: use letters, digits, '_', '-', '.'"
    [[ " $datasets" == *" $1 "* || ( -z "${DATA_DIR:-}" && " $* " != *" --data_dir"* ) ]] || echo "note: '$1' has no entry in args.sh (those have: ${datasets% }): the papers' settings" >&2
}

# preset DATASET SCHEDULE: all flags of args.sh for them, into ARGS.
preset() {
    local name="${1//[^A-Za-z0-9_]/_}"
    ARGS=("${PAPER[@]}")
    append_array "SCHEDULE_$2"
    append_array "DATASET_$name"
    append_array "DATASET_${name}_$2"
    if [[ -n "${NETWORK:-}" ]]; then
        [[ " $(known_names "NETWORK_${name}_")" == *" $NETWORK "* ]] ||
            die "unknown NETWORK '$NETWORK' for $1: known are $(known_names "NETWORK_${name}_")"
        append_array "NETWORK_${name}_$NETWORK"
    fi
    ARGS+=(--dataset "$1")
    [[ -z "${DATA_DIR:-}" ]] || ARGS+=(--data_dir "$DATA_DIR")
}

# last_value --flag WORDS...: what the last of these flags among the words says, "" where there is none.
last_value() {
    local flag="$1" word found="" previous=""
    for word in "${@:2}"; do
        [[ "$previous" != "$flag" ]] || found="$word"
        [[ "$word" != "$flag="* ]] || found="${word#*=}"
        previous="$word"
    done
    echo "$found"
}

# What says which pairs there are, how they lie and are split, where they are defined and what their values mean.
PAIRS=(--data_dir --layout --{source,target}_{folder,suffix,resize,black,white} --source_half --num_classes
    --mask --mask_{folder,suffix} --degrade --group_by --skip_unreadable)

# chosen "--flag ..." WORDS...: of the words these flags with what the last of each says, into ARGS.
chosen() {
    local flag value
    for flag in $1; do
        value="$(last_value "$flag" "${@:2}")"
        [[ -z "$value" ]] || ARGS+=("$flag" "$value")
    done
}

# first COMMAND...: runs a program to its end before what follows. Signals go on to it, and then nothing follows (75); nor
# if it ends otherwise than with 0, when this shell ends with the same code.
first() {
    local code asked=0 again signal child
    set -m # a process group of its own: Ctrl-C reaches it once, from here
    "$@" &
    child=$!
    set +m
    for signal in INT TERM USR1 HUP; do
        # shellcheck disable=SC2064
        trap "asked=75 again=yes; kill -$signal $child 2>/dev/null || true" "$signal"
    done
    while # a signal ends the waiting, not the program
        again="" code=0
        wait "$child" || code=$?
        [[ -n "$again" ]]
    do :; done
    trap - INT TERM USR1 HUP
    [[ $code -ne 0 ]] || code=$asked
    [[ $code -eq 0 ]] || exit "$code"
}

# start_ranks MODULE ARGUMENTS...: replaces this shell by the program, on NGPU ranks (default 1) started by LAUNCHER.
start_ranks() {
    local ranks="${NGPU:-1}" launcher="${LAUNCHER:-}"
    [[ "$ranks" =~ ^[1-9][0-9]*$ ]] || die "NGPU is '$ranks', expected the number of ranks on this node"
    [[ -n "$launcher" || ( "$ranks" == 1 && -z "${NNODES:-}" ) ]] || launcher=torchrun
    case "$launcher" in
    "") exec "$PYTHON" -m "$@" ;;
    torchrun)
        local where=(--nproc_per_node "$ranks")
        if [[ -n "${NNODES:-}" ]]; then
            [[ -n "${NODE_RANK:-}" && -n "${MASTER_ADDR:-}" ]] || die "NNODES=$NNODES needs NODE_RANK (0 .. $((NNODES - 1))) and MASTER_ADDR, the first node"
            where+=(--nnodes "$NNODES" --node_rank "$NODE_RANK" --master_addr "$MASTER_ADDR" --master_port "${MASTER_PORT:-29500}")
        elif [[ -n "${MASTER_PORT:-}" ]]; then where+=(--master_port "$MASTER_PORT")
        else where+=(--standalone); fi
        exec "$PYTHON" -m scripts.torchrun "${where[@]}" -m "$@" ;;
    mpiexec)
        local mpiexec="${MPIEXEC:-$(command -v mpiexec || echo "$(dirname "$PYTHON")/mpiexec")}"
        [[ -x "$mpiexec" ]] || die "no mpiexec found: install an MPI, or pip install mpich, or set MPIEXEC=/path"
        # shellcheck disable=SC2086  # flags are words
        exec "$mpiexec" -n "$ranks" ${MPIEXEC_FLAGS:-} "$PYTHON" -m "$@" ;;
    srun)
        command -v srun >/dev/null || die "no srun found: LAUNCHER=srun runs inside a Slurm job (scripts/slurm.sh)"
        # ranks that saved end together, with 75; where one ends in an error or is killed, the others have a minute
        # shellcheck disable=SC2086
        exec srun --kill-on-bad-exit=0 --wait=60 ${SRUN_FLAGS:-} "$PYTHON" -m "$@" ;;
    *) die "unknown LAUNCHER '$launcher': known are torchrun mpiexec srun" ;;
    esac
}
