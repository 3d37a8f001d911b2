#!/usr/bin/env bash
# fmanetpp_x1_path: FMA-Net++ of scale 1, preset path: the branch and the estimate of exposures alone, along exact motion; the levels
# with both for MINUTES; then a copy that is cooled down.
#
#   MINUTES=60 COOLDOWN=1300 training/recipes/fmanetpp_x1_path.sh PHOTOS [RUNS]
#
# The checkpoint before the cooldown stays as it is, so that a call with more minutes goes on from it. In a fresh checkout,
# START=fmanetpp_x1_path begins with the shipped weights and leaves out the parts alone.
source "$(dirname "$0")/common.sh"
pool="$runs/pool_x1_192"
t render_pool --photos "$photos" --out "$pool" --scale 1 --size 192 --count 700 --seed 1
network=(--pool "$pool" --preset path --scale 1 --max-norm 1 --learning-rate 1e-3)
# part NAME STEPS OPTIONS...
part() {
    local name=$1 steps=$2; shift 2
    t train_path "${network[@]}" --part "$name" --out "$runs/x1_$name" --steps "$steps" --warmup 1 --decay 0.4 --muon 0.006 "$@"
}
if [ -n "${START:-}" ]; then
    start=(--start-from "$START")
else
    part branch "${BRANCH_STEPS:-16000}" --clips 4 --crop 96 --decibels 52 --speed 0 25 --degrade 0.45 --bars 0.03
    part exposure "${EXPOSURE_STEPS:-12000}" --clips 10 --crop 128 --speed 0 25 --degrade 0.35
    start=(--extractor fmanetpp_x4_fast --take "$runs/x1_branch/latest.pt" --take "$runs/x1_exposure/latest.pt")
fi
train() {
    t train_restoration "${network[@]}" "${start[@]}" --clips 2 --frames 4 --crop 96 --muon 0.004 --warmup 60 \
        --known-exposure 0.35 --flow-weight 0.02 --blur-weight 0.1 --degradation-weight 0 --decibels 55 --harm-weight 2 \
        --degrade 0.45 --bars 0.05 "$@"
}
train --out "$runs/x1_path" --steps 1000000 --decay 0 --max-minutes "${MINUTES:-60}"
step=$("$python" -c "import sys; from pathlib import Path; from training.run.checkpoint import load_checkpoint as c; \
print(c(Path(sys.argv[1]))['step'])" "$runs/x1_path/latest.pt")
cooled="$runs/x1_path_at_$step"
[ -d "$cooled" ] || { mkdir -p "$cooled"; cp "$runs/x1_path/latest.pt" "$cooled/"; }
more=${COOLDOWN:-1300}
train --out "$cooled" --steps $((step + more)) --decay "$("$python" -c "print($more / ($step + $more))")"
ship "$cooled/latest.pt" fmanetpp_x1_path "video deblurring at the input's size, along the path of the blur"
