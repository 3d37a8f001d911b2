#!/usr/bin/env bash
# JFFRA as its paper trains it (arXiv 2505.16434), on rendered scenes: deblurring, the ablations of its table, and the other tasks.
#
#   STEPS=700000 training/recipes/paper_jffra.sh PHOTOS [RUNS]
source "$(dirname "$0")/common.sh"
pool="$runs/pool_x1_256"
t render_pool --photos "$photos" --out "$pool" --scale 1 --size 288 --count 2000 --frames 10
# network NAME OPTIONS...
network() {
    local name=$1; shift
    t train_jffra --pool "$pool" --preset m --out "$runs/$name" --clips 12 --frames 4 --crop 256 --steps "${STEPS:-700000}" \
        --learning-rate 2e-4 --decay 0 --halve-at 0.43 0.71 0.86 0.93 "$@"
}
network paper_jffra
network mutual_attention --variant mutual_attention
network learned_offsets --variant learned_offsets
network without_refinement --no-refinement
network denoising --task denoise --sigma 10 50
network super_resolution --task super_resolve
