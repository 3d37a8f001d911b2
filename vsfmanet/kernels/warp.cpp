// Frames beside their warped neighbours, several flows to each side. The twin is in vsfmanet/ops/warp.py.
//
// Images are channels-last, (N, H, W, C) in memory, of float or bfloat16; sums are taken in float and rounded once. A row
// never depends on how rows are shared out, so results are the same for any number of threads.

#include <algorithm>

#include "vector.h"

namespace {

// sigmoid by way of 2^x = 2^whole (1 + polynomial of the rest), |error| < 1e-6; unlike std::exp it makes vectors.
inline float sigmoid(float z) {
    z = z < 87.0f ? z : 87.0f;
    const float x = (z > -87.0f ? z : -87.0f) * -1.44269504f;
    const int whole = static_cast<int>(x + 126.0f) - 126;
    const float t = x - whole;
    const float power = 1.0f + t * (0.69314718f + t * (0.24022651f + t * (0.05550411f + t * (0.00961813f +
                        t * (0.00133336f + t * 0.00015469f)))));
    const uint32_t bits = static_cast<uint32_t>(whole + 127) << 23;
    float scale;
    std::memcpy(&scale, &bits, sizeof scale);
    return 1.0f / (1.0f + power * scale);
}

constexpr long kBlock = 16;  // pixels that are done at once

// Where a group of channels is found: a pixel, and the weights of it and of those to its right, below and below right.
struct Sample {
    int left, top;
    float share[4];
};

// So many channels of a weighted sum of a pixel, the ones to its right, below and below right.
template <class Vector, class T>
void blend(const T* from, long right, long down, const float (&weight)[4], T* to) {
    typename Vector::Values a, b, c, d;
    Vector::load(from, a);
    Vector::load(from + right, b);
    Vector::load(from + down, c);
    Vector::load(from + down + right, d);
    Vector::store(to, weight[0] * a + weight[1] * b + weight[2] * c + weight[3] * d);
}

// `flow` is channels-last as images are; `place` is the row and column at which `feat` lies in the neighbours, and their
// height and width. A few pixels are done group by group, not each pixel for all groups: groups that are read each at its
// own place defeat the processor's guess of what will be read next.
template <class T>
void warp_neighbours(const T* feat, const T* next, const T* previous, const float* flow, T* out, const long* place,
                     long count, long height, long width, long channels, long groups, int threads) {
    for_rows(count * height, threads, [=](long index) {
        const int last_line = static_cast<int>(place[2]) - 1, last_column = static_cast<int>(place[3]) - 1;
        const long n = index / height, row = place[3] * channels, small = channels / groups, larger = channels % groups;
        const T* neighbours[2] = {next + n * place[2] * row, previous + n * place[2] * row};
        const float there = place[0] + index % height, here = place[1];
        for (long left = 0; left < width; left += kBlock) {
            const long block = std::min(kBlock, width - left), following = std::min(kBlock, width - left - block);
            T* const own = out + (index * width + left) * 3 * channels;
            for (long x = 0; x < block; ++x) {
                std::memcpy(own + x * 3 * channels, feat + (index * width + left + x) * channels, channels * sizeof(T));
            }
            Sample samples[kBlock];
            for (long pair = 0; pair < 2 * groups; ++pair) {
                const float* at = flow + ((index * width + left) * 2 * groups + pair) * 3;
#pragma omp simd
                for (int x = 0; x < static_cast<int>(block); ++x) {
                    const float column = clamped(here + left + x + at[6 * groups * x], last_column);
                    const float line = clamped(there + at[6 * groups * x + 1], last_line);
                    const float seen = sigmoid(at[6 * groups * x + 2]);
                    const int first = static_cast<int>(column), top = static_cast<int>(line);
                    const float right_share = column - first, low_share = line - top;
                    const float d = seen * low_share * right_share, c = seen * low_share - d, b = seen * right_share - d;
                    samples[x].left = first;
                    samples[x].top = top;
                    samples[x].share[0] = seen - b - c - d;
                    samples[x].share[1] = b;
                    samples[x].share[2] = c;
                    samples[x].share[3] = d;
                }
                const long side = pair / groups, group = pair % groups, size = small + (group < larger);
                const long start = group * small + (group < larger ? group : larger), rest = channels - start;
                // A share of what the next block reads and writes; of the neighbours, as if it moved as this one does.
                for (long i = following * pair / (2 * groups); i < following * (pair + 1) / (2 * groups); ++i) {
                    const long pixel = index * width + left + kBlock + i;
                    announce<0>(feat + pixel * channels, channels);
                    announce<0>(flow + pixel * 6 * groups, 6 * groups);
                    announce<1>(out + pixel * 3 * channels, 3 * channels);
                }
                for (long i = following * group / groups; i < following * (group + 1) / groups; ++i) {
                    const long line = samples[i].top + 1, column = samples[i].left + kBlock;
                    announce<0>(neighbours[side] + line * row + column * channels, channels);
                }
                T* to = own + (1 + side) * channels + start;
                for (long x = 0; x < block; ++x, to += 3 * channels) {
                    const Sample& sample = samples[x];
                    const T* from = neighbours[side] + start + sample.top * row + sample.left * channels;
                    const long right = sample.left < last_column ? channels : 0, down = sample.top < last_line ? row : 0;
                    long i = 0;
                    // May run into the next groups, which are written after this one, but never out of the pixel.
                    for (; i < size && i + 16 <= rest; i += 16) blend<Vector16>(from + i, right, down, sample.share, to + i);
                    for (; i < size && i + 8 <= rest; i += 8) blend<Vector8>(from + i, right, down, sample.share, to + i);
                    for (; i < size && i + 4 <= rest; i += 4) blend<Vector4>(from + i, right, down, sample.share, to + i);
                    for (const T* tap = from + i; i < size; ++i, ++tap) {
                        store(to + i, sample.share[0] * widen(tap[0]) + sample.share[1] * widen(tap[right]) +
                                          sample.share[2] * widen(tap[down]) + sample.share[3] * widen(tap[down + right]));
                    }
                }
            }
        }
    });
}

}  // namespace

#define ENTRY_POINTS(T, SUFFIX)                                                                                          \
    extern "C" void warp_neighbours_##SUFFIX(const T* feat, const T* next, const T* previous, const float* flow, T* out, \
                                             const long* place, long count, long height, long width, long channels,      \
                                             long groups, int threads) {                                                 \
        warp_neighbours(feat, next, previous, flow, out, place, count, height, width, channels, groups, threads);        \
    }

ENTRY_POINTS(float, float32)
ENTRY_POINTS(BFloat16, bfloat16)
