#!/usr/bin/env bash
# fmanetpp_x4_path: fmanetpp_x4_fast with a path branch, which alone is trained. Not shipped yet.
#
#   STEPS=4000 training/recipes/fmanetpp_x4_path.sh PHOTOS [RUNS]
#
# START=training/state/fmanetpp_x4_path.safetensors begins with 2300 steps of this.
source "$(dirname "$0")/common.sh"
pool_x4_0
t train_restoration --pool "$runs/pool" --start-from "${START:-fmanetpp_x4_fast}" --preset fast --scale 4 --path-width 64 --only-path \
    --out "$runs/x4_path" --steps "${STEPS:-4000}" --decay 0.4 --clips 2 --frames 4 --crop 64 --learning-rate 1e-3 --muon 0.006 \
    --warmup 60 --max-norm 1 --known-exposure 0.3 --flow-weight 0 --blur-weight 0.1 --degradation-weight 0 --decibels 40 \
    --speed 0.05 12 --degrade 0.3 --bars 0.05
ship "$runs/x4_path/latest.pt" fmanetpp_x4_path "deblurring and enlargement by four, along the path of the blur"
