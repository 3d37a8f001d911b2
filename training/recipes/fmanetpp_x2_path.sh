#!/usr/bin/env bash
# fmanetpp_x2_path: deblurring and enlargement by two, along the path of the blur. The branch alone, along exact motion; then together with
# the levels and the estimate of exposures of fmanetpp_x1_path, which know frames of its scale only.
#
#   BRANCH_STEPS=14000 STEPS=5000 training/recipes/fmanetpp_x2_path.sh PHOTOS [RUNS]
#
# START=training/state/fmanetpp_x2_path.safetensors goes on from what has been learned, without the branch alone.
source "$(dirname "$0")/common.sh"
t render_pool --photos "$photos" --out "$runs/pool_x1_192" --scale 1 --size 192 --count 700 --seed 1
t reduce_pool "$runs/pool_x1_192" --scale 2 --out "$runs/pool_x2_192"
network=(--pool "$runs/pool_x2_192" --preset path --scale 2 --max-norm 1 --decay 0.4 --speed 0 25 --bars 0.03)
start=(--start-from "${START:-fmanetpp_x1_path}")
if [ -z "${START:-}" ]; then
    t train_path "${network[@]}" --part branch --out "$runs/x2_branch" --steps "${BRANCH_STEPS:-14000}" --clips 4 --crop 64 --warmup 1 \
        --learning-rate 1e-3 --muon 0.006 --decibels 48 --degrade 0.45
    start+=(--take "$runs/x2_branch/latest.pt")
fi
t train_restoration "${network[@]}" "${start[@]}" --out "$runs/x2_path" --steps "${STEPS:-5000}" --clips 2 --frames 4 --crop 64 \
    --learning-rate 1e-3 --muon 0.004 --warmup 60 --known-exposure 0.35 --flow-weight 0.02 --blur-weight 0.1 --degradation-weight 0 \
    --decibels 48 --harm-weight 2 --degrade 0.45
ship "$runs/x2_path/latest.pt" fmanetpp_x2_path "deblurring and enlargement by two, along the path of the blur"
