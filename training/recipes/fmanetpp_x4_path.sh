#!/usr/bin/env bash
# fmanetpp_x4_path: fmanetpp_x4_fast with a path branch, which alone is trained: the branch and the estimate of exposures first by
# themselves, along exact motion, then both beside the levels.
#
#   STEPS=3600 training/recipes/fmanetpp_x4_path.sh PHOTOS [RUNS]
#
# START is the model with the levels; with a path branch of its own, as in training/state/fmanetpp_x4_path.safetensors, all goes on from it.
source "$(dirname "$0")/common.sh"
pool_x4_0
network=(--pool "$runs/pool" --preset fast --scale 4 --path-width 64 --max-norm 1 --learning-rate 1e-3 --muon 0.006 --degrade 0.3)
start=(--start-from "${START:-fmanetpp_x4_fast}")
if [ -z "${START:-}" ]; then
    t train_path "${network[@]}" --part branch --out "$runs/x4_branch" --steps 14700 --clips 4 --crop 64 --decibels 42 --bars 0.03
    t train_path "${network[@]}" --part exposure --out "$runs/x4_exposure" --steps 5400 --clips 8 --crop 64 --bars 0.03
    start+=(--take "$runs/x4_branch/latest.pt" --take "$runs/x4_exposure/latest.pt")
fi
t train_restoration "${network[@]}" "${start[@]}" --only-path --out "$runs/x4_path" --steps "${STEPS:-3600}" --decay 0.4 --clips 2 \
    --frames 4 --crop 64 --warmup 60 --known-exposure 0.3 --flow-weight 0 --blur-weight 0.1 --degradation-weight 0 --decibels 42 \
    --speed 0.05 30 --bars 0.05
ship "$runs/x4_path/latest.pt" fmanetpp_x4_path "deblurring and enlargement by four, along the path of the blur"
