#!/usr/bin/env bash
# bash scripts/quickstart.sh [--restart] [--flag value ...]
# Installs, trains to take the noise off the embedded picture, samples patches it has not seen, evaluates, translates a
# whole picture, writes workdir/quickstart/report.html and report.png. Run again it continues where it stopped; flags go
# to the training.
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
export VENV
unset DATA_DIR # of other pairs
[[ "${1:-}" == --* || $# -eq 0 ]] || fail "unexpected '$1': usage is bash scripts/quickstart.sh [--restart] [--flag value ...]"
for word in "$@"; do
    [[ "$word" != --help && "$word" != --run_dir* ]] || fail "the quickstart takes --restart and training flags, not $word: usage is bash scripts/quickstart.sh [--restart] [--flag value ...]"
done
RUN="$ROOT/workdir/quickstart"
SCHEDULE=i2sb

FLAGS=(--run_dir "$RUN")
if [[ "$("$VENV/bin/python" -c 'import torch; print(torch.cuda.is_available())')" == True ]]; then
    FLAGS+=(--image_size 64 --model_channels 128 --num_res_blocks 2 --num_head_channels 64 --attention_resolutions 16,8
        --batch_size 64 --total_steps 6000 --precision bf16 --workers 4)
fi

bash "$ROOT/train_ddbm.sh" denoising "$SCHEDULE" "${FLAGS[@]}" "$@"

newest="$(ls -d "$RUN"/checkpoints/step_* | tail -n 1)"
if [[ "$RUN/report.html" -nt "$newest/manifest.json" ]]; then
    echo "report: $RUN/report.html (of these weights already; --restart begins anew)"
    exit 0
fi

export PYTHONPATH="$ROOT"
cd "$ROOT"
bash "$ROOT/sample_ddbm.sh" denoising "$SCHEDULE" "$RUN" --split test
samples="$(ls -dt "$RUN"/samples/*/ | head -n 1)"
"$VENV/bin/python" "$ROOT/evaluations/evaluator.py" "$samples"reference_*.npz "$samples"samples_*.npz --metric mse psnr ssim
"$VENV/bin/python" -c 'import sys; from datasets.denoising import write_whole; write_whole(sys.argv[1])' "$RUN/picture"
"$VENV/bin/python" -m scripts.translate "$RUN" "$RUN/picture/source.png" --out "$RUN/translated" \
    --answer both --draws 4 --nfe 10 --overwrite
"$VENV/bin/python" -m scripts.report "$RUN"
