// CPU kernels of vsfmanet: what each computes is said, in plain torch, by its twin in vsfmanet/ops.
//
// Images are channels-last, (N, H, W, C) in memory, of float or bfloat16; sums are taken in float and rounded once. Inner
// loops run over channels, which are contiguous, so that the compiler makes vectors of them; rows go to the threads.
// A row never depends on how rows are shared out, so results are the same for any number of threads.

#include <cmath>
#include <vector>

#include "vector.h"

namespace {

inline float clamped(float value, float high) {  // a NaN becomes 0: never an address outside the image
    return value > 0 ? (value < high ? value : high) : 0.0f;
}

// erf as a ratio of polynomials in x^2, |error| < 4e-7 (the form and coefficients of Eigen's float erf).
inline float erf_ratio(float x) {
    x = x < -4.0f ? -4.0f : (x > 4.0f ? 4.0f : x);
    const float s = x * x;
    float above = -2.72614225801306e-10f;
    above = above * s + 2.77068142495902e-08f;
    above = above * s - 2.10102402082508e-06f;
    above = above * s - 5.69250639462346e-05f;
    above = above * s - 7.34990630326855e-04f;
    above = above * s - 2.95459980854025e-03f;
    above = above * s - 1.60960333262415e-02f;
    float below = -1.45660718464996e-05f;
    below = below * s - 2.13374055278905e-04f;
    below = below * s - 1.68282697438203e-03f;
    below = below * s - 7.37332916720468e-03f;
    below = below * s - 1.42647390514189e-02f;
    return x * above / below;
}

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

// Copies values as another type.
template <class From, class To>
void convert(const From* from, To* to, long count) {
    const auto copy = [=](auto vector, long i) {
        typename decltype(vector)::Values values;
        vector.load(from + i, values);
        vector.store(to + i, values);
    };
    long i = 0;
    for (; i + 16 <= count; i += 16) copy(Vector16{}, i);
    for (; i + 4 <= count; i += 4) copy(Vector4{}, i);
    for (; i < count; ++i) copy(Vector1{}, i);
}

// `flow` is channels-last as images are; `place` is the row and column at which `feat` lies in the neighbours, and their
// height and width. A row is done group by group, not pixel by pixel: groups that are read each at its own place defeat
// the processor's guess of what will be read next, and a row of one group does not (1.8 times as fast).
template <class T>
void warp_neighbours(const T* feat, const T* next, const T* previous, const float* flow, T* out, const long* place,
                     long count, long height, long width, long channels, long groups, int threads) {
    for_rows(count * height, threads, [=](long index) {
        const int last_line = static_cast<int>(place[2]) - 1, last_column = static_cast<int>(place[3]) - 1;
        const long n = index / height, row = place[3] * channels, small = channels / groups, larger = channels % groups;
        const T* neighbours[2] = {next + n * place[2] * row, previous + n * place[2] * row};
        const float there = place[0] + index % height, here = place[1];
        T* const own = out + index * width * 3 * channels;
        for (long x = 0; x < width; ++x) {
            std::memcpy(own + x * 3 * channels, feat + (index * width + x) * channels, channels * sizeof(T));
        }
        std::vector<Sample> found(width);
        Sample* const samples = found.data();
        for (long pair = 0; pair < 2 * groups; ++pair) {
            const float* at = flow + (index * width * 2 * groups + pair) * 3;
#pragma omp simd
            for (int x = 0; x < static_cast<int>(width); ++x) {
                const float column = clamped(here + x + at[6 * groups * x], last_column);
                const float line = clamped(there + at[6 * groups * x + 1], last_line);
                const float seen = sigmoid(at[6 * groups * x + 2]);
                const int left = static_cast<int>(column), top = static_cast<int>(line);
                const float right_share = column - left, low_share = line - top;
                const float d = seen * low_share * right_share, c = seen * low_share - d, b = seen * right_share - d;
                samples[x].left = left;
                samples[x].top = top;
                samples[x].share[0] = seen - b - c - d;
                samples[x].share[1] = b;
                samples[x].share[2] = c;
                samples[x].share[3] = d;
            }
            const long side = pair / groups, group = pair % groups, size = small + (group < larger);
            const long start = group * small + (group < larger ? group : larger), rest = channels - start;
            T* to = own + (1 + side) * channels + start;
            for (long x = 0; x < width; ++x, to += 3 * channels) {
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
    });
}

// One pixel of a 3x3 depthwise convolution with zeros outside. `weight` is (9, C); `zeros` are C of them.
template <class T>
void depthwise_pixel(const T* image, const float* weight, const T* zeros, float* sum, long y, long x, long height,
                     long width, long channels) {
    const T* tap[9];
    for (long i = 0; i < 9; ++i) {
        const long row = y + i / 3 - 1, column = x + i % 3 - 1;
        const bool inside = row >= 0 && row < height && column >= 0 && column < width;
        tap[i] = inside ? image + (row * width + column) * channels : zeros;
    }
    const long c = channels;
#pragma omp simd
    for (long i = 0; i < channels; ++i) {
        sum[i] = weight[i] * widen(tap[0][i]) + weight[c + i] * widen(tap[1][i]) + weight[2 * c + i] * widen(tap[2][i]) +
                 weight[3 * c + i] * widen(tap[3][i]) + weight[4 * c + i] * widen(tap[4][i]) +
                 weight[5 * c + i] * widen(tap[5][i]) + weight[6 * c + i] * widen(tap[6][i]) +
                 weight[7 * c + i] * widen(tap[7][i]) + weight[8 * c + i] * widen(tap[8][i]);
    }
}

template <class T>
void gated_depthwise(const T* in, const float* weight, T* out, long count, long height, long width, long channels,
                     int threads) {
    const std::vector<T> zeros(channels, T{});
    const T* zero = zeros.data();
    for_rows(count * height, threads, [=](long index) {
        const long n = index / height, y = index % height, half = channels / 2;
        std::vector<float> sums(channels);
        float* sum = sums.data();
        for (long x = 0; x < width; ++x) {
            depthwise_pixel(in + n * height * width * channels, weight, zero, sum, y, x, height, width, channels);
            T* to = out + (index * width + x) * half;
#pragma omp simd
            for (long i = 0; i < half; ++i) {
                const float gate = sum[i];
                store(to + i, 0.5f * gate * (1.0f + erf_ratio(gate * 0.70710678f)) * sum[half + i]);
            }
        }
    });
}

// `squares` (N, H, C) receives the sum of squares of each row of `out`.
template <class T>
void depthwise_squares(const T* in, const float* weight, T* out, float* squares, long count, long height, long width,
                       long channels, int threads) {
    const std::vector<T> zeros(channels, T{});
    const T* zero = zeros.data();
    for_rows(count * height, threads, [=](long index) {
        const long n = index / height, y = index % height;
        std::vector<float> sums(2 * channels);
        float *sum = sums.data(), *square = sum + channels;
        for (long x = 0; x < width; ++x) {
            depthwise_pixel(in + n * height * width * channels, weight, zero, sum, y, x, height, width, channels);
            T* to = out + (index * width + x) * channels;
#pragma omp simd
            for (long i = 0; i < channels; ++i) {
                store(to + i, sum[i]);
                const float stored = widen(to[i]);
                square[i] += stored * stored;
            }
        }
        std::memcpy(squares + index * channels, square, channels * sizeof(float));
    });
}

template <class T>
void pixel_norm(const T* in, const float* weight, const float* bias, T* out, float epsilon, long rows, long width,
                long channels, int threads) {
    for_rows(rows, threads, [=](long index) {
        std::vector<float> values(channels);
        float* const value = values.data();
        for (long x = 0; x < width; ++x) {
            convert(in + (index * width + x) * channels, value, channels);
            float mean = 0, variance = 0;
#pragma omp simd reduction(+ : mean)
            for (long i = 0; i < channels; ++i) mean += value[i];
            mean /= channels;
#pragma omp simd reduction(+ : variance)
            for (long i = 0; i < channels; ++i) variance += (value[i] - mean) * (value[i] - mean);
            const float scale = 1.0f / std::sqrt(variance / channels + epsilon);
#pragma omp simd
            for (long i = 0; i < channels; ++i) value[i] = (value[i] - mean) * scale * weight[i] + bias[i];
            convert(value, out + (index * width + x) * channels, channels);
        }
    });
}

}  // namespace

#define ENTRY_POINTS(T, SUFFIX)                                                                                          \
    extern "C" void warp_neighbours_##SUFFIX(const T* feat, const T* next, const T* previous, const float* flow, T* out, \
                                             const long* place, long count, long height, long width, long channels,      \
                                             long groups, int threads) {                                                 \
        warp_neighbours(feat, next, previous, flow, out, place, count, height, width, channels, groups, threads);        \
    }                                                                                                                    \
    extern "C" void gated_depthwise_##SUFFIX(const T* in, const float* weight, T* out, long count, long height,          \
                                             long width, long channels, int threads) {                                   \
        gated_depthwise(in, weight, out, count, height, width, channels, threads);                                       \
    }                                                                                                                    \
    extern "C" void depthwise_squares_##SUFFIX(const T* in, const float* weight, T* out, float* squares, long count,     \
                                               long height, long width, long channels, int threads) {                    \
        depthwise_squares(in, weight, out, squares, count, height, width, channels, threads);                            \
    }                                                                                                                    \
    extern "C" void pixel_norm_##SUFFIX(const T* in, const float* weight, const float* bias, T* out, float epsilon,      \
                                        long rows, long width, long channels, int threads) {                             \
        pixel_norm(in, weight, bias, out, epsilon, rows, width, channels, threads);                                      \
    }

ENTRY_POINTS(float, float32)
ENTRY_POINTS(BFloat16, bfloat16)
