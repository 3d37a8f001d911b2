// A frame and its neighbours, sampled along the blur of each pixel. The twin is in vsfmanet/ops/path.py.
//
// Images are planes of float. The part of them that can be reached is first packed to four floats a pixel, so that one
// load takes all of a pixel, and with a row and a column more, so that each pixel has a neighbour below and to the right.
// The result is channels-last, of float or bfloat16. A row never depends on how rows are shared out.

#include <algorithm>
#include <cmath>

#include "vector.h"

#ifdef __SSE__
#include <xmmintrin.h>
#endif

namespace {

constexpr int kBlock = 16;   // columns that are done at once
constexpr long kAtOnce = 4;  // floats of a packed pixel

using Pixel = Vector4::Values;

// Turns rows to columns.
inline void transpose(Pixel& a, Pixel& b, Pixel& c, Pixel& d) {
#ifdef __SSE__
    __m128 rows[4] = {(__m128)a, (__m128)b, (__m128)c, (__m128)d};
    _MM_TRANSPOSE4_PS(rows[0], rows[1], rows[2], rows[3]);
    a = (Pixel)rows[0], b = (Pixel)rows[1], c = (Pixel)rows[2], d = (Pixel)rows[3];
#else
    const Pixel rows[4] = {a, b, c, d};
    for (int i = 0; i < 4; ++i) a[i] = rows[i][0], b[i] = rows[i][1], c[i] = rows[i][2], d[i] = rows[i][3];
#endif
}

// The part of an image that is packed, and the sides of the image.
struct Part {
    long top, left, height, width, whole_height, whole_width;

    long row() const { return (width + 1) * kAtOnce; }
    long size() const { return (height + 1) * row(); }
};

void pack_row(const float* image, const Part& part, long line, float* to) {
    const long plane = part.whole_height * part.whole_width;
    const float* from = image + std::min(part.top + line, part.whole_height - 1) * part.whole_width + part.left;
    const long inside = std::min(part.width + 1, part.whole_width - part.left);
    long x = 0;
    for (; x + 4 <= inside; x += 4) {
        Pixel pixels[4] = {};
        for (int c = 0; c < 3; ++c) Vector4::load(from + c * plane + x, pixels[c]);
        transpose(pixels[0], pixels[1], pixels[2], pixels[3]);
        for (int i = 0; i < 4; ++i) Vector4::store(to + (x + i) * kAtOnce, pixels[i]);
    }
    for (; x <= part.width; ++x) {
        const float* const at = from + std::min(x, inside - 1);
        const Pixel pixel = {at[0], at[plane], at[2 * plane], 0.0f};
        Vector4::store(to + x * kAtOnce, pixel);
    }
}

// Enlarges a line of `count` values, with one more before and after it, bilinear.
template <int kGrid>
void enlarge(const float* from, long count, float* to) {
    for (long i = 0; i < count; ++i) {
        for (int k = 0; k < kGrid; ++k) {
            const int before = k < kGrid / 2;
            const float share = (k + 0.5f) / kGrid - 0.5f + before;
            to[i * kGrid + k] = (1 - share) * from[i - before] + share * from[i + 1 - before];
        }
    }
}

// Where the pixels of a block are sampled: of the pixel left and above, its number in the packed part, and the shares of
// those to its right and below.
struct Samples {
    int first[kBlock];
    float right[kBlock], low[kBlock];
};

inline int within(int value, int high) { return value < 0 ? 0 : value < high ? value : high; }

// `motion` is that of a row from the first of these pixels on: (6, wide), blur and the ways to the next and the previous
// frame, right and down each. `way` is 0 for the frame itself.
template <bool kShifted>
void locate(const float* motion, long wide, int way, float place, float column, float line, const Part& part, Samples* to) {
    const float last_column = static_cast<float>(part.whole_width - 1), last_line = static_cast<float>(part.whole_height - 1);
    const int left = static_cast<int>(part.left), top = static_cast<int>(part.top);
    const int width = static_cast<int>(part.width), height = static_cast<int>(part.height), row = width + 1;
    const float* const shift = motion + way * wide;
#pragma omp simd
    for (int x = 0; x < kBlock; ++x) {
        const float middle = column + x + (kShifted ? shift[x] : 0.0f), level = line + (kShifted ? shift[wide + x] : 0.0f);
        const float at_x = clamped(middle + place * motion[x], last_column);
        const float at_y = clamped(level + place * motion[wide + x], last_line);
        const int west = static_cast<int>(at_x), north = static_cast<int>(at_y);
        to->first[x] = within(north - top, height - 1) * row + within(west - left, width - 1);
        to->right[x] = at_x - west;
        to->low[x] = at_y - north;
    }
}

// A sample of a packed part, minus a pixel.
inline Pixel sampled(const float* packed, long row, long first, float right, float low, const Pixel& own) {
    const float* const from = packed + first * kAtOnce;
    Pixel a, b, c, d;
    Vector4::load(from, a);
    Vector4::load(from + kAtOnce, b);
    Vector4::load(from + row, c);
    Vector4::load(from + row + kAtOnce, d);
    const Pixel above = a + right * (b - a), below = c + right * (d - c);
    return above + low * (below - above) - own;
}

// Places are evenly spaced from -reach to reach, symmetric, as torch.linspace has them.
inline float place_of(float reach, int count, int i) {
    const float step = 2 * reach / (count - 1);
    return i < count / 2 ? step * i - reach : reach - step * (count - 1 - i);
}

// Motion of a row of pixels, (6, wide), of the coarse motion (6, height, width) of a frame.
void enlarge_row(const float* motion, long height, long width, long grid, long y, float* between, float* to, long wide) {
    const float place = std::max((y + 0.5f) / grid - 0.5f, 0.0f);
    const long north = static_cast<long>(place), south = std::min(north + 1, height - 1);
    const float low = place - north;
    for (long c = 0; c < 6; ++c, motion += height * width, to += wide) {
        for (long x = 0; x < width; ++x) between[1 + x] = (1 - low) * motion[north * width + x] + low * motion[south * width + x];
        between[0] = between[1], between[1 + width] = between[width];
        if (grid == 1) enlarge<1>(between + 1, width, to);
        if (grid == 2) enlarge<2>(between + 1, width, to);
        if (grid == 4) enlarge<4>(between + 1, width, to);
        std::fill(to + width * grid, to + wide, 0.0f);
    }
}

// `motion` (N, 6, height / grid, width / grid) is that of a tile whose first row and column in the images are `start`.
// `out` is (N, height / kSide, width / kSide, channels, kSide * kSide).
template <int kSide, class T>
void read_cells(const float* packed, const float* motion, T* out, const Part& part, const long* start, const float* reach,
                const long* counts, float unit, long count, long height, long width, long grid, int threads) {
    constexpr int kPixels = kSide * kSide;
    const long channels = 3 * (counts[0] + 2 * counts[1]) + 6, rows = height / kSide, image = count * part.size();
    const long coarse_height = height / grid, coarse_width = width / grid, wide = (width + kBlock - 1) / kBlock * kBlock;
    for_rows(count * rows, threads, [=](long index) {
        const long n = index / rows, top = index % rows * kSide, cell = channels * kPixels;
        float* const moved = reinterpret_cast<float*>(scratch((kSide * 6 * wide + wide + 2 + kBlock / kSide * cell) * 4));
        float* const between = moved + kSide * 6 * wide;
        float* const made = between + wide + 2;  // (cells of a block, channels, kPixels)
        for (int y = 0; y < kSide; ++y) {
            enlarge_row(motion + n * 6 * coarse_height * coarse_width, coarse_height, coarse_width, grid, top + y, between,
                        moved + y * 6 * wide, wide);
        }
        for (long left = 0; left < width; left += kBlock) {
            const int block = static_cast<int>(std::min<long>(kBlock, width - left));
            Samples samples[kSide];
            Pixel own[kSide][kBlock];
            for (int y = 0; y < kSide; ++y) {
                const float* const right = moved + y * 6 * wide + left;
                const float* const down = right + wide;
                const long line = start[0] + top + y - part.top, column = start[1] + left - part.left;
                const float* const from = packed + n * part.size() + line * part.row() + column * kAtOnce;
                for (int x = 0; x < block; ++x) {
                    float* const to = made + x / kSide * cell + y * kSide + x % kSide;
                    Vector4::load(from + x * kAtOnce, own[y][x]);
                    for (int c = 0; c < 3; ++c) to[c * kPixels] = own[y][x][c] - 0.5f;
                    to[3 * kPixels] = right[x] / (unit + std::fabs(right[x]));
                    to[4 * kPixels] = down[x] / (unit + std::fabs(down[x]));
                    to[5 * kPixels] = 0.5f * std::log(right[x] * right[x] + down[x] * down[x] + 1e-2f);
                }
            }
            float* first = made + 6 * kPixels;
            for (int side = 0; side < 3; ++side) {
                const float* const from = packed + side * image + n * part.size();
                const long places = counts[side > 0];
                for (long i = 0; i < places; ++i, first += kPixels) {
                    const float place = place_of(reach[side > 0], static_cast<int>(places), static_cast<int>(i));
                    for (int y = 0; y < kSide; ++y) {
                        (side ? locate<true> : locate<false>)(moved + y * 6 * wide + left, wide, 2 * side, place,
                                                              start[1] + left, start[0] + top + y, part, &samples[y]);
                    }
                    float* to = first;
                    for (int x = 0; x < block; x += kSide, to += cell) {
                        Pixel values[kPixels];
                        for (int j = 0; j < kPixels; ++j) {
                            const int y = j / kSide, at = x + j % kSide;
                            values[j] = sampled(from, part.row(), samples[y].first[at], samples[y].right[at],
                                                samples[y].low[at], own[y][at]);
                        }
                        if constexpr (kPixels == 4) {
                            transpose(values[0], values[1], values[2], values[3]);
                            for (int c = 0; c < 3; ++c) Vector4::store(to + c * places * kPixels, values[c]);
                        } else {
                            for (int j = 0; j < kPixels; ++j) {
                                for (int c = 0; c < 3; ++c) to[c * places * kPixels + j] = values[j][c];
                            }
                        }
                    }
                }
                first += 2 * places * kPixels;
            }
            T* const to = out + (index * (width / kSide) + left / kSide) * cell;
            const long values = block / kSide * cell;
            long i = 0;
            for (; i + kLanes <= values; i += kLanes) {
                Lanes lanes;
                Native::load(made + i, lanes);
                Native::store(to + i, lanes);
            }
            for (; i < values; ++i) store(to + i, made[i]);
        }
    });
}

// `place`: part as in `Part`, then row and column at which the tile begins, grid and side of the cells of the result.
template <class T>
void path_cells(const float* own, const float* next, const float* previous, const float* motion, float* packed, T* out,
                const long* place, const float* reach, const long* counts, float unit, long count, long height, long width,
                int threads) {
    const Part part = {place[0], place[1], place[2], place[3], place[4], place[5]};
    const float* const images[3] = {own, next, previous};
    for_rows(3 * count * (part.height + 1), threads, [=](long index) {
        const long line = index % (part.height + 1), image = index / (part.height + 1);
        const float* const from = images[image / count] + image % count * 3 * part.whole_height * part.whole_width;
        pack_row(from, part, line, packed + image * part.size() + line * part.row());
    });
    const auto run = [&](auto side) {
        read_cells<decltype(side)::value>(packed, motion, out, part, place + 6, reach, counts, unit, count, height, width,
                                          place[8], threads);
    };
    if (place[9] == 1) run(std::integral_constant<int, 1>{});
    if (place[9] == 2) run(std::integral_constant<int, 2>{});
    if (place[9] == 4) run(std::integral_constant<int, 4>{});
}

}  // namespace

#define ENTRY_POINTS(T, SUFFIX)                                                                                          \
    extern "C" void path_cells_##SUFFIX(const float* own, const float* next, const float* previous, const float* motion, \
                                        float* packed, T* out, const long* place, const float* reach, const long* counts,\
                                        float unit, long count, long height, long width, int threads) {                  \
        path_cells(own, next, previous, motion, packed, out, place, reach, counts, unit, count, height, width, threads); \
    }

ENTRY_POINTS(float, float32)
ENTRY_POINTS(BFloat16, bfloat16)
