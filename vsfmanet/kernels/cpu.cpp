// CPU kernels of vsfmanet: what each computes is said, in plain torch, by its twin in vsfmanet/ops.
//
// Images are channels-last, (N, H, W, C) in memory, of float or bfloat16; sums are taken in float and rounded once. Inner
// loops run over channels, which are contiguous, so that the compiler makes vectors of them; rows go to the threads.
// A row never depends on how rows are shared out, so results are the same for any number of threads.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

struct BFloat16 {
    uint16_t bits;
};

inline float widen(float value) { return value; }

inline float widen(BFloat16 value) {
    const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
    float out;
    std::memcpy(&out, &bits, sizeof out);
    return out;
}

inline void store(float* to, float value) { *to = value; }

inline void store(BFloat16* to, float value) {  // nearest, ties to even; a NaN as hardware makes it stays one
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    to->bits = static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

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

template <class Row>
void for_rows(long rows, int threads, Row row) {
    if (threads <= 1) {
        for (long i = 0; i < rows; ++i) row(i);
        return;
    }
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long i = 0; i < rows; ++i) row(i);
}

// `stride` counts elements of `flow` between frames, channels, rows and columns.
template <class T>
void warp_neighbours(const T* feat, const T* next, const T* previous, const float* flow, T* out, const long* stride,
                     long count, long height, long width, long channels, long groups, int threads) {
    for_rows(count * height, threads, [=](long index) {
        const long n = index / height, y = index % height, row = width * channels;
        const T* neighbours[2] = {next + n * height * row, previous + n * height * row};
        for (long x = 0; x < width; ++x) {
            const long pixel = index * width + x;
            T* to = out + pixel * 3 * channels;
            std::memcpy(to, feat + pixel * channels, channels * sizeof(T));
            to += channels;
            const float* pair = flow + n * stride[0] + y * stride[2] + x * stride[3];
            for (const T* image : neighbours) {
                long first = 0;
                for (long g = 0; g < groups; ++g, pair += 3 * stride[1]) {
                    const long size = channels / groups + (g < channels % groups);
                    const float column = clamped(x + pair[0], width - 1), line = clamped(y + pair[stride[1]], height - 1);
                    const float seen = 1.0f / (1.0f + std::exp(-pair[2 * stride[1]]));
                    const long left = static_cast<long>(column), top = static_cast<long>(line);
                    const float right_share = column - left, low_share = line - top;
                    const float d = seen * low_share * right_share, c = seen * low_share - d;
                    const float b = seen * right_share - d, a = seen - b - c - d;
                    const T* a_at = image + top * row + left * channels + first;
                    const T* b_at = a_at + (left + 1 < width ? channels : 0);
                    const long down = top + 1 < height ? row : 0;
#pragma omp simd
                    for (long i = 0; i < size; ++i) {
                        store(to + i, a * widen(a_at[i]) + b * widen(b_at[i]) + c * widen(a_at[down + i]) +
                                          d * widen(b_at[down + i]));
                    }
                    to += size;
                    first += size;
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
        for (long x = 0; x < width; ++x) {
            const T* from = in + (index * width + x) * channels;
            T* to = out + (index * width + x) * channels;
            float mean = 0, variance = 0;
#pragma omp simd reduction(+ : mean)
            for (long i = 0; i < channels; ++i) mean += widen(from[i]);
            mean /= channels;
#pragma omp simd reduction(+ : variance)
            for (long i = 0; i < channels; ++i) variance += (widen(from[i]) - mean) * (widen(from[i]) - mean);
            const float scale = 1.0f / std::sqrt(variance / channels + epsilon);
#pragma omp simd
            for (long i = 0; i < channels; ++i) store(to + i, (widen(from[i]) - mean) * scale * weight[i] + bias[i]);
        }
    });
}

}  // namespace

#define ENTRY_POINTS(T, SUFFIX)                                                                                          \
    extern "C" void warp_neighbours_##SUFFIX(const T* feat, const T* next, const T* previous, const float* flow, T* out, \
                                             const long* stride, long count, long height, long width, long channels,     \
                                             long groups, int threads) {                                                 \
        warp_neighbours(feat, next, previous, flow, out, stride, count, height, width, channels, groups, threads);       \
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
