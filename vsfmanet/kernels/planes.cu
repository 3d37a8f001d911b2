// Integer planes to RGB and back, for CUDA. The twin is `Coding` in vsfmanet/ops/colour.py, whose numbers `planes.py` packs
// into the tables. Compiled as network.cu is, after it.
//
// T is the type of the code values: uint8_t or uint16_t.

namespace {

constexpr int kTileWidth = 64;   // pixels whose code values a block writes
constexpr int kTileHeight = 16;
constexpr int kMostTaps = 16;    // of chroma that is made smaller
constexpr int kDither = 16;      // side of the pattern

// What both directions have at the start of their tables, before the filters of chroma.
struct Levels {
    float zero[3];    // code value of 0 in each plane
    float one[3];     // its distance to that of 1
    float matrix[9];  // from the planes to RGB, or back; used if `mixed`
};

INLINE int mirrored(int place, int count) {  // the outermost samples are doubled
    place = place < 0 ? -1 - place : place;
    place = place < count ? place : 2 * count - 1 - place;
    return place < 0 ? 0 : place;
}

// Block x: pixels of a row; block y: rows. `down` and `across` are the binary logarithms of the subsampling. The tables end
// with a first sample and four weights for each phase, across, then down.
template <class T>
INLINE void decode(const T* packed, const float* table, float* rgb, int height, int width, int planes, int mixed,
                   int across, int down) {
    const Levels& levels = *reinterpret_cast<const Levels*>(table);
    const int rows = height >> down, columns = width >> across, y = blockIdx.y;
    const float* const filters = table + sizeof(Levels) / sizeof(float);
    const float* const vertical = filters + 5 * ((1 << across) + (y & ((1 << down) - 1)));
    const Size size = static_cast<Size>(height) * width, small = static_cast<Size>(rows) * columns;
    THREADS(t) {
        const int x = blockIdx.x * kThreads + t;
        if (x < width) {
            const Size pixel = static_cast<Size>(y) * width + x;
            float value[3];
            value[0] = value[1] = value[2] = (packed[pixel] - levels.zero[0]) / levels.one[0];
            const float* const horizontal = filters + 5 * (x & ((1 << across) - 1));
            const int left = (x >> across) + static_cast<int>(horizontal[0]);
            const int top = (y >> down) + static_cast<int>(vertical[0]);
            for (int p = 1; p < planes; ++p) {
                const T* const plane = packed + size + (p - 1) * small;
                float sum = 0;
                for (int i = 0; i < 4; ++i) {
                    if (vertical[1 + i] == 0) continue;
                    const T* const row = plane + static_cast<Size>(mirrored(top + i, rows)) * columns;
                    float line = 0;
                    for (int j = 0; j < 4; ++j) {
                        if (horizontal[1 + j] == 0) continue;
                        const float code = row[mirrored(left + j, columns)];
                        line += horizontal[1 + j] * ((code - levels.zero[p]) / levels.one[p]);
                    }
                    sum += vertical[1 + i] * line;
                }
                value[p] = sum;
            }
            for (int c = 0; c < 3; ++c) {
                const float* const row = levels.matrix + 3 * c;
                rgb[c * size + pixel] = mixed ? row[0] * value[0] + row[1] * value[1] + row[2] * value[2] : value[c];
            }
        }
    }
}

template <class T>
INLINE void write_code(T* to, float value, float zero, float one, float dither, float largest) {
    value = dither + value * one + zero;
    *to = static_cast<T>(rintf(value > 0 ? (value < largest ? value : largest) : 0.0f));  // a NaN becomes 0
}

// Block x, y: a tile of the frame. Chroma of the tile and of what its filters reach is computed into shared memory, and
// made smaller down, then across. The table goes on with a first sample and 16 weights for each of the two, and with the
// dither of each plane. Pixels of `rgb` are `steps` values apart. `packed[size]` becomes 0 if a value is not finite.
template <class T>
INLINE void encode(const float* rgb, const float* table, T* packed, int height, int width, Size plane_step, Size row_step,
                   Size pixel_step, int planes, int mixed, int across, int down, int largest) {
    SHARED(chroma);  // (2, rows, columns), then the same with fewer rows
    const Levels& levels = *reinterpret_cast<const Levels*>(table);
    const float* const filters = table + sizeof(Levels) / sizeof(float);
    const float *const horizontal = filters + 1, *const vertical = filters + kMostTaps + 2;
    const float* const pattern = filters + 2 * (kMostTaps + 1);
    const int taps_across = across ? 4 << across : 1, taps_down = down ? 4 << down : 1;
    const int columns = kTileWidth + taps_across - (1 << across), rows = kTileHeight + taps_down - (1 << down);
    const int left = blockIdx.x * kTileWidth, top = blockIdx.y * kTileHeight, fewer = kTileHeight >> down;
    const int first_column = left + static_cast<int>(horizontal[-1]), first_row = top + static_cast<int>(vertical[-1]);
    const Size size = static_cast<Size>(height) * width;
    const Size small = static_cast<Size>(height >> down) * (width >> across);
    const bool is_subsampled = across || down;
    float* const lower = chroma + 2 * rows * columns;  // (2, fewer, columns)
    T* const finite = packed + size + (planes > 1 ? 2 * small : 0);
    THREADS(t) {
        for (int i = t; i < kTileWidth * kTileHeight; i += kThreads) {
            const int x = left + i % kTileWidth, y = top + i / kTileWidth;
            if (x >= width || y >= height) continue;
            const float* const from = rgb + y * row_step + x * pixel_step;
            const float value[3] = {from[0], from[plane_step], from[2 * plane_step]};
            const float sum = value[0] + value[1] + value[2];
            if (!(sum - sum == 0)) *finite = 0;
            for (int p = 0; p < (is_subsampled ? 1 : planes); ++p) {
                const float* const row = levels.matrix + 3 * p;
                const float made = mixed ? row[0] * value[0] + row[1] * value[1] + row[2] * value[2] : value[p];
                const float dither = pattern[(p * kDither + y % kDither) * kDither + x % kDither];
                write_code(packed + p * size + static_cast<Size>(y) * width + x, made, levels.zero[p], levels.one[p], dither,
                           largest);
            }
        }
        for (int i = t; i < rows * columns && is_subsampled; i += kThreads) {
            const int x = mirrored(first_column + i % columns, width), y = mirrored(first_row + i / columns, height);
            const float* const from = rgb + y * row_step + x * pixel_step;
            for (int p = 0; p < 2; ++p) {
                const float* const row = levels.matrix + 3 * (p + 1);
                chroma[p * rows * columns + i] = row[0] * from[0] + row[1] * from[plane_step] + row[2] * from[2 * plane_step];
            }
        }
    }
    THREADS(t) {
        for (int i = t; i < 2 * fewer * columns && is_subsampled; i += kThreads) {
            const int p = i / (fewer * columns), y = i / columns % fewer, x = i % columns;
            float sum = 0;
            for (int k = 0; k < taps_down; ++k) sum += vertical[k] * chroma[(p * rows + (y << down) + k) * columns + x];
            lower[i] = sum;
        }
    }
    THREADS(t) {
        const int narrow = kTileWidth >> across;
        for (int i = t; i < 2 * fewer * narrow && is_subsampled; i += kThreads) {
            const int p = i / (fewer * narrow), y = i / narrow % fewer, x = i % narrow;
            const int column = (left >> across) + x, row = (top >> down) + y;
            if (column >= width >> across || row >= height >> down) continue;
            float sum = 0;
            for (int k = 0; k < taps_across; ++k) {
                sum += horizontal[k] * lower[(p * fewer + y) * columns + (x << across) + k];
            }
            const float dither = pattern[((p + 1) * kDither + row % kDither) * kDither + column % kDither];
            T* const to = packed + size + p * small + static_cast<Size>(row) * (width >> across) + column;
            write_code(to, sum, levels.zero[p + 1], levels.one[p + 1], dither, largest);
        }
    }
}

}  // namespace

#define OF_CODES(T, NAME)                                                                                                \
    KERNEL decode_##NAME(const T* __restrict__ packed, const float* __restrict__ table, float* rgb, Size height,         \
                         Size width, Size planes, Size mixed, Size across, Size down) {                                 \
        decode(packed, table, rgb, height, width, planes, mixed, across, down);                                         \
    }                                                                                                                    \
    KERNEL encode_##NAME(const float* __restrict__ rgb, const float* __restrict__ table, T* packed, Size height,         \
                         Size width, Size plane_step, Size row_step, Size pixel_step, Size planes, Size mixed,          \
                         Size across, Size down, Size largest) {                                                         \
        encode(rgb, table, packed, height, width, plane_step, row_step, pixel_step, planes, mixed, across, down,        \
               largest);                                                                                                 \
    }
