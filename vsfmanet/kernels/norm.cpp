// LayerNorm over the channels of each pixel. The twin is in vsfmanet/ops/norm.py.
//
// Images are channels-last, (N, H, W, C) in memory, of float or bfloat16; sums are taken in float.

#include <cmath>
#include <vector>

#include "vector.h"

namespace {

inline float total(const Lanes& values) {
#ifdef __AVX512F__
    return _mm512_reduce_add_ps((__m512)values);
#else
    float sum = 0;
    for (int i = 0; i < kLanes; ++i) sum += values[i];
    return sum;
#endif
}

template <class T>
void pixel_norm(const T* in, const float* weight, const float* bias, T* out, float epsilon, long rows, long width,
                long channels, int threads) {
    for_rows(rows, threads, [=](long index) {
        const long last = (channels - 1) / kLanes, rest = channels - last * kLanes;  // vector, and its lanes
        std::vector<Lanes> kept(3 * (last + 1));
        Lanes *const values = kept.data(), *const gain = values + last + 1, *const shift = gain + last + 1;
        Lanes inside;  // which lanes of the last vector are channels
        for (int i = 0; i < kLanes; ++i) inside[i] = i < rest;
        for (long v = 0; v <= last; ++v) {
            gain[v] = load_some(weight + v * kLanes, v < last ? kLanes : rest);
            shift[v] = load_some(bias + v * kLanes, v < last ? kLanes : rest);
        }
        for (long x = 0; x < width; ++x) {
            const T* const from = in + (index * width + x) * channels;
            T* const to = out + (index * width + x) * channels;
            Lanes sum = values[last] = load_some(from + last * kLanes, rest);
            for (long v = 0; v < last; ++v) {
                Native::load(from + v * kLanes, values[v]);
                sum += values[v];
            }
            const float mean = total(sum) / channels;
            values[last] = (values[last] - mean) * inside;
            Lanes square = values[last] * values[last];
            for (long v = 0; v < last; ++v) {
                values[v] -= mean;
                square += values[v] * values[v];
            }
            const float scale = 1.0f / std::sqrt(total(square) / channels + epsilon);
            for (long v = 0; v < last; ++v) Native::store(to + v * kLanes, values[v] * scale * gain[v] + shift[v]);
            store_some(to + last * kLanes, values[last] * scale * gain[last] + shift[last], rest);
        }
    });
}

}  // namespace

#define ENTRY_POINTS(T, SUFFIX)                                                                                         \
    extern "C" void pixel_norm_##SUFFIX(const T* in, const float* weight, const float* bias, T* out, float epsilon,     \
                                        long rows, long width, long channels, int threads) {                            \
        pixel_norm(in, weight, bias, out, epsilon, rows, width, channels, threads);                                     \
    }

ENTRY_POINTS(float, float32)
ENTRY_POINTS(BFloat16, bfloat16)
