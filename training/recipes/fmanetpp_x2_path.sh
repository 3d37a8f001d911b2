#!/usr/bin/env bash
# fmanetpp_x2_path: deblurring and enlargement by two, along the path of the blur. The branch and the estimate of exposures alone, along
# exact motion; then both with the levels.
#
#   STEPS=5000 training/recipes/fmanetpp_x2_path.sh PHOTOS [RUNS]
#
# START=fmanetpp_x2_path begins with the shipped weights and leaves out the parts alone.
source "$(dirname "$0")/common.sh"
t render_pool --photos "$photos" --out "$runs/pool_x1_192" --scale 1 --size 192 --count 700 --seed 1
t reduce_pool "$runs/pool_x1_192" --scale 2 --out "$runs/pool_x2_192"
network=(--pool "$runs/pool_x2_192" --preset path --scale 2 --max-norm 1 --learning-rate 1e-3 --decay 0.4 --speed 0 25 --bars 0.03)
# part NAME STEPS OPTIONS...
part() {
    local name=$1 steps=$2; shift 2
    t train_path "${network[@]}" --part "$name" --out "$runs/x2_$name" --steps "$steps" --warmup 1 --muon 0.006 "$@"
}
start=(--start-from "${START:-fmanetpp_x1_path}")
if [ -z "${START:-}" ]; then
    part branch "${BRANCH_STEPS:-14000}" --clips 4 --crop 64 --decibels 48 --degrade 0.45
    part exposure "${EXPOSURE_STEPS:-9000}" --clips 10 --crop 80 --degrade 0.4
    start+=(--take "$runs/x2_branch/latest.pt" --take "$runs/x2_exposure/latest.pt")
fi
t train_restoration "${network[@]}" "${start[@]}" --out "$runs/x2_path" --steps "${STEPS:-5000}" --clips 2 --frames 4 --crop 64 \
    --muon 0.004 --warmup 60 --known-exposure 0.35 --flow-weight 0.02 --blur-weight 0.1 --degradation-weight 0 --decibels 48 \
    --harm-weight 2 --degrade 0.45
ship "$runs/x2_path/latest.pt" fmanetpp_x2_path "deblurring and enlargement by two, along the path of the blur"
