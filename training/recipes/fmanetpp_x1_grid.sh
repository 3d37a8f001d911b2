#!/usr/bin/env bash
# FMA-Net++ of scale 1 on cells of 4x4 pixels: a plateau that goes on for MINUTES more, then a copy that is cooled down.
#
#   MINUTES=60 COOLDOWN=1500 training/recipes/fmanetpp_x1_grid.sh PHOTOS [RUNS]
#
# The plateau's checkpoint stays as it is, so that the next call goes on from it. In a fresh checkout,
# START=training/state/fmanetpp_x1_grid.safetensors begins with what the plateau had reached.
source "$(dirname "$0")/common.sh"
t render_pool --photos "$photos" --out "$runs/pool_x1_192" --scale 1 --size 192 --count 700 --seed 1
train() {
    t train_restoration --pool "$runs/pool_x1_192" --start-from "${START:-fmanetpp_x1_fast}" --preset fast --scale 1 --grid 4 \
        --detail-width 64 --detail-grid 2 --clips 2 --frames 4 --crop 96 --learning-rate 1e-3 --muon 0.006 --warmup 100 --max-norm 1 \
        --known-exposure 0.3 --flow-weight 0.01 --degradation-weight 0 --decibels 32 --speed 0.3 14 --degrade 0.5 --bars 0.1 "$@"
}
train --out "$runs/x1_grid" --steps 1000000 --decay 0 --max-minutes "${MINUTES:-60}"
step=$("$python" -c "import sys; from pathlib import Path; from training.loop import load_checkpoint as c; \
print(c(Path(sys.argv[1]))['step'])" "$runs/x1_grid/latest.pt")
cooled="$runs/x1_grid_at_$step"
[ -d "$cooled" ] || { mkdir -p "$cooled"; cp "$runs/x1_grid/latest.pt" "$cooled/"; }
more=${COOLDOWN:-1500}
train --out "$cooled" --steps $((step + more)) --decay "$("$python" -c "print($more / ($step + $more))")"
ship "$cooled/latest.pt" fmanetpp_x1_grid "video deblurring at the input's size, on a grid of 4"
