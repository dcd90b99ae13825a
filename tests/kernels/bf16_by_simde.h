/* The branches of csrc/ for AVX512-BF16 on a CPU without it: SIMDe's functions stand for the instructions. Included
 * before a source, by the compiler's option, with -DLANES=16. What SIMDe lacks is added. */

#ifndef BF16_BY_SIMDE_H
#define BF16_BY_SIMDE_H

#define SIMDE_ENABLE_NATIVE_ALIASES
#define SIMDE_NO_INLINE /* in a tile it would take the compiler minutes */
#include <simde/x86/avx512/dpbf16.h>
#include <simde/x86/avx512/slli.h>
#include <string.h>

#define __AVX512BF16__ 1

typedef uint16_t half_bits __attribute__((vector_size(32)));
typedef uint32_t whole_bits __attribute__((vector_size(64)));

static inline __m256i by_simde_narrow(simde__m512 v) {
    half_bits h;
    for (int i = 0; i < 16; i++) {
        uint32_t bits;
        memcpy(&bits, (const char *)&v + 4 * i, 4);
        const int nan = (bits & 0x7fffffff) > 0x7f800000;
        h[i] = (uint16_t)((nan ? bits | 0x400000 : bits + 0x7fff + (bits >> 16 & 1)) >> 16);
    }
    return (__m256i)h;
}

static inline simde__m512i by_simde_widen(__m256i h) {
    return (simde__m512i)__builtin_convertvector((half_bits)h, whole_bits);
}

#undef _mm512_cvtneps_pbh
#define _mm512_cvtneps_pbh by_simde_narrow
#undef _mm512_cvtepu16_epi32
#define _mm512_cvtepu16_epi32 by_simde_widen

#endif
