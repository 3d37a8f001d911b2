#!/usr/bin/env bash
# jffra_x1: two and a half core-hours on a CPU with AMX.
source "$(dirname "$0")/common.sh"
pool_x1_1
t train_jffra --pool "$runs/pool_x1" --preset xs --out "$runs/jffra" --clips 4 --frames 3 --crop 64 --warmup 60 \
    --learning-rate 1e-3 --muon 0.004 --max-norm 1 --decay 0.6 --decibels 50 --speed 0.5 14 --temporal-weight 0 --steps 22000
ship "$runs/jffra/latest.pt" jffra_x1 "video deblurring from three frames"
