#!/usr/bin/env bash
# m2aenet_x1: three core-hours on a CPU with AMX.
source "$(dirname "$0")/common.sh"
pool_x1_1
train() { t train_m2aenet --pool "$runs/pool_x1" "$@"; }
[ -d "$runs/deep" ] || train --preset fast --out "$runs/m2aenet" --steps 15000 --max-norm 0.1 --speed 0 16
deep() { train --preset deep --motion-part 0 --true-mask-part 0 --ssim-weight 0 --max-norm 1 "$@"; }
[ -d "$runs/deep40" ] || deep --start-from "$runs/m2aenet/latest.pt" --out "$runs/deep" --steps 13500 --decibels 30 \
    --learning-rate 5e-4 --muon 0.0015 --decay 0.8 --speed 0.5 16
deep --start-from "$runs/deep/latest.pt" --out "$runs/deep40" --steps 2200 --decibels 40 --learning-rate 3e-4 --muon 0.0008 \
    --warmup 50 --decay 0.9 --speed 0 16
ship "$runs/deep40/latest.pt" m2aenet_x1 "deblurring of single frames where they are blurred"
