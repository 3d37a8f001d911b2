// Convolutions of 3x3 by Winograd's algorithm F(4x4, 3x3): a quarter of the multiplications.
//
// A tile of 6x6 input pixels gives 4x4 output pixels. Seen as polynomials, the tile and the weights are evaluated at six
// points along each axis, multiplied there (which is a matrix product over channels for each of the 36 points), and the
// result is brought back to pixels. Source: Lavin and Gray (arXiv 1509.09308); the points 0, 3/4, -3/4, 3/2, -3/2 and
// infinity, rather than the usual 0, 1, -1, 2, -2, lose less where bfloat16 is multiplied.
//
// Images are channels-last, (N, H, W, C) in memory, of float or bfloat16. Tiles are done in blocks that stay in the cache,
// and no tile depends on the others, so results are the same for any number of threads.

#include <algorithm>
#include <numeric>
#include <type_traits>
#include <vector>

#include "product.h"

namespace {

constexpr long kPoints = 36;
constexpr long kTiles = 12;  // in a block; a multiple of what `kRows` can be
constexpr long kAhead = 8;   // pixels by which reading is announced

// The points are 0, a, -a, b, -b and infinity.
constexpr float kA = 0.75f, kB = 1.5f, kA2 = kA * kA, kB2 = kB * kB, kA3 = kA2 * kA, kB3 = kB2 * kB;
constexpr float kSum = kA2 + kB2, kProduct = kA2 * kB2;
constexpr double kNearA = 2 * kA2 * (kA2 - kB2), kNearB = 2 * kB2 * (kB2 - kA2);
constexpr double kWeights[6][3] = {
    {1.0 / kProduct, 0, 0},
    {1 / kNearA, kA / kNearA, kA2 / kNearA},
    {1 / kNearA, -kA / kNearA, kA2 / kNearA},
    {1 / kNearB, kB / kNearB, kB2 / kNearB},
    {1 / kNearB, -kB / kNearB, kB2 / kNearB},
    {0, 0, 1},
};

inline void to_points(const Lanes (&pixel)[6], Lanes (&point)[6]) {
    const Lanes even_a = pixel[4] - kB2 * pixel[2], odd_a = pixel[3] - kB2 * pixel[1];
    const Lanes even_b = pixel[4] - kA2 * pixel[2], odd_b = pixel[3] - kA2 * pixel[1];
    point[0] = pixel[4] - kSum * pixel[2] + kProduct * pixel[0];
    point[1] = even_a + kA * odd_a;
    point[2] = even_a - kA * odd_a;
    point[3] = even_b + kB * odd_b;
    point[4] = even_b - kB * odd_b;
    point[5] = pixel[5] - kSum * pixel[3] + kProduct * pixel[1];
}

inline void to_pixels(const Lanes (&point)[6], Lanes (&pixel)[4]) {
    const Lanes even_a = point[1] + point[2], odd_a = point[1] - point[2];
    const Lanes even_b = point[3] + point[4], odd_b = point[3] - point[4];
    pixel[0] = point[0] + even_a + even_b;
    pixel[1] = kA * odd_a + kB * odd_b;
    pixel[2] = kA2 * even_a + kB2 * even_b;
    pixel[3] = kA3 * odd_a + kB3 * odd_b + point[5];
}

// A value of `weight`, (outputs, inputs, 3, 3), at a point.
inline float weight_at(const float* weight, const Packing& packing, long point, long output, long input) {
    const float* taps = weight + (output * packing.inputs + input) * 9;
    double sum = 0;
    for (int tap = 0; tap < 9; ++tap) {
        sum += kWeights[point / 6][tap / 3] * kWeights[point % 6][tap % 3] * taps[tap];
    }
    return static_cast<float>(sum);
}

// Where tiles lie in images of outputs (N, H, W).
struct Grid {
    Grid(long count, long height, long width)
        : down((height + 3) / 4), across((width + 3) / 4), tiles(count * down * across) {}

    long image(long tile) const { return tile / across / down; }
    long top(long tile) const { return tile / across % down * 4; }
    long left(long tile) const { return tile % across * 4; }

    long down, across, tiles;
};

// Has a part of what a block of tiles reads or writes brought into the cache, as its points are gone through: of so many
// rows, the first of which is `above` that of the tiles. `by` times as many rows as the grid has are in an image.
template <int kWrite, class T>
void announce(const Grid& grid, const T* images, long tile, long point, long rows, long above, long by, long height,
              long width, long channels) {
    const long y = grid.top(tile) * by + point % rows - above, x = grid.left(tile);
    const long parts = kPoints / rows, part = point / rows;
    if (tile >= grid.tiles || y < 0 || y >= height || part >= parts) return;
    const long values = std::min(kTiles * 4, width - x) * channels, first = values * part / parts;
    announce<kWrite>(images + ((grid.image(tile) * height + y) * width + x) * channels + first,
                     values * (part + 1) / parts - first);
}

// Evaluates so many vectors of channels, from `channel` on, of tiles that lie side by side from column `left` on, which
// may be outside as may the last ones. `into` takes the first of them, as (point, chunk of lanes, tile, lane). What is
// loaded is read by `get`.
template <int kSide, class T, class P, class Get>
void evaluate(const T* const (&rows)[6], const long (&next)[6], long left, long width, long tiles, long channel, P* into,
              long plane, Get get) {
    Lanes ring[12][kSide][6];  // columns in turn, evaluated downwards: two of each tile are those of the next one
    const auto column = [&](long x, Lanes (&to)[kSide][6]) __attribute__((always_inline)) {
        if (x < 0 || x >= width) {
            for (auto& side : to) std::fill(side, side + 6, Lanes{});
            return;
        }
#pragma GCC unroll 2
        for (int side = 0; side < kSide; ++side) {
            Lanes pixel[6], point[6];
#pragma GCC unroll 6
            for (int r = 0; r < 6; ++r) pixel[r] = get(rows[r] + x * next[r] + (next[r] ? channel + side * kLanes : 0));
            to_points(pixel, point);
#pragma GCC unroll 6
            for (int r = 0; r < 6; ++r) to[side][r] = point[r];
        }
    };
    column(left, ring[0]);
    column(left + 1, ring[1]);
    long now = 0;
    for (long tile = 0; tile < tiles; ++tile, left += 4, into += kLanes) {
        for (long x = left + kAhead; x < std::min(left + kAhead + 4, width); ++x) {
            for (int r = 0; r < 6; ++r) {
                // The line in which the channels end, for the one in which they begin was read with those before them;
                // and already now, less near, the one in which those after them end.
                const auto start = reinterpret_cast<const char*>(rows[r] + x * next[r] + (next[r] ? channel : 0));
                __builtin_prefetch(start + kLine - 1);
                __builtin_prefetch(start + 2 * kLine - 1, 0, 2);
            }
        }
        const long after = now == 8 ? 0 : now + 4;
        column(left + 2, ring[now + 2]);
        column(left + 3, ring[now + 3]);
        column(left + 4, ring[after]);
        column(left + 5, ring[after + 1]);
#pragma GCC unroll 2
        for (int side = 0; side < kSide; ++side) {
            P* to = into + side * kTiles * kLanes;
#pragma GCC unroll 6
            for (int i = 0; i < 6; ++i) {
                const Lanes pixel[6] = {ring[now][side][i],     ring[now + 1][side][i], ring[now + 2][side][i],
                                        ring[now + 3][side][i], ring[after][side][i],   ring[after + 1][side][i]};
                Lanes point[6];
                to_points(pixel, point);
#pragma GCC unroll 6
                for (int j = 0; j < 6; ++j, to += plane) Native::store(to, point[j]);
            }
        }
        now = after;
    }
}

// Brings so many channels of a tile, found in `from` at each point, back to pixels; those below zero are multiplied by
// `slope`. Pixels of `to` are `step` values apart, its rows `row`.
template <class T, class Put>
void finish(const float* from, long plane, const Lanes& bias, float slope, T* to, long tall, long wide, long row, long step,
            Put put) {
    Lanes half[4][6];
#pragma GCC unroll 6
    for (int j = 0; j < 6; ++j) {
        Lanes point[6], pixel[4];
#pragma GCC unroll 6
        for (int i = 0; i < 6; ++i) Native::load(from + (i * 6 + j) * plane, point[i]);
        to_pixels(point, pixel);
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) half[i][j] = pixel[i];
    }
    for (int i = 0; i < tall; ++i, to += row) {
        Lanes pixel[4];
        to_pixels(half[i], pixel);
        for (int j = 0; j < wide; ++j) {
            const Lanes value = pixel[j] + bias, less = value * slope;
            put(to + j * step, value > less ? value : less);
        }
    }
}

// Bytes that a point takes in a block: whole cache lines, an odd number, so that not all points fall in the same sets.
inline long plane_bytes(long bytes) { return ((bytes + kLine - 1) / kLine | 1) * kLine; }

// The inputs are so many images side by side, (N, height, width, widths[i]) in memory; where another follows, the width is
// a multiple of a register's lanes. Around them are `border` zeros, 1 or 0; without, outputs are fewer by two. Values below
// zero are multiplied by `slope`, from 0 to 1. Outputs go to squares of `side` by `side` pixels, whose channels are then so
// many fewer (a pixel shuffle; the weights are packed for it): multiples of a register's lanes, unless `side` is 1.
template <class T>
void conv3x3(const T* const* images, const long* widths, long parts, const Factor<T>* weight, const float* bias, float slope,
             T* out, long count, long height, long width, long outputs, long border, long side, int threads) {
    using P = Factor<T>;
    const long inputs = std::accumulate(widths, widths + parts, 0L);
    const Packing packing(inputs, outputs);
    const long rows_out = height - 2 + 2 * border, columns_out = width - 2 + 2 * border, channels = outputs / (side * side);
    const Grid grid(count, rows_out, columns_out);
    const std::vector<T> zero(2 * kLanes, T{});
    const T* const zeros = zero.data();
    const long chunks = (inputs + kLanes - 1) / kLanes, stride = packing.vectors * kLanes;
    const long in_bytes = plane_bytes(chunks * kTiles * kLanes * sizeof(P));
    const long out_bytes = plane_bytes(kTiles * stride * sizeof(float));
    for_rows((grid.tiles + kTiles - 1) / kTiles, threads, [=](long block) {
        char* const start = scratch(kPoints * (in_bytes + out_bytes));
        P* const points = reinterpret_cast<P*>(start);
        float* const sums = reinterpret_cast<float*>(start + kPoints * in_bytes);
        const long plane = in_bytes / sizeof(P), sum_plane = out_bytes / sizeof(float);
        const long first = block * kTiles, stop = std::min(grid.tiles, first + kTiles);

        for (long tile = first; tile < stop;) {
            const long end = std::min(stop, (tile / grid.across + 1) * grid.across);  // of those side by side
            P* into = points + (tile - first) * kLanes;
            for (long part = 0; part < parts; ++part) {
                const long channels = widths[part];
                const T* const image = images[part] + grid.image(tile) * height * width * channels;
                const T* rows[6];
                long next[6];
                for (int r = 0; r < 6; ++r) {
                    const long y = grid.top(tile) + r - border;
                    const bool inside = y >= 0 && y < height;
                    rows[r] = inside ? image + y * width * channels : zeros;
                    next[r] = inside ? channels : 0;
                }
                constexpr int kSide = kLine / (kLanes * sizeof(T));  // vectors in a line
                const auto run = [&](auto side, long c, auto get) {
                    evaluate<decltype(side)::value>(rows, next, grid.left(tile) - border, width, end - tile, c,
                                                    into + c * kTiles, plane, get);
                };
                long c = 0;
                for (; c + kSide * kLanes <= channels; c += kSide * kLanes) {
                    run(std::integral_constant<int, kSide>{}, c, [](const T* from) {
                        Lanes values;
                        Native::load(from, values);
                        return values;
                    });
                }
                for (; c < channels; c += kLanes) {
                    const long some = std::min<long>(kLanes, channels - c);
                    run(std::integral_constant<int, 1>{}, c, [=](const T* from) { return load_some(from, some); });
                }
                into += channels * kTiles;
            }
            tile = end;
        }

        for (long point = 0; point < kPoints; ++point) {
            for (long part = 0; part < parts; ++part) {
                announce<0>(grid, images[part], stop, point, 6, border, 1, height, width, widths[part]);
            }
            announce<1>(grid, out, first, point, 4 * side, 0, side, rows_out * side, columns_out, side * channels);
            for (long group = 0; group < packing.groups; ++group) {
                const long from = packing.first(group), vectors = packing.first(group + 1) - from;
                const P* const factors = weight + packing.start<P>(point, group);
                with_vectors(vectors, [&](auto many) {
                    constexpr int kVectors = decltype(many)::value, kRows = rows_for(kVectors);
                    for (long tile = 0; tile < stop - first; tile += kRows) {
                        float* const to = sums + point * sum_plane + tile * stride + from * kLanes;
                        multiply<kVectors, kRows>(
                            points + point * plane + tile * kLanes, kLanes, kTiles * kLanes, factors, packing.steps<P>(),
                            [=](int row, int v, const Lanes& sum) { Native::store(to + row * stride + v * kLanes, sum); });
                    }
                });
            }
        }

        for (long tile = first; tile < stop; ++tile) {
            const long top = grid.top(tile), left = grid.left(tile);
            const long tall = std::min<long>(4, rows_out - top), wide = std::min<long>(4, columns_out - left);
            for (long c = 0; c < outputs; c += kLanes) {
                const long some = std::min<long>(kLanes, outputs - c);
                const float* const from = sums + (tile - first) * stride + c;
                const long y = (grid.image(tile) * rows_out + top) * side + c / channels / side;
                const long x = left * side + c / channels % side;
                T* const to = out + (y * columns_out * side + x) * channels + c % channels;
                const auto run = [&](auto put) {
                    const long step = side * channels, row = side * columns_out * step;
                    finish(from, sum_plane, load_some(bias + c, some), slope, to, tall, wide, row, step, put);
                };
                if (some == kLanes) {
                    run([](T* pixel, const Lanes& values) { Native::store(pixel, values); });
                } else {
                    run([=](T* pixel, const Lanes& values) { store_some(pixel, values, some); });
                }
            }
        }
    });
}

}  // namespace

#define ENTRY_POINTS(T, SUFFIX)                                                                                         \
    extern "C" long conv3x3_packed_bytes_##SUFFIX(long inputs, long outputs, long) {                                    \
        return Packing(inputs, outputs).start<Factor<T>>(kPoints, 0) * sizeof(Factor<T>);                               \
    }                                                                                                                   \
    extern "C" void conv3x3_pack_##SUFFIX(const float* weight, Factor<T>* packed, long inputs, long outputs,            \
                                          long side) {                                                                  \
        const long places = side * side, channels = outputs / places;                                                   \
        pack(packed, Packing(inputs, outputs), kPoints, weight,                                                         \
             [=](const float* from, const Packing& packing, long point, long output, long input) {                      \
                 return weight_at(from, packing, point, output % channels * places + output / channels, input);         \
             });                                                                                                        \
    }                                                                                                                   \
    extern "C" void conv3x3_##SUFFIX(const T* const* images, const long* widths, long parts, const Factor<T>* weight,   \
                                     const float* bias, float slope, T* out, long count, long height, long width,       \
                                     long outputs, long border, long side, int threads) {                               \
        conv3x3(images, widths, parts, weight, bias, slope, out, count, height, width, outputs, border, side, threads); \
    }

ENTRY_POINTS(float, float32)
ENTRY_POINTS(BFloat16, bfloat16)
