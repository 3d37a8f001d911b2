#!/usr/bin/env bash
# MMP-RNN and its prior as the paper trains them (arXiv 2207.13374), and the ablations of its table. Data are rendered scenes, whose motion
# is exact, or the paper's by POOL=runs/gopro_pool of training.prepare_gopro --scale 1, or one of training.prepare_bsd.
#
#   STEPS=500000 training/recipes/paper_mmprnn.sh PHOTOS [RUNS]
source "$(dirname "$0")/common.sh"
paper_pool_x1
steps=${STEPS:-500000}
t train_blur --pool "$pool" --target speed --out "$runs/mmpnet" --crops 8 --crop 256 --steps "$steps" --learning-rate 3e-4 \
    --decay 0 --halve-at 0.5
# network NAME OPTIONS...
network() {
    local name=$1; shift
    t train_mmprnn --pool "$pool" --preset a9b10c18 --out "$runs/$name" --clips 8 --frames 10 --crop 256 --steps "$steps" \
        --exposure-mode constant --learning-rate 5e-4 --max-norm 20 --decay 1 "$@"
}
prior=(--prior "$runs/mmpnet/latest.pt")
network paper_mmprnn "${prior[@]}" --motion-weight 1
network without_gate "${prior[@]}" --motion-weight 1 --variant without_gate
network without_gate_and_loss "${prior[@]}" --motion-weight 0 --variant without_gate
network without_features "${prior[@]}" --motion-weight 0 --variant without_features
network without_prior --without-prior
