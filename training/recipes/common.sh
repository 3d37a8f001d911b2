# Sourced by the recipes. Every command below goes on where it stopped, so a recipe that was ended is run again as it was.
#
# Usage of a recipe: training/recipes/NAME.sh PHOTOS [RUNS], from the root of the checkout.
#   PHOTOS  folder of sharp photographs
#   RUNS    folder for pools, checkpoints and exports (default: runs)
set -euo pipefail
photos=${1:?a folder of sharp photographs is needed}
runs=${2:-runs}
python=${PYTHON:-python}
# Memory of activations is kept between steps, in huge pages: otherwise a step takes up to twice as long on a CPU.
export GLIBC_TUNABLES=glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=100000000000:glibc.malloc.hugetlb=1

t() { local tool=$1; shift; "$python" -m "training.$tool" "$@"; }

# Pools: sequences of 8 frames, five exposures each. The number after the name is the seed.
pool_x4_0() { t render_pool --photos "$photos" --out "$runs/pool" --count 900 --size 256; }
pool_x4_1() { t render_pool --photos "$photos" --out "$runs/pool_1" --count 800 --size 256 --seed 1; }
pool_x1_1() { t render_pool --photos "$photos" --out "$runs/pool_x1" --scale 1 --size 160 --count 500 --seed 1; }
pool_x2_1() { pool_x1_1; t reduce_pool "$runs/pool_x1" --scale 2 --out "$runs/pool_x2"; }

# Weights of a run, $runs/models/RUN.safetensors, for --start-from of the next one.
stage() { ship "$runs/$1/latest.pt" "$1" "a stage of a recipe" "$runs/models"; }

# ship CHECKPOINT NAME DESCRIPTION [FOLDER]: the weights file and its entry in the folder's manifest.
ship() {
    t export "$1" --name "$2" --models "${4:-$runs/models}" --description "$3" \
        --data "photographs of $(basename "$photos")" --command "training/recipes/$(basename "$0")"
}

# The paper's own recipe at scale 4, without what this project adds. STEPS: of stages 2 and 3; POOL: one of prepare_reds.
steps=${STEPS:-280000}
paper_pool() {
    paper_pool=${POOL:-$runs/pool_paper}
    [ -n "${POOL:-}" ] || t render_pool --photos "$photos" --out "$paper_pool" --count 2000 --size 320 --frames 10
}
# The same at scale 1, for MMP-RNN and JFFRA; sets `pool`. POOL: one of prepare_reds or prepare_gopro with --scale 1, or of prepare_bsd.
paper_pool_x1() {
    pool=${POOL:-$runs/pool_x1_256}
    [ -n "${POOL:-}" ] || t render_pool --photos "$photos" --out "$pool" --scale 1 --size 288 --count 2000 --frames 10
}
# paper_extractor NAME OPTIONS...: stage 1.
paper_extractor() {
    local name=$1; shift
    [ -f "$runs/$name.pt" ] || t train_extractor --pool "$paper_pool" --preset paper --crops 26 --steps 20000 \
        --learning-rate 0.01 --out "$runs/$name.pt" "$@"
}
# paper_stage TOOL NAME OPTIONS...: stage 2 (train_degradation) or 3 (train_restoration).
paper_stage() {
    local tool=$1 name=$2; shift 2
    t "$tool" --pool "$paper_pool" --out "$runs/$name" --preset paper --clips 8 --frames 10 --crop 64 --exposure-mode constant \
        --known-exposure 0 --degradation-frames 0 --warp-weight 1e-4 --flow-weight 1e-4 --steps "$steps" --learning-rate 2e-4 \
        --warmup 1 --decay 0 --halve-at 0.7 0.85 0.95 "$@"
}
# paper_network NAME OPTIONS...: both.
paper_network() {
    local name=$1; shift
    paper_stage train_degradation "${name}_netd" "$@"
    paper_stage train_restoration "$name" --degradation "$runs/${name}_netd/latest.pt" "$@"
}
