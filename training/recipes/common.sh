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
