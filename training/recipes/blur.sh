#!/usr/bin/env bash
# shutter_v2 and blur_v3: the exposure estimate and the blur analyser. About seventy minutes on one core.
source "$(dirname "$0")/common.sh"
pool_x4_0
pool_x1_1
describe=(--models "$runs/models" --data "photographs of $(basename "$photos")" --command training/recipes/blur.sh)
t train_shutter --pool "$runs/pool" --pool "$runs/pool_x1" --profiles "$runs/shutter" --out "$runs/shutter.pt"
t export_blur "$runs/shutter.pt" --name shutter_v2 --description "exposure from the smear along the motion" "${describe[@]}"
t train_blur --pool "$runs/pool" --pool "$runs/pool_x1" --out "$runs/blur" --steps 9500
t export_blur "$runs/blur/latest.pt" --name blur_v3 --description "blur extent in pixels from single frames" "${describe[@]}"
