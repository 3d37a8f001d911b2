// What Restormer's networks are made of: a pointwise convolution, a depthwise one of 3x3 on what it gives, and what
// follows at once; and pointwise convolutions that are added to a shortcut. Their twins are in vsfmanet/ops/projection.py.
//
// Images are channels-last, (N, H, W, C) in memory, of float or bfloat16, with zeros outside. They are done in parts, and
// each part row by row, so that what lies between the two convolutions, which is several times as wide as what goes in,
// never leaves the cache: three of its rows at once, in float. What is read or written next is announced meanwhile. The
// border of a part is computed in its neighbours too. Parts do not depend on each other, so results are the same for any
// number of threads.

#include <algorithm>
#include <type_traits>
#include <vector>

#include "product.h"

namespace {

constexpr long kPixels = 96;            // of a part of a pointwise convolution
constexpr long kWide = 46, kTall = 48;  // pixels of a part at most; with its borders a multiple of what `kRows` can be
// Pixels between the convolutions are an odd number of vectors apart: an even one would crowd a part of the cache.
constexpr long stride_for(long vectors) { return (vectors | 1) * kLanes; }
constexpr long kRing = 3 * (kWide + 2) * stride_for(kMostVectors);

inline Lanes clamped(Lanes x, float most) {
    x = x < -most ? Lanes{} - most : x;
    return x > most ? Lanes{} + most : x;
}

// The normal distribution, |error| < 4e-7: by erf as a ratio of polynomials (form and coefficients of Eigen's float erf).
inline Lanes normal(Lanes x, float) {
    x = clamped(x * 0.70710678f, 4.0f);
    const Lanes s = x * x;
    Lanes above = s * -2.72614225801306e-10f + 2.77068142495902e-08f;
    above = above * s - 2.10102402082508e-06f;
    above = above * s - 5.69250639462346e-05f;
    above = above * s - 7.34990630326855e-04f;
    above = above * s - 2.95459980854025e-03f;
    above = above * s - 1.60960333262415e-02f;
    Lanes below = s * -1.45660718464996e-05f - 2.13374055278905e-04f;
    below = below * s - 1.68282697438203e-03f;
    below = below * s - 7.37332916720468e-03f;
    below = below * s - 1.42647390514189e-02f;
    return 0.5f + 0.5f * x * above / below;
}

// The same where bfloat16 is wanted, in half the time: |error| < 4e-5. The polynomial is fitted for the least maximum.
inline Lanes normal(Lanes x, BFloat16) {
    x = clamped(x, 4.0f);
    const Lanes s = x * x;
    Lanes sum = s * 8.063425621e-11f - 7.003472913e-09f;
    sum = sum * s + 2.716158178e-07f;
    sum = sum * s - 6.295003004e-06f;
    sum = sum * s + 9.890810907e-05f;
    sum = sum * s - 1.133922255e-03f;
    sum = sum * s + 9.877477773e-03f;
    sum = sum * s - 6.641059369e-02f;
    sum = sum * s + 3.989227116e-01f;
    return 0.5f + x * sum;
}

// The pointwise convolution of some pixels, `step` values apart, for one group of vectors of outputs: `put` is given each
// sum with its pixel and vector, some of them twice. Those `ahead` pixels further on are brought into the cache.
template <int kVectors, class T, class P, class Put>
void pointwise(const T* in, long step, const P* weight, long pixels, long ahead, const Packing& packing, Put put) {
    constexpr int kRows = rows_for(kVectors);
    const P* from = nullptr;
    long from_step = step;
    std::vector<P> converted;
    if constexpr (std::is_same_v<T, P>) {
        from = in;
    } else {
        for (long pixel = 0; pixel < pixels; ++pixel) {
            for (long i = 0; i < packing.inputs; ++i) converted.push_back(widen(in[pixel * step + i]));
        }
        from = converted.data();
        from_step = packing.inputs;
    }
    const auto some = [&](long pixel, auto rows) {
        constexpr int kSome = decltype(rows)::value;
        for (int row = 0; ahead && row < kSome; ++row) {
            announce<0>(in + (pixel + row + ahead) * step, packing.inputs);
        }
        multiply<kVectors, kSome>(from + pixel * from_step, from_step, kLanes, weight, packing.steps<P>(),
                                  [=](int row, int v, const Lanes& sum) { put(pixel + row, v, sum); });
    };
    const long last = pixels - kRows;
    for (long pixel = 0; pixel <= last; pixel += kRows) some(pixel, std::integral_constant<int, kRows>{});
    if (last >= 0 && pixels % kRows) some(last, std::integral_constant<int, kRows>{});  // some of them once more
    for (long pixel = 0; last < 0 && pixel < pixels; ++pixel) some(pixel, std::integral_constant<int, 1>{});
}

// Adds the pointwise convolution of some pixels of `in`, `step` values apart, to those of `shortcut`. Of these, and of `out`,
// those `ahead` pixels further on are brought into the cache; of `in`, those `in_ahead` pixels.
template <class T>
void add_some(const T* in, long step, const Factor<T>* weight, const T* shortcut, T* out, long pixels, long in_ahead,
              long ahead, const Packing& packing) {
    const long outputs = packing.outputs;
    for (long group = 0; group < packing.groups; ++group) {
        const long from = packing.first(group), vectors = packing.first(group + 1) - from;
        const auto put = [=](long pixel, int v, const Lanes& sum) {
            const long channel = (from + v) * kLanes, at = pixel * outputs + channel;
            __builtin_prefetch(shortcut + at + ahead * outputs);
            __builtin_prefetch(out + at + ahead * outputs, 1);
            if (channel + kLanes <= outputs) {
                Lanes add;
                Native::load(shortcut + at, add);
                Native::store(out + at, sum + add);
            } else {
                const long some = outputs - channel;
                store_some(out + at, sum + load_some(shortcut + at, some), some);
            }
        };
        with_vectors(vectors, [&](auto many) {
            pointwise<decltype(many)::value>(in, step, weight + packing.start<Factor<T>>(0, group), pixels,
                                             group ? 0 : in_ahead, packing, put);
        });
    }
}

// Pixels of `in` are `step` values apart, those of `shortcut` and `out` next to each other.
template <class T>
void add_pointwise(const T* in, long step, const Factor<T>* weight, const T* shortcut, T* out, long pixels, long inputs,
                   long outputs, int threads) {
    const Packing packing(inputs, outputs);
    for_rows((pixels + kPixels - 1) / kPixels, threads, [=](long part) {
        const long first = part * kPixels, count = std::min(kPixels, pixels - first);
        add_some(in + first * step, step, weight, shortcut + first * outputs, out + first * outputs, count, kPixels, kPixels,
                 packing);
    });
}

template <int kMatrices>
struct Taps {
    Taps(const float* taps, long outputs, long channel, long some) {
        for (int m = 0; m < kMatrices; ++m) {
            for (int tap = 0; tap < 9; ++tap) {
                weight[m][tap] = load_some(taps + (tap * kMatrices + m) * outputs + channel, some);
            }
        }
    }

    Lanes weight[kMatrices][9];
};

// How an image is cut into parts, of much the same size.
struct Cut {
    Cut(long height, long width)
        : down((height + kTall - 1) / kTall), across((width + kWide - 1) / kWide), tall((height + down - 1) / down) {}

    long down, across, tall;
};

// What becomes of gated channels: another pointwise convolution, added to a shortcut.
template <class T>
struct Reduction {
    const Factor<T>* weight;
    const T* shortcut;
    long outputs;
};

// `weight` has two matrices where `kGated`, the gates first, and one else; `taps` are (9, matrices, outputs). Gated, rows are
// reduced as they are done, so that nobody else sees them; else `squares` (parts, outputs) receives the sums of the squares of
// what is written. Pixels of `in` are `step` values apart.
template <bool kGated, class T>
void project(const T* in, long step, const Factor<T>* weight, const float* taps, T* out, float* squares,
             Reduction<T> reduction, long count, long height, long width, long inputs, long outputs, int threads) {
    constexpr int kMatrices = kGated ? 2 : 1;
    const Packing packing(inputs, outputs), reducing(outputs, reduction.outputs);
    const Cut cut(height, width);
    const long row_step = kGated ? (outputs + 1) / 2 * 2 : outputs;  // bfloat16 is multiplied by pairs
    const long ring_floats = packing.groups * kMatrices * kRing;
    for_rows(count * cut.down * cut.across, threads, [=](long part) {
        char* const start = scratch(ring_floats * sizeof(float) + (kGated ? kWide * row_step * sizeof(T) : 0));
        float* const rings = reinterpret_cast<float*>(start);
        T* const gated = reinterpret_cast<T*>(start + ring_floats * sizeof(float));
        if (kGated) std::fill(gated, gated + kWide * row_step, T{});
        const long left = part % cut.across * kWide, right = std::min(width, left + kWide);
        const long top = part / cut.across % cut.down * cut.tall, bottom = std::min(height, top + cut.tall);
        const long image = part / cut.across / cut.down * height;  // its first row
        const long first = std::max(left - 1, 0L), last = std::min(right + 1, width);  // pixels read of each row

        for (long y = top - 1; y <= bottom; ++y) {
            const long above = (image + y - 1) * width + left;  // the first pixel of the row that is done now
            T* const row = kGated ? gated : out + above * outputs;
            for (long group = 0; group < packing.groups; ++group) {
                const long from = packing.first(group), vectors = packing.first(group + 1) - from;
                const long stride = stride_for(vectors), ahead = group || y + 1 >= height ? 0 : width;
                const auto line = [&](int matrix, long y) {
                    return rings + (group * kMatrices + matrix) * kRing + (y + 3) % 3 * (kWide + 2) * stride;
                };
                for (int m = 0; m < kMatrices; ++m) {
                    float* const to = line(m, y);
                    if (y < 0 || y >= height) {
                        std::fill(to, to + (kWide + 2) * stride, 0.0f);
                        continue;
                    }
                    std::fill(to, to + stride, 0.0f);
                    std::fill(to + (right - left + 1) * stride, to + (right - left + 2) * stride, 0.0f);
                    with_vectors(vectors, [&](auto many) {
                        constexpr int kVectors = decltype(many)::value;
                        float* const sums = to + (first - left + 1) * stride;
                        pointwise<kVectors>(in + ((image + y) * width + first) * step, step,
                                            weight + packing.start<Factor<T>>(m, group), last - first, m ? 0 : ahead,
                                            packing, [=](long pixel, int v, const Lanes& sum) {
                                                Native::store(sums + pixel * stride_for(kVectors) + v * kLanes, sum);
                                                if (!kGated) {
                                                    __builtin_prefetch(row + pixel * outputs + (from + v) * kLanes, 1);
                                                }
                                            });
                    });
                }
                if (y <= top) continue;
                for (long v = 0; v < vectors; ++v) {
                    const long channel = (from + v) * kLanes, some = std::min<long>(kLanes, outputs - channel);
                    const Taps<kMatrices> by(taps, outputs, channel, some);
                    const float* lines[kMatrices][3];
                    for (int m = 0; m < kMatrices; ++m) {
                        for (int i = 0; i < 3; ++i) lines[m][i] = line(m, y - 2 + i) + v * kLanes;
                    }
                    T* to = row + channel;
                    Lanes square{};
                    for (long x = 0; x < right - left; ++x, to += row_step) {
                        Lanes sum[kMatrices] = {};
#pragma GCC unroll 2
                        for (int m = 0; m < kMatrices; ++m) {
#pragma GCC unroll 9
                            for (int tap = 0; tap < 9; ++tap) {
                                Lanes value;
                                Native::load(lines[m][tap / 3] + (x + tap % 3) * stride, value);
                                sum[m] += by.weight[m][tap] * value;
                            }
                        }
                        if constexpr (kGated) {
                            sum[0] = sum[0] * normal(sum[0], T{}) * sum[kMatrices - 1];
                        }
                        if (some == kLanes) {
                            Native::store(to, sum[0]);
                        } else {
                            store_some(to, sum[0], some);
                        }
                        if constexpr (!kGated) {
                            T stored[kLanes];
                            Native::store(stored, sum[0]);
                            Native::load(stored, sum[0]);
                            square += sum[0] * sum[0];
                        }
                    }
                    if constexpr (!kGated) {
                        float* const total = squares + part * outputs + channel;
                        store_some(total, y == top + 1 ? square : load_some(total, some) + square, some);
                    }
                }
            }
            if (kGated && y > top) {
                const T* const shortcut = reduction.shortcut + above * reduction.outputs;
                add_some(gated, row_step, reduction.weight, shortcut, out + above * reduction.outputs, right - left, 0, width,
                         reducing);
            }
        }
    });
}

}  // namespace

extern "C" long projection_parts(long count, long height, long width) {
    const Cut cut(height, width);
    return count * cut.down * cut.across;
}

#define ENTRY_POINTS(T, SUFFIX)                                                                                         \
    extern "C" long projection_packed_bytes_##SUFFIX(long matrices, long inputs, long outputs) {                        \
        return Packing(inputs, outputs).start<Factor<T>>(matrices, 0) * sizeof(Factor<T>);                              \
    }                                                                                                                   \
    extern "C" void projection_pack_##SUFFIX(const float* weight, Factor<T>* packed, long matrices, long inputs,        \
                                             long outputs) {                                                            \
        pack(packed, Packing(inputs, outputs), matrices, weight,                                                        \
             [](const float* from, const Packing& packing, long matrix, long output, long input) {                      \
                 return from[(matrix * packing.outputs + output) * packing.inputs + input];                             \
             });                                                                                                        \
    }                                                                                                                   \
    extern "C" void add_pointwise_##SUFFIX(const T* in, long step, const Factor<T>* weight, const T* shortcut, T* out,  \
                                           long pixels, long inputs, long outputs, int threads) {                       \
        add_pointwise(in, step, weight, shortcut, out, pixels, inputs, outputs, threads);                               \
    }                                                                                                                   \
    extern "C" void feed_forward_##SUFFIX(const T* in, long step, const Factor<T>* weight, const float* taps,           \
                                          const Factor<T>* reduce, const T* shortcut, T* out, long count, long height,  \
                                          long width, long inputs, long hidden, long outputs, int threads) {            \
        const Reduction<T> reduction{reduce, shortcut, outputs};                                                        \
        project<true>(in, step, weight, taps, out, nullptr, reduction, count, height, width, inputs, hidden, threads);  \
    }                                                                                                                   \
    extern "C" void squared_projection_##SUFFIX(const T* in, long step, const Factor<T>* weight, const float* taps,     \
                                                T* out, float* squares, long count, long height, long width,            \
                                                long inputs, long outputs, int threads) {                               \
        const Reduction<T> none{nullptr, nullptr, 0};                                                                   \
        project<false>(in, step, weight, taps, out, squares, none, count, height, width, inputs, outputs, threads);     \
    }

ENTRY_POINTS(float, float32)
ENTRY_POINTS(BFloat16, bfloat16)
