#!/usr/bin/env bash
# fmanetpp_x1_fast: begun with the shipped fmanetpp_x4_fast. About two core-hours on a CPU with AMX.
source "$(dirname "$0")/common.sh"
pool_x1_1
common="--pool $runs/pool_x1 --preset fast --scale 1 --clips 2 --frames 4 --crop 48 --warmup 100 --max-norm 0.5"
common="$common --known-exposure 0.5 --flow-weight 0.03 --compile"
train() { t train_restoration $common "$@"; }
train --start-from fmanetpp_x4_fast --out "$runs/fast_x1" --steps 3800 --learning-rate 5e-4 --decay 0.4
stage fast_x1
train --start-from "$runs/models/fast_x1.safetensors" --out "$runs/fast2_x1" --steps 3200 --learning-rate 4e-4 --muon 0.0015 \
    --decay 0.7 --degrade 0.5 --bars 0.1
ship "$runs/fast2_x1/latest.pt" fmanetpp_x1_fast "video deblurring at the input's size, small and fast"
