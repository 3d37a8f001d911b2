#!/usr/bin/env bash
# fmanetpp_x4_base: grown from the third run of fmanetpp_x4_fast.sh, which comes first. About four core-hours more.
source "$(dirname "$0")/common.sh"
[ -f "$runs/models/fast3.safetensors" ] || { echo "run training/recipes/fmanetpp_x4_fast.sh first" >&2; exit 1; }
pool_x4_1
common="--preset base --clips 2 --frames 6 --max-norm 0.5 --known-exposure 0.5 --flow-weight 0.03 --compile"
train() { t train_restoration $common "$@"; }
train --pool "$runs/pool" --start-from "$runs/models/fast3.safetensors" --out "$runs/base" --steps 950 --crop 32 \
    --learning-rate 2e-4 --muon 0.0007 --warmup 50 --decay 0.9
stage base
train --pool "$runs/pool" --start-from "$runs/models/base.safetensors" --out "$runs/base2" --steps 2200 --crop 32 \
    --learning-rate 3e-4 --muon 0.001 --warmup 50 --decay 0.7 --degrade 0.5
stage base2
train --pool "$runs/pool" --start-from "$runs/models/base2.safetensors" --out "$runs/base3" --steps 1300 --crop 32 \
    --learning-rate 3e-4 --muon 0.001 --warmup 30 --decay 0.95 --degrade 0.5 --seed 1
stage base3
train --pool "$runs/pool_1" --start-from "$runs/models/base3.safetensors" --out "$runs/base4" --steps 2350 --crop 40 \
    --learning-rate 3e-4 --muon 0.001 --warmup 50 --decay 0.6 --degrade 0.5 --bars 0.1 --seed 2
ship "$runs/base4/latest.pt" fmanetpp_x4_base "video super-resolution and deblurring by 4"
