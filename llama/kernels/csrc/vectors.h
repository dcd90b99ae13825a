/* What the kernels need of a CPU beyond the compiler's vector types, level by level. Everything else is
 * operators. The last branch of each `#if` is the fallback, in plain vector operations: it says what the
 * instructions above it compute, and runs on any CPU.
 *
 * Results are the same on every level, bit for bit, as far as they come from fma, sums of 16 parts (`total_of`)
 * and the operators. Only `dot_pairs` rounds otherwise where there is an instruction for it.
 */

#ifndef LLAMA_VECTORS_H
#define LLAMA_VECTORS_H

#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define INLINE static inline __attribute__((always_inline))
/* Unrolls the loop that follows, so that an array of vectors lives in registers. */
#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

/* What was read before, and what is made of `value`, is read and made again from here on: it is not kept in a
 * register that a sum needs more. */
#define READ_AGAIN(value) __asm__ volatile("" : "+r"(value) : : "memory")

/* Floats of a vector. A test build defines 16 on a CPU with less: vectors that the compiler splits. */
#ifndef LANES
#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX__)
#define LANES 8
#else
#define LANES 4
#endif
#endif

/* GROUP: outputs that lie together in a packed weight, and parts of a sum across lanes; on every level. */
enum { GROUP = 16, VECTORS = GROUP / LANES };

typedef float vf __attribute__((vector_size(4 * LANES)));
typedef int32_t vi __attribute__((vector_size(4 * LANES)));
typedef uint32_t vu __attribute__((vector_size(4 * LANES)));
typedef uint16_t vh __attribute__((vector_size(2 * LANES)));
typedef int8_t vb __attribute__((vector_size(LANES)));

/* ---- memory, constants, choice ---- */

INLINE vf load(const void *p) {
    vf v;
    memcpy(&v, p, sizeof(v));
    return v;
}

INLINE vu load_bits(const void *p) { return (vu)load(p); }

INLINE void store(void *p, vf v) { memcpy(p, &v, sizeof(v)); }

INLINE vf broadcast(float x) { return x - (vf){}; }

INLINE vu broadcast_bits(const void *p) {
    uint32_t bits;
    memcpy(&bits, p, sizeof(bits));
    return bits - (vu){};
}

/* Lanes of `yes` where the mask (0 or -1) says so, else of `no`. */
INLINE vf choose(vi mask, vf yes, vf no) { return (vf)((mask & (vi)yes) | (~mask & (vi)no)); }

/* The second where one of them is a NaN. */
INLINE vf larger(vf a, vf b) {
#if defined(__AVX512F__) && LANES == 16
    return (vf)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX__) && LANES == 8
    return (vf)_mm256_max_ps((__m256)a, (__m256)b);
#else
    return choose(a > b, a, b);
#endif
}

/* The second where one of them is a NaN. */
INLINE vf smaller(vf a, vf b) {
#if defined(__AVX512F__) && LANES == 16
    return (vf)_mm512_min_ps((__m512)a, (__m512)b);
#elif defined(__AVX__) && LANES == 8
    return (vf)_mm256_min_ps((__m256)a, (__m256)b);
#else
    return choose(a < b, a, b);
#endif
}

/* Store past the caches, for what is read much later; p is aligned to the vector. */
INLINE void stream(void *p, vu v) {
#if defined(__AVX512F__) && LANES == 16
    _mm512_stream_si512(p, (__m512i)v);
#elif defined(__AVX__) && LANES == 8
    _mm256_stream_si256(p, (__m256i)v);
#else
    store(p, (vf)v);
#endif
}

INLINE void end_stream(void) {
#if defined(__x86_64__)
    _mm_sfence();
#endif
}

/* ---- across lanes ---- */

#define LANES_4(f, i) f(i), f((i) + 1), f((i) + 2), f((i) + 3)
#define LANES_8(f, i) LANES_4(f, i), LANES_4(f, (i) + 4)
#define LANES_16(f, i) LANES_8(f, i), LANES_8(f, (i) + 8)
#define FOR_LANES_(n, f) LANES_##n(f, 0)
#define FOR_LANES(n, f) FOR_LANES_(n, f)
#if defined(__clang__)
#define SHUFFLE_TWO(a, b, f) __builtin_shufflevector(a, b, FOR_LANES(LANES, f))
#else
#define SHUFFLE_TWO(a, b, f) __builtin_shuffle(a, b, (vi){FOR_LANES(LANES, f)})
#endif
#define SHUFFLE(v, f) SHUFFLE_TWO(v, v, f)
/* Of each lane, the lane that it gets; those of b begin at LANES. */
#define SWAPPED(i) ((i) ^ 1)
#define EVEN(i) ((i) & ~1)
#define ODD(i) ((i) | 1)
#define ITSELF(i) (i)
#define BY_8(i) (((i) + 8) % LANES)
#define BY_4(i) (((i) + 4) % LANES)
#define BY_2(i) (((i) + 2) % LANES)
#define BY_1(i) (((i) + 1) % LANES)
/* n lanes of the first vector, n of the second, and so on: of each 2 n the first, or those behind them. */
#define FRONT(i, n) ((i) / (2 * (n)) * (2 * (n)) + (i) % (n) + (i) / (n) % 2 * LANES)
#define FRONT_8(i) FRONT(i, 8)
#define FRONT_4(i) FRONT(i, 4)
#define FRONT_2(i) FRONT(i, 2)
#define FRONT_1(i) FRONT(i, 1)
#define BACK_8(i) (FRONT(i, 8) + 8)
#define BACK_4(i) (FRONT(i, 4) + 4)
#define BACK_2(i) (FRONT(i, 2) + 2)
#define BACK_1(i) (FRONT(i, 1) + 1)
#define LOWER(i) ((i) / 2 + (i) % 2 * LANES)
#define UPPER(i) (LOWER(i) + LANES / 2)

INLINE vi lane_numbers(void) { return (vi){FOR_LANES(LANES, ITSELF)}; }

/* Rows become columns. Each pass interleaves rows that are half of all apart. */
INLINE void transpose(vu v[LANES]) {
    UNROLL for (int pass = 1; pass < LANES; pass *= 2) {
        vu next[LANES];
        UNROLL for (int i = 0; i < LANES / 2; i++) {
            next[2 * i] = SHUFFLE_TWO(v[i], v[i + LANES / 2], LOWER);
            next[2 * i + 1] = SHUFFLE_TWO(v[i], v[i + LANES / 2], UPPER);
        }
        memcpy(v, next, sizeof(next));
    }
}

/* 16 parts of a sum -> those of one vector. As `total_of` adds them: i and i + 8 first, then 4 apart. */
INLINE vf folded(const vf part[VECTORS]) {
#if LANES == 16
    return part[0];
#elif LANES == 8
    return part[0] + part[VECTORS - 1];
#else
    return (part[0] + part[VECTORS / 2]) + (part[VECTORS / 4] + part[VECTORS - 1]);
#endif
}

/* The sum of 16 parts: i and i + 8 first, then 4, 2 and 1 apart, on every level. */
INLINE float total_of(const vf part[VECTORS]) {
    vf sum = folded(part);
#if LANES == 16
    sum += SHUFFLE(sum, BY_8);
#endif
#if LANES > 4
    sum += SHUFFLE(sum, BY_4);
#endif
    sum += SHUFFLE(sum, BY_2);
    return sum[0] + sum[1];
}

/* v[i] and v[i + n] become one: sums of two lanes that are n apart, n of one and n of the other in turn. */
#define HALVE(v, n, front, back)       \
    UNROLL for (int i = 0; i < n; i++) \
        v[i] = SHUFFLE_TWO(v[i], v[i + n], front) + SHUFFLE_TWO(v[i], v[i + n], back)

/* What total_of makes of each of as many sums as there are lanes, all folded; that of v[i] is in lane i. */
INLINE vf totals_of(vf v[LANES]) {
#if LANES == 16
    HALVE(v, 8, FRONT_8, BACK_8);
#endif
#if LANES > 4
    HALVE(v, 4, FRONT_4, BACK_4);
#endif
    HALVE(v, 2, FRONT_2, BACK_2);
    HALVE(v, 1, FRONT_1, BACK_1);
    return v[0];
}

INLINE float largest_of(vf v) {
    float top = v[0];
    for (int i = 1; i < LANES; i++) top = v[i] > top ? v[i] : top;
    return top;
}

/* ---- arithmetic ---- */

/* a b + c, rounded once. */
INLINE vf fma_of(vf a, vf b, vf c) {
#if defined(__AVX512F__) && LANES == 16
    return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__) && LANES == 8
    return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__aarch64__) && LANES == 4
    return (vf)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#elif defined(__FMA__)
    __m256 x[LANES / 8], y[LANES / 8], z[LANES / 8];
    memcpy(x, &a, sizeof(a)), memcpy(y, &b, sizeof(b)), memcpy(z, &c, sizeof(c));
    UNROLL for (int i = 0; i < LANES / 8; i++) z[i] = _mm256_fmadd_ps(x[i], y[i], z[i]);
    memcpy(&c, z, sizeof(c));
    return c;
#else
    vf r;
    for (int i = 0; i < LANES; i++) r[i] = __builtin_fmaf(a[i], b[i], c[i]);
    return r;
#endif
}

/* e^x for x <= 0: 2^n times a polynomial on [-ln2 / 2, ln2 / 2], exact to about 2 units in the last place. 0
 * below -87, where floats end; a NaN stays one. */
INLINE vf exponential(vf x) {
    const float shift = 12582912; /* 1.5 x 2^23: the integer is in the last bits of what is added to it */
    const vf shifted = fma_of(x, broadcast(1.44269504f), broadcast(shift));
    const vf n = shifted - shift;
    vf r = fma_of(n, broadcast(-0.693359375f), x);
    r = fma_of(n, broadcast(2.12194440e-4f), r);
    vf p = fma_of(broadcast(1.0f / 720), r, broadcast(1.0f / 120));
    p = fma_of(p, r, broadcast(1.0f / 24));
    p = fma_of(p, r, broadcast(1.0f / 6));
    p = fma_of(p, r, broadcast(0.5f));
    p = fma_of(p, r, broadcast(1));
    p = fma_of(p, r, broadcast(1));
    const vf power = (vf)(((vu)shifted + 127) << 23);
    return (vf)((vi)(p * power) & ~(x < -87));
}

/* ---- 16-bit floats ---- */

INLINE vf widen_bf16(const void *p) {
    /* One instruction; GCC 12 makes five of the conversion below. */
#if defined(__AVX512F__) && LANES == 16
    return (vf)((vu)_mm512_cvtepu16_epi32(_mm256_loadu_si256(p)) << 16);
#elif defined(__AVX2__) && LANES == 8
    return (vf)((vu)_mm256_cvtepu16_epi32(_mm_loadu_si128(p)) << 16);
#else
    vh h;
    memcpy(&h, p, sizeof(h));
    return (vf)(__builtin_convertvector(h, vu) << 16);
#endif
}

/* To the nearest bfloat16, ties to even; a NaN stays one. In the upper half of each lane, the lower is 0. */
INLINE vu upper_bf16(vf v) {
    const vu bits = (vu)v, nearest = bits + 0x7fff + (bits >> 16 & 1);
    return (vu)choose(v == v, (vf)nearest, (vf)(bits | 0x400000)) & 0xffff0000u;
}

INLINE void narrow_bf16(void *p, vf v) {
#if defined(__AVX512BF16__) && LANES == 16
    const __m256i h = (__m256i)_mm512_cvtneps_pbh((__m512)v);
#else
    const vh h = __builtin_convertvector(upper_bf16(v) >> 16, vh);
#endif
    memcpy(p, &h, sizeof(h));
}

/* v in the precision of bfloat16. */
INLINE vf rounded_bf16(vf v) {
#if defined(__AVX512BF16__) && LANES == 16
    return (vf)_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)v)), 16);
#else
    return (vf)upper_bf16(v);
#endif
}

INLINE vf widen_f16(const void *p) {
#if defined(__AVX512F__) && LANES == 16
    return (vf)_mm512_cvtph_ps(_mm256_loadu_si256(p));
#elif defined(__F16C__) && LANES == 8
    return (vf)_mm256_cvtph_ps(_mm_loadu_si128(p));
#elif defined(__aarch64__) && LANES == 4
    return (vf)vcvt_f32_f16(vld1_f16(p));
#elif defined(__F16C__)
    /* Not the fallback: GCC before 12 and clang before 15 have no _Float16 here. */
    vf v;
    for (int i = 0; i < LANES / 8; i++) {
        const __m256 part = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p + i));
        memcpy((char *)&v + sizeof(part) * i, &part, sizeof(part));
    }
    return v;
#else
    vf v;
    for (int i = 0; i < LANES; i++) {
        _Float16 h;
        memcpy(&h, (const char *)p + 2 * i, 2);
        v[i] = (float)h;
    }
    return v;
#endif
}

INLINE void narrow_f16(void *p, vf v) {
#if defined(__AVX512F__) && LANES == 16
    _mm256_storeu_si256(p, _mm512_cvtps_ph((__m512)v, 0));
#elif defined(__F16C__) && LANES == 8
    _mm_storeu_si128(p, _mm256_cvtps_ph((__m256)v, 0));
#elif defined(__aarch64__) && LANES == 4
    vst1_f16(p, vcvt_f16_f32((float32x4_t)v));
#elif defined(__F16C__)
    for (int i = 0; i < LANES / 8; i++) {
        __m256 part;
        memcpy(&part, (const char *)&v + sizeof(part) * i, sizeof(part));
        _mm_storeu_si128((__m128i *)p + i, _mm256_cvtps_ph(part, 0));
    }
#else
    for (int i = 0; i < LANES; i++) {
        const _Float16 h = (_Float16)v[i];
        memcpy((char *)p + 2 * i, &h, 2);
    }
#endif
}

/* ---- signed bytes ---- */

INLINE vf widen_i8(const void *p) {
#if defined(__AVX512F__) && LANES == 16
    return (vf)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(p)));
#elif defined(__AVX2__) && LANES == 8
    return (vf)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(p)));
#else
    vb bytes;
    memcpy(&bytes, p, sizeof(bytes));
    return __builtin_convertvector(bytes, vf);
#endif
}

/* Whole numbers from -128 to 127. */
INLINE void narrow_i8(void *p, vf v) {
    /* A few instructions; of the conversion below GCC 12 makes thirty. */
#if defined(__AVX2__) && LANES == 8
    const __m256i whole = _mm256_cvttps_epi32((__m256)v);
    const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
    _mm_storel_epi64(p, _mm_packs_epi16(words, words));
#else
    const vb bytes = __builtin_convertvector(__builtin_convertvector(v, vi), vb);
    memcpy(p, &bytes, sizeof(bytes));
#endif
}

/* ---- dot products of 16-bit floats ---- */

/* DOTS: whether an instruction multiplies pairs of bfloat16. Without one, floats are multiplied. */
#if (defined(__AVX512BF16__) && LANES == 16) || (defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC) && LANES == 4)
enum { DOTS = 1 };
#else
enum { DOTS = 0 };
#endif

/* sum + a0 b0 + a1 b1 in each lane; a and b are pairs of bfloat16. The instructions take subnormal numbers for
 * 0, and round by rules of their own. */
INLINE vf dot_pairs(vf sum, vu a, vu b) {
#if defined(__AVX512BF16__) && LANES == 16
    return (vf)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
#elif defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC) && LANES == 4
    return (vf)vbfdotq_f32((float32x4_t)sum, (bfloat16x8_t)a, (bfloat16x8_t)b);
#else
    sum = fma_of((vf)(a << 16), (vf)(b << 16), sum);
    return fma_of((vf)(a & 0xffff0000u), (vf)(b & 0xffff0000u), sum);
#endif
}

#endif
