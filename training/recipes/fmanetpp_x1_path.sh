#!/usr/bin/env bash
# fmanetpp_x1_path: FMA-Net++ of scale 1, preset path: a plateau that goes on for MINUTES more, then a copy that is cooled down.
#
#   MINUTES=60 COOLDOWN=1000 training/recipes/fmanetpp_x1_path.sh PHOTOS [RUNS]
#
# The plateau's checkpoint stays as it is, so that the next call goes on from it. In a fresh checkout,
# START=fmanetpp_x1_path begins with the shipped weights.
source "$(dirname "$0")/common.sh"
t render_pool --photos "$photos" --out "$runs/pool_x1_192" --scale 1 --size 192 --count 700 --seed 1
start=(--extractor fmanetpp_x4_fast)
[ -z "${START:-}" ] || start=(--start-from "$START")
train() {
    t train_restoration --pool "$runs/pool_x1_192" "${start[@]}" --preset path --scale 1 --clips 2 --frames 4 --crop 96 \
        --learning-rate 1e-3 --muon 0.006 --warmup 100 --max-norm 1 --known-exposure 0.5 --flow-weight 0.02 --blur-weight 0.1 \
        --degradation-weight 0 --decibels 40 --speed 0.3 25 --degrade 0.3 --bars 0.05 "$@"
}
train --out "$runs/x1_path" --steps 1000000 --decay 0 --max-minutes "${MINUTES:-60}"
step=$("$python" -c "import sys; from pathlib import Path; from training.run.checkpoint import load_checkpoint as c; \
print(c(Path(sys.argv[1]))['step'])" "$runs/x1_path/latest.pt")
cooled="$runs/x1_path_at_$step"
[ -d "$cooled" ] || { mkdir -p "$cooled"; cp "$runs/x1_path/latest.pt" "$cooled/"; }
more=${COOLDOWN:-1000}
train --out "$cooled" --steps $((step + more)) --decay "$("$python" -c "print($more / ($step + $more))")"
ship "$cooled/latest.pt" fmanetpp_x1_path "video deblurring at the input's size, along the path of the blur"
