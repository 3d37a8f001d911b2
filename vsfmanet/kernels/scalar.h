// Single values of images: what the kernels for CPUs and those for CUDA share. NVRTC has no headers of the C++ library.

#pragma once

#ifdef __CUDACC__
#define INLINE __device__ __forceinline__
using uint8_t = unsigned char;
using uint16_t = unsigned short;
using uint32_t = unsigned int;
#else
#include <cstdint>
#include <cstring>
#define INLINE inline
#endif

namespace {

struct BFloat16 {
    uint16_t bits;
};

INLINE float widen(float value) { return value; }

INLINE float widen(BFloat16 value) {
    const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
    float out;
    memcpy(&out, &bits, sizeof out);
    return out;
}

INLINE void store(float* to, float value) { *to = value; }

INLINE void store(BFloat16* to, float value) {  // nearest, ties to even
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    const bool is_nan = value != value;  // CUDA's NaN has all bits set: rounding would make a zero of it
    to->bits = static_cast<uint16_t>(is_nan ? 0x7fc0 : (bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

INLINE float clamped(float value, float high) {  // a NaN becomes 0: never an address outside the image
    return value > 0 ? (value < high ? value : high) : 0.0f;
}

}  // namespace
