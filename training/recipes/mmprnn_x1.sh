#!/usr/bin/env bash
# mmprnn_x1: three core-hours on a CPU with AMX. The first two stages take the paper's loss, the third the loss in decibels.
source "$(dirname "$0")/common.sh"
pool_x1_1
common="--pool $runs/pool_x1 --preset a3b4c16 --out $runs/mmprnn --clips 2 --frames 6 --crop 48 --warmup 100"
train() { t train_mmprnn $common "$@"; }
reached() {  # whether the run has done so many steps
    [ -f "$runs/mmprnn/latest.pt" ] && "$python" -c \
        "import sys; from training.run.checkpoint import load_checkpoint as c; from pathlib import Path; \
sys.exit(c(Path(sys.argv[1]))['step'] < int(sys.argv[2]))" "$runs/mmprnn/latest.pt" "$1"
}
reached 3457 || train --steps 3457 --learning-rate 1e-3 --decay 0 --max-norm 0.1 --motion-weight 0.005 --speed 1 12
reached 9387 || train --steps 9387 --learning-rate 5e-4 --decay 0 --max-norm 0.1 --motion-weight 0.005 --speed 0.5 14
for run in "18000 0.45" "22400 0.2" "31500 0.28"; do
    set -- $run
    reached "$1" || train --steps "$1" --decay "$2" --learning-rate 5e-4 --max-norm 1 --motion-weight 0.002 --speed 0.5 14 \
        --decibels 50 --muon 0.002
done
ship "$runs/mmprnn/latest.pt" mmprnn_x1 "video deblurring with a memory"
