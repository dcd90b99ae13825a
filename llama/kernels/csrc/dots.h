/* Dot products of small integers, level by level, as vectors.h has the rest: the last branch of each `#if` says in
 * plain vector operations what the instructions above it compute. All are exact, so results are the same on every
 * level. */

#ifndef LLAMA_DOTS_H
#define LLAMA_DOTS_H

#include "vectors.h"

typedef int16_t vs __attribute__((vector_size(4 * LANES)));
typedef uint16_t vh2 __attribute__((vector_size(4 * LANES)));
typedef int8_t vq __attribute__((vector_size(LANES)));

/* FOURS: whether an instruction multiplies bytes in fours; without one, 8-bit codes are multiplied as 16-bit pairs,
 * and 4-bit codes as bytes, to 16-bit sums. EXCESS: what dot_fours takes off each code by itself. */
#if (defined(__AVX512VNNI__) && LANES == 16) || (defined(__AVXVNNI__) && LANES == 8)
enum { FOURS = 1, EXCESS = 0 };
#elif defined(__aarch64__) && LANES == 4
#if defined(__ARM_FEATURE_MATMUL_INT8)
enum { FOURS = 1, EXCESS = 0 };
#else
enum { FOURS = 1, EXCESS = 128 };
#endif
#else
enum { FOURS = 0, EXCESS = 0 };
#endif

/* The sum is made here and lies in a register. GCC otherwise computes the products of a whole block, on the stack,
 * before it adds them. */
#if defined(__x86_64__) && (LANES == 8 || defined(__AVX512F__))
#define IN_REGISTER(sum) __asm__("" : "+v"(sum))
#else
#define IN_REGISTER(sum) ((void)0)
#endif

INLINE vi broadcast_int(int32_t x) { return x - (vi){}; }

/* Bytes p[0], p[1], ... as integers. */
INLINE vi widen_bytes(const void *p) {
#if defined(__AVX512F__) && LANES == 16
    return (vi)_mm512_cvtepu8_epi32(_mm_loadu_si128(p));
#elif defined(__AVX2__) && LANES == 8
    return (vi)_mm256_cvtepu8_epi32(_mm_loadl_epi64(p));
#else
    typedef uint8_t bytes __attribute__((vector_size(LANES)));
    bytes b;
    memcpy(&b, p, sizeof(b));
    return __builtin_convertvector(b, vi);
#endif
}

/* a b, of integers that have 16 bits; a is not negative. */
INLINE vi times(vi a, vi b) {
#if defined(__AVX512BW__) && LANES == 16
    return (vi)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#elif defined(__AVX2__) && LANES == 8
    return (vi)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#else
    return a * b;
#endif
}

/* sum + a0 b0 + a1 b1 in each lane, of 16-bit integers. */
INLINE vi dot_pairs_of_words(vi sum, vu a, vu b) {
#if defined(__AVX512BW__) && LANES == 16
    sum += (vi)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#elif defined(__AVX2__) && LANES == 8
    sum += (vi)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#else
    sum += ((vi)a << 16 >> 16) * ((vi)b << 16 >> 16) + ((vi)a >> 16) * ((vi)b >> 16);
#endif
    IN_REGISTER(sum);
    return sum;
}

/* sum + a0 b0 + a1 b1 in each half of a lane, 16 bits: a are bytes up to 15, b signed bytes. */
INLINE vs dot_pairs_of_bytes(vs sum, vu a, vu b) {
#if defined(__AVX512BW__) && LANES == 16
    sum += (vs)_mm512_maddubs_epi16((__m512i)a, (__m512i)b);
#elif defined(__AVX2__) && LANES == 8
    sum += (vs)_mm256_maddubs_epi16((__m256i)a, (__m256i)b);
#else
    sum += ((vs)a & 255) * ((vs)b << 8 >> 8) + ((vs)a >> 8) * ((vs)b >> 8);
#endif
    IN_REGISTER(sum);
    return sum;
}

/* Bytes in the form that dot_fours takes, where it takes something off them. */
INLINE vu less_excess(vu codes) { return EXCESS ? codes ^ 0x80808080u : codes; }

/* sum + a0 b0 + a1 b1 + a2 b2 + a3 b3 in each lane: a are bytes, signed ones if EXCESS (or up to 15); b signed bytes
 * above -128. */
INLINE vi dot_fours(vi sum, vu a, vu b) {
#if defined(__AVX512VNNI__) && LANES == 16
    return (vi)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)a, (__m512i)b);
#elif defined(__AVXVNNI__) && LANES == 8
    return (vi)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)a, (__m256i)b);
#elif defined(__ARM_FEATURE_MATMUL_INT8) && LANES == 4
    return (vi)vusdotq_s32((int32x4_t)sum, (uint8x16_t)a, (int8x16_t)b);
#elif defined(__ARM_FEATURE_DOTPROD) && LANES == 4
    return (vi)vdotq_s32((int32x4_t)sum, (int8x16_t)a, (int8x16_t)b);
#elif defined(__aarch64__) && LANES == 4
    const int16x8_t low = vmull_s8(vget_low_s8((int8x16_t)a), vget_low_s8((int8x16_t)b));
    const int16x8_t high = vmull_high_s8((int8x16_t)a, (int8x16_t)b);
    return (vi)vpadalq_s16((int32x4_t)sum, vpaddq_s16(low, high)); /* two products have 16 bits */
#else
    UNROLL for (int i = 0; i < 32; i += 8) {
        const vi each = EXCESS ? (vi)(a << (24 - i)) >> 24 : (vi)(a >> i & 255);
        sum += each * ((vi)(b << (24 - i)) >> 24);
    }
    return sum;
#endif
}

/* ---- of one block of x ---- */

INLINE vi larger_int(vi a, vi b) {
#if defined(__AVX512F__) && LANES == 16
    return (vi)_mm512_max_epi32((__m512i)a, (__m512i)b);
#elif defined(__AVX2__) && LANES == 8
    return (vi)_mm256_max_epi32((__m256i)a, (__m256i)b);
#else
    const vi mask = a > b;
    return (a & mask) | (b & ~mask);
#endif
}

INLINE int32_t largest_int(vi v) {
#if LANES > 8
    v = larger_int(v, SHUFFLE(v, BY_8));
#endif
#if LANES > 4
    v = larger_int(v, SHUFFLE(v, BY_4));
#endif
    v = larger_int(v, SHUFFLE(v, BY_2));
    return v[0] > v[1] ? v[0] : v[1];
}

INLINE int32_t total_int(vi v) {
#if LANES > 8
    v += SHUFFLE(v, BY_8);
#endif
#if LANES > 4
    v += SHUFFLE(v, BY_4);
#endif
    v += SHUFFLE(v, BY_2);
    return v[0] + v[1];
}

#endif
