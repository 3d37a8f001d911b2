#!/usr/bin/env bash
# JFFRA as its paper trains it (arXiv 2505.16434): deblurring, the ablations of its table, and the other tasks. Data are rendered
# scenes, or footage by POOL=runs/gopro_pool of training.prepare_gopro --scale 1.
#
#   STEPS=700000 training/recipes/paper_jffra.sh PHOTOS [RUNS]
source "$(dirname "$0")/common.sh"
paper_pool_x1
# network NAME OPTIONS...
network() {
    local name=$1; shift
    t train_jffra --pool "$pool" --preset m --out "$runs/$name" --clips 12 --frames 4 --crop 256 --steps "${STEPS:-700000}" \
        --exposure-mode constant --learning-rate 2e-4 --decay 0 --halve-at 0.43 0.71 0.86 0.93 "$@"
}
network paper_jffra
network mutual_attention --variant mutual_attention
network learned_offsets --variant learned_offsets
network without_refinement --no-refinement
network denoising --task denoise --sigma 10 50
network super_resolution --task super_resolve
