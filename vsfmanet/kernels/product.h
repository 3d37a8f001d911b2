// Matrix products that stay in the cache: the core of convolutions. Sums are taken in float.

#pragma once

#include <algorithm>
#include <type_traits>

#include "vector.h"

namespace {

#if defined(__AVX512F__)
constexpr int kMostVectors = 4;  // of outputs that are summed up at once
constexpr int rows_for(int vectors) { return vectors <= 2 ? 12 : 6; }
#else
constexpr int kMostVectors = 2;
constexpr int rows_for(int) { return 6; }
#endif

#ifdef __AVX512BF16__
template <class T>
using Factor = T;  // what is multiplied: pairs of bfloat16 where the processor can
#else
template <class T>
using Factor = float;
#endif
template <class P>
constexpr long kStep = sizeof(P) == 2 ? 2 : 1;  // channels that one instruction multiplies and adds

// How weights lie: for each point and group of vectors of outputs (inputs / step, outputs of the group, step). What a
// point is, its user knows: each has a matrix of its own.
struct Packing {
    Packing(long inputs, long outputs)
        : inputs(inputs), outputs(outputs), vectors((outputs + kLanes - 1) / kLanes),
          groups((vectors + kMostVectors - 1) / kMostVectors) {}

    long first(long group) const { return vectors * group / groups; }

    template <class P>
    long steps() const { return (inputs + kStep<P> - 1) / kStep<P>; }

    template <class P>
    long start(long point, long group) const {
        return (point * vectors + first(group)) * kLanes * steps<P>() * kStep<P>;
    }

    long inputs, outputs, vectors, groups;
};

// `at` gives what `weight` is for (point, output, input).
template <class P, class At>
void pack(P* packed, const Packing& packing, long points, const float* weight, At at) {
    constexpr long step = kStep<P>;
    std::memset(static_cast<void*>(packed), 0, packing.start<P>(points, 0) * sizeof(P));
    for (long group = 0; group < packing.groups; ++group) {
        const long from = packing.first(group) * kLanes, width = packing.first(group + 1) * kLanes - from;
        for (long o = from; o < std::min(from + width, packing.outputs); ++o) {
            for (long i = 0; i < packing.inputs; ++i) {
                for (long point = 0; point < points; ++point) {
                    P* const to = packed + packing.start<P>(point, group);
                    store(to + (i / step * width + o - from) * step + i % step, at(weight, packing, point, o, i));
                }
            }
        }
    }
}

// Calls `run` with a number of vectors as a constant.
template <class Run>
void with_vectors(long vectors, Run run) {
    if (vectors == 1) run(std::integral_constant<int, 1>{});
    if (vectors == 2) run(std::integral_constant<int, 2>{});
    if constexpr (kMostVectors > 2) {
        if (vectors == 3) run(std::integral_constant<int, 3>{});
        if (vectors == 4) run(std::integral_constant<int, 4>{});
    }
}

// Products of several rows of inputs with so many vectors of outputs; `put` is given each with its row and vector. Rows, and
// in each row chunks of as many inputs as there are lanes, are so far apart.
template <int kVectors, int kRows, class P, class Put>
void multiply(const P* in, long row_step, long chunk_step, const P* weight, long steps, Put put) {
    constexpr long kInner = kLanes / kStep<P>;
    Lanes sum[kRows][kVectors] = {};
    for (long done = 0; done < steps; done += kInner, in += chunk_step) {
        const P* from = in;
        for (long i = std::min(kInner, steps - done); i > 0; --i, from += kStep<P>, weight += kStep<P> * kLanes * kVectors) {
#ifdef __AVX512BF16__
            if constexpr (sizeof(P) == 2) {
                __m512bh factor[kVectors];
#pragma GCC unroll 4
                for (int v = 0; v < kVectors; ++v) std::memcpy(&factor[v], weight + 2 * kLanes * v, sizeof factor[v]);
#pragma GCC unroll 12
                for (int row = 0; row < kRows; ++row) {
                    int32_t pair;
                    std::memcpy(&pair, from + row * row_step, sizeof pair);
                    const __m512bh value = (__m512bh)_mm512_set1_epi32(pair);
#pragma GCC unroll 4
                    for (int v = 0; v < kVectors; ++v) {
                        sum[row][v] = (Lanes)_mm512_dpbf16_ps((__m512)sum[row][v], value, factor[v]);
                    }
                }
                continue;
            }
#endif
            if constexpr (sizeof(P) == 4) {
                Lanes factor[kVectors];
#pragma GCC unroll 4
                for (int v = 0; v < kVectors; ++v) Native::load(weight + kLanes * v, factor[v]);
#pragma GCC unroll 12
                for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 4
                    for (int v = 0; v < kVectors; ++v) sum[row][v] += from[row * row_step] * factor[v];
                }
            }
        }
    }
#pragma GCC unroll 12
    for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) put(row, v, sum[row][v]);
    }
}

}  // namespace
