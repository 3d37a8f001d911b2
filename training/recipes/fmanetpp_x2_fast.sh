#!/usr/bin/env bash
# fmanetpp_x2_fast: begun with the shipped fmanetpp_x4_fast. About two and a half core-hours on a CPU with AMX.
source "$(dirname "$0")/common.sh"
pool_x2_1
common="--pool $runs/pool_x2 --preset fast --scale 2 --clips 2 --frames 4 --crop 40 --warmup 100 --max-norm 0.5"
common="$common --known-exposure 0.5 --flow-weight 0.03 --compile"
train() { t train_restoration $common "$@"; }
train --start-from fmanetpp_x4_fast --out "$runs/fast_x2" --steps 2200 --learning-rate 5e-4 --decay 0.5
stage fast_x2
train --start-from "$runs/models/fast_x2.safetensors" --out "$runs/fast2_x2" --steps 3400 --learning-rate 4e-4 --muon 0.0015 \
    --decay 0.7 --degrade 0.5
stage fast2_x2
train --start-from "$runs/models/fast2_x2.safetensors" --out "$runs/fast3_x2" --steps 6000 --learning-rate 4e-4 --muon 0.0015 \
    --decay 0.7 --degrade 0.5 --bars 0.1 --seed 1
ship "$runs/fast3_x2/latest.pt" fmanetpp_x2_fast "video super-resolution and deblurring by 2, small and fast"
