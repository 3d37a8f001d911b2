#!/usr/bin/env bash
# fmanetpp_x4_fast: FMA-Net++ of scale 4, preset fast. About six core-hours on CPUs, most of them with AMX.
source "$(dirname "$0")/common.sh"
pool_x4_0
pool_x4_1
[ -f "$runs/extractor_fast.pt" ] || t train_extractor --pool "$runs/pool" --preset fast --steps 700 --crops 10 --crop 48 \
    --learning-rate 0.003 --out "$runs/extractor_fast.pt"
common="--preset fast --clips 2 --frames 6 --max-norm 0.5 --known-exposure 0.5 --flow-weight 0.03 --compile"
train() { t train_restoration $common "$@"; }
train --pool "$runs/pool" --extractor "$runs/extractor_fast.pt" --out "$runs/fast" --steps 8500 --crop 32 --learning-rate 5e-4 \
    --warmup 100
stage fast
train --pool "$runs/pool" --start-from "$runs/models/fast.safetensors" --out "$runs/fast2" --steps 5200 --crop 32 \
    --learning-rate 5e-4 --warmup 200 --decay 0.4
stage fast2
train --pool "$runs/pool" --start-from "$runs/models/fast2.safetensors" --out "$runs/fast3" --steps 4700 --crop 32 \
    --learning-rate 3e-4 --muon 0.001 --warmup 100 --decay 0.8
stage fast3
train --pool "$runs/pool" --start-from "$runs/models/fast3.safetensors" --out "$runs/fast4" --steps 5600 --crop 32 \
    --learning-rate 3e-4 --muon 0.001 --warmup 100 --decay 0.7 --degrade 0.5
stage fast4
train --pool "$runs/pool_1" --start-from "$runs/models/fast4.safetensors" --out "$runs/fast5" --steps 5000 --crop 40 \
    --learning-rate 3e-4 --muon 0.001 --warmup 50 --decay 0.6 --degrade 0.5 --bars 0.1 --temporal-weight 0.1 --seed 2
ship "$runs/fast5/latest.pt" fmanetpp_x4_fast "video super-resolution and deblurring by 4, small and fast"
