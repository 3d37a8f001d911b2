// The kernels for CUDA. Their twins are in vsfmanet/ops; Python's side is gpu.py.
//
// Images are channels-last, (N, H, W, C) in memory; sums are taken in float and rounded once, and nothing depends on the
// order in which blocks or threads run. Compiled by NVRTC on first use, with scalar.h before it and one `OF_TYPE` after it;
// the tests compile the same text for the host. For that, a kernel is a sequence of phases, `THREADS(t) { ... }`, each done by all threads of
// a block before the next one begins, and what a thread keeps from phase to phase is declared by `KEPT`.
//
// T is the type of the images, V the number of channels that a thread reads and writes at once.

#ifdef __CUDACC__

#define THREADS(t) for (int t = threadIdx.x, once = 1; once; once = 0, __syncthreads())
#define KEPT(T, name, count) T name[count]
#define OF(name, t) (static_cast<void>(t), name)
#define SHARED(name) extern __shared__ float name[]

struct Half {
    uint16_t bits;
};

namespace {

INLINE float widen(Half value) {
    float out;
    asm("cvt.f32.f16 %0, %1;" : "=f"(out) : "h"(value.bits));
    return out;
}

INLINE void store(Half* to, float value) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(to->bits) : "f"(value)); }

}  // namespace

#endif

namespace {

using Size = long long;

constexpr int kThreads = 256;  // of a block, at most
constexpr int kRows = 4;       // of a column that a thread convolves: each is read by two or three others too
constexpr int kSegment = 256;  // columns whose squares a block sums
constexpr int kStage = 32;     // pixels of query and key that a block holds at once
constexpr int kPart = 1024;    // pixels whose products a block sums
constexpr int kTile = 4;       // rows and columns of a gram that a thread sums

INLINE int least(int a, int b) { return a < b ? a : b; }

INLINE int parts_of(int whole, int part) { return (whole + part - 1) / part; }

template <class T, int V>
struct alignas(sizeof(T) * V) Pack {
    T values[V];
};

template <int V, class T>
INLINE void load(const T* from, float (&to)[V]) {
    const Pack<T, V> pack = *reinterpret_cast<const Pack<T, V>*>(from);
#pragma unroll
    for (int v = 0; v < V; ++v) to[v] = widen(pack.values[v]);
}

template <int V, class T>
INLINE void save(T* to, const float (&from)[V]) {
    Pack<T, V> pack;
#pragma unroll
    for (int v = 0; v < V; ++v) store(&pack.values[v], from[v]);
    *reinterpret_cast<Pack<T, V>*>(to) = pack;
}

template <class T>
INLINE float rounded(float value) {
    T kept;
    store(&kept, value);
    return widen(kept);
}

// Block x: some pixels of a row; block y: the next, then the previous frame. The first also copies the frame itself.
template <class T, int V>
INLINE void warp_neighbours(const T* feat, const T* next, const T* previous, const float* flow, T* out, int height,
                            int width, int top, int left, int whole_height, int whole_width, int channels, int groups) {
    const int lanes = channels / V, busy = least(lanes, kThreads), pixels = kThreads / busy;
    const int segments = parts_of(width, pixels), side = blockIdx.y;
    const int y = blockIdx.x / segments % height, start = blockIdx.x % segments * pixels;
    const Size row = blockIdx.x / segments, n = blockIdx.x / segments / height;
    const int small = channels / groups, larger = channels % groups, edge = larger * (small + 1);
    const T* const image = (side ? previous : next) + n * whole_height * whole_width * channels;
    THREADS(t) {
        const int x = start + t / busy;
        const Size pixel = row * width + x;
        for (int first = t % busy * V; first < channels && t < pixels * busy && x < width; first += busy * V) {
            const int group = first < edge ? first / (small + 1) : larger + (first - edge) / small;
            const float* const at = flow + ((pixel * 2 + side) * groups + group) * 3;
            const float column = clamped(left + x + at[0], whole_width - 1);
            const float line = clamped(top + y + at[1], whole_height - 1);
            const float seen = 1.0f / (1.0f + expf(-at[2]));
            const int west = static_cast<int>(column), north = static_cast<int>(line);
            const float right_share = column - west, low_share = line - north;
            const float d = seen * low_share * right_share, c = seen * low_share - d, b = seen * right_share - d;
            const Size right = west < whole_width - 1 ? channels : 0;
            const Size down = north < whole_height - 1 ? static_cast<Size>(whole_width) * channels : 0;
            const T* const from = image + (static_cast<Size>(north) * whole_width + west) * channels + first;
            float values[4][V], sum[V];
            load(from, values[0]);
            load(from + right, values[1]);
            load(from + down, values[2]);
            load(from + down + right, values[3]);
#pragma unroll
            for (int v = 0; v < V; ++v) {
                sum[v] = (seen - b - c - d) * values[0][v] + b * values[1][v] + c * values[2][v] + d * values[3][v];
            }
            T* const to = out + pixel * 3 * channels + first;
            save(to + (1 + side) * channels, sum);
            if (side == 0) {
                load(feat + pixel * channels + first, values[0]);
                save(to, values[0]);
            }
        }
    }
}

// Block x: `held` pixels, which lie as floats in shared memory, each an odd number of floats apart.
template <class T, int V>
INLINE void pixel_norm(const T* in, const float* weight, const float* bias, T* out, float epsilon, Size pixels,
                       int channels, int held) {
    SHARED(values);
    const int lanes = channels / V, stride = channels | 1, helpers = kThreads / held;
    float* const sums = values + held * stride;  // (helpers, held), then the same of squares, then mean and scale
    float* const squares = sums + helpers * held;
    float* const means = squares + helpers * held;
    float* const scales = means + held;
    const Size start = static_cast<Size>(blockIdx.x) * held;
    const int some = pixels - start < held ? static_cast<int>(pixels - start) : held;
    THREADS(t) {
        for (int i = t; i < some * lanes; i += kThreads) {
            float read[V];
            load(in + start * channels + i * V, read);
#pragma unroll
            for (int v = 0; v < V; ++v) values[i / lanes * stride + i % lanes * V + v] = read[v];
        }
    }
    THREADS(t) {
        const int pixel = t % held, helper = t / held;
        if (pixel < some && helper < helpers) {
            float sum = 0;
            for (int c = helper; c < channels; c += helpers) sum += values[pixel * stride + c];
            sums[helper * held + pixel] = sum;
        }
    }
    THREADS(t) {
        if (t < some) {
            float sum = 0;
            for (int helper = 0; helper < helpers; ++helper) sum += sums[helper * held + t];
            means[t] = sum / channels;
        }
    }
    THREADS(t) {
        const int pixel = t % held, helper = t / held;
        if (pixel < some && helper < helpers) {
            float sum = 0;
            for (int c = helper; c < channels; c += helpers) {
                const float centred = values[pixel * stride + c] - means[pixel];
                sum += centred * centred;
            }
            squares[helper * held + pixel] = sum;
        }
    }
    THREADS(t) {
        if (t < some) {
            float sum = 0;
            for (int helper = 0; helper < helpers; ++helper) sum += squares[helper * held + t];
            scales[t] = 1.0f / sqrtf(sum / channels + epsilon);
        }
    }
    THREADS(t) {
        for (int i = t; i < some * lanes; i += kThreads) {
            const int pixel = i / lanes, first = i % lanes * V;
            float made[V];
#pragma unroll
            for (int v = 0; v < V; ++v) {
                const float centred = values[pixel * stride + first + v] - means[pixel];
                made[v] = centred * scales[pixel] * weight[first + v] + bias[first + v];
            }
            save(out + start * channels + i * V, made);
        }
    }
}

// A 3x3 depthwise convolution with zeros outside, of the column x, from the row y on. `image` is one frame, from the
// first of V channels on; `taps` are (9, channels), from the same channel on.
template <class T, int V>
INLINE void depthwise(const T* image, const float* taps, int y, int x, int height, int width, int channels,
                      float (&sum)[kRows][V]) {
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
#pragma unroll
        for (int v = 0; v < V; ++v) sum[row][v] = 0;
    }
#pragma unroll 1  // compiles in a fraction of the time
    for (int right = 0; right < 3; ++right) {
        const int column = x + right - 1;
        if (column < 0 || column >= width) continue;
        float weights[3][V];
#pragma unroll
        for (int down = 0; down < 3; ++down) load(taps + static_cast<Size>(3 * down + right) * channels, weights[down]);
#pragma unroll
        for (int i = 0; i < kRows + 2; ++i) {
            const int line = y + i - 1;
            if (line < 0 || line >= height) continue;
            float values[V];
            load(image + (static_cast<Size>(line) * width + column) * channels, values);
#pragma unroll
            for (int down = 0; down < 3; ++down) {
                const int row = i - down;
                if (row < 0 || row >= kRows) continue;
#pragma unroll
                for (int v = 0; v < V; ++v) sum[row][v] += values[v] * weights[down][v];
            }
        }
    }
}

// Block x: some columns of a band of `kRows` rows; block y: `busy` groups of V channels. `half` is the channels of `out`.
template <class T, int V>
INLINE void gated(const T* image, const float* taps, T* out, int height, int width, int half, int busy) {
    const int pixels = kThreads / busy, segments = parts_of(width, pixels), bands = parts_of(height, kRows);
    const Size n = blockIdx.x / segments / bands;
    const int y = blockIdx.x / segments % bands * kRows, start = blockIdx.x % segments * pixels;
    THREADS(t) {
        const int x = start + t / busy, first = (blockIdx.y * busy + t % busy) * V;
        if (t < pixels * busy && x < width && first < half) {
            float gate[kRows][V], content[kRows][V];
            const T* const from = image + n * height * width * 2 * half + first;
            depthwise(from, taps + first, y, x, height, width, 2 * half, gate);
            depthwise(from + half, taps + half + first, y, x, height, width, 2 * half, content);
            for (int row = 0; row < kRows && y + row < height; ++row) {
                float made[V];
#pragma unroll
                for (int v = 0; v < V; ++v) {
                    const float z = gate[row][v];
                    made[v] = 0.5f * z * (1.0f + erff(z * 0.70710678f)) * content[row][v];
                }
                save(out + ((n * height + y + row) * width + x) * half + first, made);
            }
        }
    }
}

// Block x: `kSegment` columns of a band of `kRows` rows, whose sums of squares are a row of `squares` (N, bands *
// segments, channels); block y: `busy` groups of V channels.
template <class T, int V>
INLINE void squared(const T* image, const float* taps, T* out, float* squares, int height, int width, int channels,
                    int busy) {
    SHARED(sums);
    const int pixels = kThreads / busy, segments = parts_of(width, kSegment), bands = parts_of(height, kRows);
    const Size n = blockIdx.x / segments / bands;
    const int y = blockIdx.x / segments % bands * kRows, start = blockIdx.x % segments * kSegment;
    const int stop = least(width, start + kSegment), begin = blockIdx.y * busy * V;
    THREADS(t) {
        const int first = begin + t % busy * V;
        if (t < pixels * busy) {
            float total[V];
#pragma unroll
            for (int v = 0; v < V; ++v) total[v] = 0;
            for (int x = start + t / busy; x < stop && first < channels; x += pixels) {
                float sum[kRows][V];
                depthwise(image + n * height * width * channels + first, taps + first, y, x, height, width, channels, sum);
                for (int row = 0; row < kRows && y + row < height; ++row) {
                    save(out + ((n * height + y + row) * width + x) * channels + first, sum[row]);
#pragma unroll
                    for (int v = 0; v < V; ++v) {
                        const float written = rounded<T>(sum[row][v]);
                        total[v] += written * written;
                    }
                }
            }
#pragma unroll
            for (int v = 0; v < V; ++v) sums[t * V + v] = total[v];
        }
    }
    THREADS(t) {
        for (int i = t; i < busy * V && begin + i < channels; i += kThreads) {
            float total = 0;
            for (int pixel = 0; pixel < pixels; ++pixel) total += sums[pixel * busy * V + i];
            squares[static_cast<Size>(blockIdx.x) * channels + begin + i] = total;
        }
    }
}

// Block x: `kPart` pixels; block y: frames; block z: `kThreads` tiles of the grams. Channels of a head are padded to
// whole tiles in shared memory; each tile is summed by one thread of several slots, which take pixels in turn.
template <class T>
INLINE void head_grams(const T* query, Size query_step, const T* key, Size key_step, float* sums, Size pixels, int heads,
                       int channels) {
    SHARED(queries);  // (kStage, padded), as the keys after them; at the end the sums of all slots
    const int side = parts_of(channels, kTile), wide = side * kTile, padded = heads * wide, tiles = heads * side * side;
    const int first_tile = blockIdx.z * kThreads, some = least(kThreads, tiles - first_tile), slots = kThreads / some;
    const int loading = least(padded, kThreads), together = kThreads / loading;
    float* const keys = queries + kStage * padded;
    const Size begin = static_cast<Size>(blockIdx.x) * kPart, stop = begin + kPart < pixels ? begin + kPart : pixels;
    const T* const left = query + blockIdx.y * pixels * query_step;
    const T* const right = key + blockIdx.y * pixels * key_step;
    KEPT(float, sum, kTile * kTile);
    THREADS(t) {
        for (int i = 0; i < kTile * kTile; ++i) OF(sum, t)[i] = 0;
    }
    for (Size stage = begin; stage < stop; stage += kStage) {
        THREADS(t) {
            for (int place = t % loading; place < padded && t < loading * together; place += loading) {
                const int own = place % wide, channel = place / wide * channels + own;
                for (int i = t / loading; i < kStage; i += together) {
                    const bool inside = own < channels && stage + i < stop;
                    queries[i * padded + place] = inside ? widen(left[(stage + i) * query_step + channel]) : 0.0f;
                    keys[i * padded + place] = inside ? widen(right[(stage + i) * key_step + channel]) : 0.0f;
                }
            }
        }
        THREADS(t) {
            const int tile = first_tile + t % some, head = tile / (side * side) * wide;
            const float* const row = queries + head + tile / side % side * kTile;
            const float* const column = keys + head + tile % side * kTile;
            for (int i = t / some; i < kStage && t < some * slots; i += slots) {
                float a[kTile], b[kTile];
                load(row + i * padded, a);
                load(column + i * padded, b);
#pragma unroll
                for (int r = 0; r < kTile; ++r) {
#pragma unroll
                    for (int c = 0; c < kTile; ++c) OF(sum, t)[r * kTile + c] += a[r] * b[c];
                }
            }
        }
    }
    THREADS(t) {
        for (int i = 0; i < kTile * kTile && t < some * slots; ++i) queries[t * kTile * kTile + i] = OF(sum, t)[i];
    }
    THREADS(t) {
        float* const to = sums + (static_cast<Size>(blockIdx.y) * gridDim.x + blockIdx.x) * heads * channels * channels;
        for (int i = t; i < some * kTile * kTile; i += kThreads) {
            const int tile = first_tile + i / (kTile * kTile), head = tile / (side * side);
            const int row = tile / side % side * kTile + i / kTile % kTile, column = tile % side * kTile + i % kTile;
            float total = 0;
            for (int slot = 0; slot < slots; ++slot) total += queries[slot * some * kTile * kTile + i];
            if (row < channels && column < channels) to[(head * channels + row) * channels + column] = total;
        }
    }
}

// Value of a plane of `motion` (height, width), enlarged to cells of `grid` x `grid` pixels, bilinear, at a pixel.
INLINE float enlarged(const float* motion, int height, int width, int grid, int y, int x) {
    const float line = (y + 0.5f) / grid - 0.5f, column = (x + 0.5f) / grid - 0.5f;
    const float from_top = line > 0 ? line : 0.0f, from_left = column > 0 ? column : 0.0f;
    const int north = static_cast<int>(from_top), west = static_cast<int>(from_left);
    const int south = least(north + 1, height - 1), east = least(west + 1, width - 1);
    const float low_share = from_top - north, right_share = from_left - west;
    const float* const upper = motion + static_cast<Size>(north) * width;
    const float* const lower = motion + static_cast<Size>(south) * width;
    const float above = (1 - right_share) * upper[west] + right_share * upper[east];
    const float below = (1 - right_share) * lower[west] + right_share * lower[east];
    return (1 - low_share) * above + low_share * below;
}

// Block x: cells of `side` x `side` pixels, as many of a row of cells as have `kThreads` pixels. `whole_height` and
// `whole_width` are those of the images, `height` and `width` those of the tile at `top` and `left`, in pixels.
template <class T>
INLINE void path_cells(const float* own, const float* next, const float* previous, const float* motion, T* out, int height,
                       int width, int top, int left, int whole_height, int whole_width, int grid, int side, int own_count,
                       int count, float own_reach, float reach, float unit) {
    SHARED(kept);  // (9, kThreads): motion of each pixel (6), and the pixel itself (3)
    const int pixels = side * side, channels = 3 * (own_count + 2 * count) + 6, cells = width / side;
    const int segment = kThreads / pixels, segments = parts_of(cells, segment);
    const int start = blockIdx.x % segments * segment, some = least(segment, cells - start);
    const int rows = height / side, y = blockIdx.x / segments % rows * side;
    const Size n = blockIdx.x / segments / rows, plane = static_cast<Size>(whole_height) * whole_width;
    THREADS(t) {
        if (t < some * pixels) {
            const int line = y + t % pixels / side, column = (start + t / pixels) * side + t % side;
            const Size coarse = static_cast<Size>(height / grid) * (width / grid);
            for (int c = 0; c < 6; ++c) {
                kept[c * kThreads + t] =
                    enlarged(motion + (n * 6 + c) * coarse, height / grid, width / grid, grid, line, column);
            }
            const Size place = (n * 3 * whole_height + top + line) * whole_width + left + column;
            for (int c = 0; c < 3; ++c) kept[(6 + c) * kThreads + t] = own[place + c * plane];
        }
    }
    THREADS(t) {
        T* const to = out + ((n * rows + y / side) * cells + start) * channels * pixels;
        for (int i = t; i < some * channels * pixels; i += kThreads) {
            const int channel = i / pixels % channels, pixel = i / pixels / channels * pixels + i % pixels;
            const float blur[2] = {kept[pixel], kept[kThreads + pixel]};
            float made;
            if (channel < 3) {
                made = kept[(6 + channel) * kThreads + pixel] - 0.5f;
            } else if (channel < 5) {
                made = blur[channel - 3] / (unit + fabsf(blur[channel - 3]));
            } else if (channel == 5) {
                made = 0.5f * logf(blur[0] * blur[0] + blur[1] * blur[1] + 1e-2f);
            } else {
                const int sample = channel - 6, rest = sample - 3 * own_count;
                const int image = rest < 0 ? 0 : 1 + rest / (3 * count), places = image ? count : own_count;
                const int number = image ? rest % (3 * count) : sample, c = number / places, i_place = number % places;
                const float far = image ? reach : own_reach, step = 2 * far / (places - 1);
                const float along = i_place < places / 2 ? step * i_place - far : far - step * (places - 1 - i_place);
                float column = left + (start + pixel / pixels) * side + pixel % side, line = top + y + pixel % pixels / side;
                if (image) {
                    column += kept[2 * image * kThreads + pixel];
                    line += kept[(2 * image + 1) * kThreads + pixel];
                }
                column = clamped(column + along * blur[0], whole_width - 1);
                line = clamped(line + along * blur[1], whole_height - 1);
                const int west = static_cast<int>(column), north = static_cast<int>(line);
                const int east = least(west + 1, whole_width - 1), south = least(north + 1, whole_height - 1);
                const float* const from = (image == 0 ? own : image == 1 ? next : previous) + (n * 3 + c) * plane;
                const float* const upper = from + static_cast<Size>(north) * whole_width;
                const float* const lower = from + static_cast<Size>(south) * whole_width;
                const float above = upper[west] + (column - west) * (upper[east] - upper[west]);
                const float below = lower[west] + (column - west) * (lower[east] - lower[west]);
                made = above + (line - north) * (below - above) - kept[(6 + c) * kThreads + pixel];
            }
            store(to + i, made);
        }
    }
}

// Block x: pixels of a row of the result; block y: rows; block z: frames. `residual` is (N, rows, columns, 3 shuffle^2).
template <class T>
INLINE void add_skip(const float* lr, const T* residual, float* out, int height, int width, int rows, int columns,
                     int scale, int shuffle) {
    const int wide = width * scale, high = height * scale, y = blockIdx.y, square = shuffle * shuffle;
    const float share = 1.0f / scale, line = (y + 0.5f) * share - 0.5f, from_top = line > 0 ? line : 0.0f;
    const int north = static_cast<int>(from_top), south = least(north + 1, height - 1);
    const float low_share = from_top - north;
    const Size row = (static_cast<Size>(blockIdx.z) * rows + y / shuffle) * columns;
    THREADS(t) {
        const int x = blockIdx.x * kThreads + t;
        if (x < wide) {
            const float column = (x + 0.5f) * share - 0.5f, from_left = column > 0 ? column : 0.0f;
            const int west = static_cast<int>(from_left), east = least(west + 1, width - 1);
            const float right_share = from_left - west;
            const T* const change = residual + (row + x / shuffle) * 3 * square + y % shuffle * shuffle + x % shuffle;
            for (int c = 0; c < 3; ++c) {
                const float* const image = lr + (static_cast<Size>(blockIdx.z) * 3 + c) * height * width;
                const float* const upper = image + static_cast<Size>(north) * width;
                const float* const lower = image + static_cast<Size>(south) * width;
                const float above = (1 - right_share) * upper[west] + right_share * upper[east];
                const float below = (1 - right_share) * lower[west] + right_share * lower[east];
                const float skip = (1 - low_share) * above + low_share * below;
                out[((static_cast<Size>(blockIdx.z) * 3 + c) * high + y) * wide + x] = skip + widen(change[c * square]);
            }
        }
    }
}

}  // namespace

#define KERNEL extern "C" __global__ void __launch_bounds__(kThreads)

#define OF_CHANNELS(T, NAME, V)                                                                                          \
    KERNEL warp_neighbours_##NAME##_##V(const T* __restrict__ feat, const T* __restrict__ next,                          \
                                        const T* __restrict__ previous, const float* __restrict__ flow, T* out,          \
                                        Size height, Size width, Size top, Size left, Size whole_height,                 \
                                        Size whole_width, Size channels, Size groups) {                                  \
        warp_neighbours<T, V>(feat, next, previous, flow, out, height, width, top, left, whole_height, whole_width,      \
                              channels, groups);                                                                         \
    }                                                                                                                    \
    KERNEL pixel_norm_##NAME##_##V(const T* __restrict__ in, const float* __restrict__ weight,                           \
                                   const float* __restrict__ bias, T* out, float epsilon, Size pixels, Size channels,    \
                                   Size held) {                                                                          \
        pixel_norm<T, V>(in, weight, bias, out, epsilon, pixels, channels, held);                                        \
    }                                                                                                                    \
    KERNEL gated_##NAME##_##V(const T* __restrict__ image, const float* __restrict__ taps, T* out, Size height,          \
                              Size width, Size half, Size busy) {                                                        \
        gated<T, V>(image, taps, out, height, width, half, busy);                                                        \
    }                                                                                                                    \
    KERNEL squared_##NAME##_##V(const T* __restrict__ image, const float* __restrict__ taps, T* out, float* squares,     \
                                Size height, Size width, Size channels, Size busy) {                                     \
        squared<T, V>(image, taps, out, squares, height, width, channels, busy);                                         \
    }

#define OF_TYPE(T, NAME)                                                                                                 \
    OF_CHANNELS(T, NAME, 1)                                                                                              \
    OF_CHANNELS(T, NAME, 4)                                                                                              \
    KERNEL head_grams_##NAME(const T* __restrict__ query, Size query_step, const T* __restrict__ key, Size key_step,     \
                             float* sums, Size pixels, Size heads, Size channels) {                                      \
        head_grams<T>(query, query_step, key, key_step, sums, pixels, heads, channels);                                  \
    }                                                                                                                    \
    KERNEL path_cells_##NAME(const float* __restrict__ own, const float* __restrict__ next,                              \
                             const float* __restrict__ previous, const float* __restrict__ motion, T* out, Size height,  \
                             Size width, Size top, Size left, Size whole_height, Size whole_width, Size grid, Size side, \
                             Size own_count, Size count, float own_reach, float reach, float unit) {                     \
        path_cells<T>(own, next, previous, motion, out, height, width, top, left, whole_height, whole_width, grid, side, \
                      own_count, count, own_reach, reach, unit);                                                         \
    }                                                                                                                    \
    KERNEL add_skip_##NAME(const float* __restrict__ lr, const T* __restrict__ residual, float* out, Size height,        \
                           Size width, Size rows, Size columns, Size scale, Size shuffle) {                              \
        add_skip<T>(lr, residual, out, height, width, rows, columns, scale, shuffle);                                    \
    }
