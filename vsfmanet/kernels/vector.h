// Values of images as floats, one at a time and several: what the CPU kernels share.

#pragma once

#include <vector>

#include "scalar.h"

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace {

constexpr long kLine = 64;  // bytes in a line of the cache

// Several values as floats, and back; vectors by name, because compilers make none of groups as short as 12 channels.
template <class Floats, class Words, class Halves>
struct Vector {
    using Values = Floats;

    static void load(const float* from, Floats& to) { std::memcpy(&to, from, sizeof to); }

    static void load(const BFloat16* from, Floats& to) {
#ifdef __AVX512F__  // two instructions instead of six
        if constexpr (sizeof to == sizeof(__m512)) {
            const __m256i narrow = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
            const __m512i wide = _mm512_slli_epi32(_mm512_cvtepu16_epi32(narrow), 16);
            std::memcpy(&to, &wide, sizeof to);
            return;
        }
#endif
        Halves halves;
        std::memcpy(&halves, from, sizeof halves);
        const Words words = __builtin_convertvector(halves, Words) << 16;
        std::memcpy(&to, &words, sizeof to);
    }

    static void store(float* to, const Floats& from) { std::memcpy(to, &from, sizeof from); }

    static void store(BFloat16* to, const Floats& from) {
#ifdef __AVX512BF16__  // one instruction instead of six
        if constexpr (sizeof from == sizeof(__m512)) {
            __m512 wide;
            std::memcpy(&wide, &from, sizeof wide);
            const __m256bh narrow = _mm512_cvtneps_pbh(wide);
            std::memcpy(to, &narrow, sizeof narrow);
            return;
        }
#endif
        Words words;
        std::memcpy(&words, &from, sizeof words);
        const Halves halves = __builtin_convertvector((words + 0x7fff + ((words >> 16) & 1)) >> 16, Halves);
        std::memcpy(to, &halves, sizeof halves);
    }
};

#define VECTOR(TYPE, N) TYPE __attribute__((vector_size(N * sizeof(TYPE))))
using Vector4 = Vector<VECTOR(float, 4), VECTOR(uint32_t, 4), VECTOR(uint16_t, 4)>;
using Vector8 = Vector<VECTOR(float, 8), VECTOR(uint32_t, 8), VECTOR(uint16_t, 8)>;
using Vector16 = Vector<VECTOR(float, 16), VECTOR(uint32_t, 16), VECTOR(uint16_t, 16)>;

#if defined(__AVX512F__)
constexpr int kLanes = 16;
using Native = Vector16;
#elif defined(__AVX__)
constexpr int kLanes = 8;
using Native = Vector8;
#else
constexpr int kLanes = 4;
using Native = Vector4;
#endif
// As many floats as a register of this processor holds.
using Lanes = Native::Values;

// The first `count` lanes of a register; nothing is read or written beyond them, and those beyond are read as zero.
template <class T>
Lanes load_some(const T* from, long count) {
    Lanes out;
#if defined(__AVX512BW__) && defined(__AVX512VL__)
    const __mmask16 mask = (1 << count) - 1;
    if constexpr (sizeof(T) == 2) {
        const __m512i wide = _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, from)), 16);
        std::memcpy(&out, &wide, sizeof out);
    } else {
        const __m512 values = _mm512_maskz_loadu_ps(mask, from);
        std::memcpy(&out, &values, sizeof out);
    }
#else
    T all[kLanes] = {};
    std::memcpy(all, from, count * sizeof(T));
    Native::load(all, out);
#endif
    return out;
}

template <class T>
void store_some(T* to, const Lanes& from, long count) {
#if defined(__AVX512BW__) && defined(__AVX512VL__)
    const __mmask16 mask = (1 << count) - 1;
    if constexpr (sizeof(T) == 2) {
        T all[kLanes];
        Native::store(all, from);
        __m256i narrow;
        std::memcpy(&narrow, all, sizeof narrow);
        _mm256_mask_storeu_epi16(to, mask, narrow);
    } else {
        _mm512_mask_storeu_ps(to, mask, (__m512)from);
    }
#else
    T all[kLanes];
    Native::store(all, from);
    std::memcpy(to, all, count * sizeof(T));
#endif
}

// Brings so many values into the cache, to be read or to be written. They may lie outside an image: nothing is read.
template <int kWrite, class T>
void announce(const T* from, long count) {
    const char* const start = reinterpret_cast<const char*>(from);
    for (long i = 0; i < static_cast<long>(count * sizeof(T)); i += kLine) __builtin_prefetch(start + i, kWrite, 2);
}

// Memory of this thread from the start of a cache line on, kept from call to call: fresh memory is slow.
inline char* scratch(size_t bytes) {
    static thread_local std::vector<char> kept;
    if (kept.size() < bytes + kLine) kept.resize(bytes + kLine);
    return kept.data() + kLine - reinterpret_cast<uintptr_t>(kept.data()) % kLine;
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

}  // namespace
