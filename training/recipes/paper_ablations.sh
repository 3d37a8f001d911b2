#!/usr/bin/env bash
# The ablations of FMA-Net++ (Tables 3 to 5, 8, S1 to S3), each trained by the recipe of paper_x4.sh. Tables 6 and 7 are
# `training.evaluate --guidance`; Table 1 compares with networks of others.
source "$(dirname "$0")/common.sh"
paper_pool
paper_extractor paper_extractor --class-weight 0
with=(--extractor "$runs/paper_extractor.pt")
# Table 3: other ways to pass on what is known of the neighbours.
paper_network sliding_window "${with[@]}" --architecture sliding_window
paper_network recurrent "${with[@]}" --architecture recurrent
# Table 4: without ETE, and with the capacity of the whole; Table S2: FGDF without ETM is stage 2 of the first.
paper_network without_ete --set exposure_aware=false
paper_network without_ete_large --set exposure_aware=false width=132 feed_forward_width=330
# Table 5: guidance by frame difference, and other objectives of the extractor.
paper_network frame_difference "${with[@]}" --architecture frame_difference
paper_extractor extractor_classes --contrast-weight 0
paper_extractor extractor_ordinal --contrast-weight 0 --class-weight 0 --ordinal-weight 1
paper_network classification --extractor "$runs/extractor_classes.pt"
paper_network ordinal --extractor "$runs/extractor_ordinal.pt"
# Tables 8 and S1: blocks, guidance by feature modulation, flow-mask pairs.
for set in num_blocks=1 num_blocks=2 guidance=sft num_flows=1 num_flows=5; do
    paper_network "${set/=/_}" "${with[@]}" --set "$set"
done
# Table S2: the plain dynamic filter.
paper_stage train_degradation plain_filter "${with[@]}" --plain-filter --flow-weight 0 --warp-weight 0
# Table S3: lambda1 and lambda2.
for weight in 1e-3 5e-5; do
    paper_network "lambda1_$weight" "${with[@]}" --warp-weight "$weight"
    paper_network "lambda2_$weight" "${with[@]}" --flow-weight "$weight"
done
paper_network lambda2_0 "${with[@]}" --flow-weight 0
