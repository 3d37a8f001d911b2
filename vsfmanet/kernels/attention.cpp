// What attention across channels compares: products of the channels of each head, summed over an image. Its twin is in
// vsfmanet/ops/attention.py.
//
// A matrix product would make those of different heads too, which nobody reads, and it is not shared out well among
// threads: the sums are few, and long. Here the pixels are shared out in parts, whose sums are given one by one; so results
// are the same for any number of threads.

#include <algorithm>

#include "vector.h"

namespace {

constexpr long kPart = 2048;  // pixels
constexpr long kBlock = 8;    // pixels of a part that are gone through at once: few, so that reading is hidden by adding
constexpr long kAhead = 24;   // pixels by which reading is announced

// Some pixels, `step` values apart, as floats, `stride` apart.
template <class T>
void widen_pixels(const T* from, long step, float* to, long stride, long pixels, long channels) {
    for (long pixel = 0; pixel < pixels; ++pixel, from += step, to += stride) {
        for (long i = 0; i < channels; i += kLanes) {
            __builtin_prefetch(from + kAhead * step + i);
            Lanes values;
            if (channels - i >= kLanes) {
                Native::load(from + i, values);
            } else {
                values = load_some(from + i, channels - i);
            }
            Native::store(to + i, values);
        }
    }
}

// Adds what some pixels give for one head to `sums` (channels, channels): for so many rows, the query's channels, at once.
template <int kRows>
void add_products(const float* query, const float* key, long stride, long pixels, float* sums, long channels) {
    for (long i = 0; i < channels; i += kLanes) {
        const long some = std::min<long>(kLanes, channels - i);
        for (long row = 0; row < channels; row += kRows) {
            Lanes sum[kRows] = {};  // beyond the head's channels they are those of the next one, and left out
            for (long pixel = 0; pixel < pixels; ++pixel) {
                Lanes values;
                Native::load(key + pixel * stride + i, values);
#pragma GCC unroll 9
                for (int r = 0; r < kRows; ++r) sum[r] += query[pixel * stride + row + r] * values;
            }
            for (int r = 0; r < kRows && row + r < channels; ++r) {
                float* const to = sums + (row + r) * channels + i;
                if (some == kLanes) {
                    Lanes before;
                    Native::load(to, before);
                    Native::store(to, before + sum[r]);
                } else {
                    store_some(to, load_some(to, some) + sum[r], some);
                }
            }
        }
    }
}

// Pixels of `query` and of `key` are so many values apart; `sums` are (count, parts, heads, channels, channels).
template <class T>
void head_grams(const T* query, long query_step, const T* key, long key_step, float* sums, long count, long pixels,
                long heads, long channels, int threads) {
    const long width = heads * channels, stride = (width / kLanes + 3) * kLanes;  // reading goes beyond a pixel
    const long parts = (pixels + kPart - 1) / kPart;
    for_rows(count * parts, threads, [=](long index) {
        float* const queries = reinterpret_cast<float*>(scratch(2 * kBlock * stride * sizeof(float)));
        float* const keys = queries + kBlock * stride;
        float* const out = sums + index * heads * channels * channels;
        std::fill(out, out + heads * channels * channels, 0.0f);
        const long image = index / parts * pixels, first = index % parts * kPart, stop = std::min(pixels, first + kPart);
        for (long pixel = first; pixel < stop; pixel += kBlock) {
            const long some = std::min(kBlock, stop - pixel);
            widen_pixels(query + (image + pixel) * query_step, query_step, queries, stride, some, width);
            widen_pixels(key + (image + pixel) * key_step, key_step, keys, stride, some, width);
            for (long head = 0; head < heads; ++head) {
                const auto run = channels % 9 ? add_products<8> : add_products<9>;
                run(queries + head * channels, keys + head * channels, stride, some, out + head * channels * channels,
                    channels);
            }
        }
    });
}

}  // namespace

extern "C" long head_grams_parts(long pixels) { return (pixels + kPart - 1) / kPart; }

#define ENTRY_POINTS(T, SUFFIX)                                                                                         \
    extern "C" void head_grams_##SUFFIX(const T* query, long query_step, const T* key, long key_step, float* sums,      \
                                        long count, long pixels, long heads, long channels, int threads) {              \
        head_grams(query, query_step, key, key_step, sums, count, pixels, heads, channels, threads);                    \
    }

ENTRY_POINTS(float, float32)
ENTRY_POINTS(BFloat16, bfloat16)
