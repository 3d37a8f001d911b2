#!/usr/bin/env bash
# FMA-Net++ as its paper trains it, at scale 4 (Sec. 4.1, S1): not run at this length here. With POOL=runs/reds_pool of
# training.prepare_reds the data are the paper's too; else scenes are rendered from the photographs.
source "$(dirname "$0")/common.sh"
paper_pool
paper_extractor paper_extractor --class-weight 0
paper_network paper --extractor "$runs/paper_extractor.pt"
ship "$runs/paper/latest.pt" fmanetpp_x4_paper "video super-resolution and deblurring by 4, as in the paper"
