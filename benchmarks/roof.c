/* What kernels.py measures the kernels against: a plain read of memory, and multiply-adds that wait for no memory.
   It is compiled with a level's flags, and with -ffp-contract=fast: a * b + c is one instruction. */
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#if defined(__AVX512F__)
enum { BYTES = 64, SUMS = 24 };
#elif defined(__AVX2__)
enum { BYTES = 32, SUMS = 12 }; /* of 16 registers */
#else
enum { BYTES = 16, SUMS = 24 };
#endif
typedef float floats __attribute__((vector_size(BYTES)));
typedef unsigned words __attribute__((vector_size(BYTES), aligned(4)));
#define UNROLL _Pragma("GCC unroll 24")

/* Read `size` bytes as four streams, a cache line of each in turn. Returns something made of all of them. */
unsigned roof_read(const char *data, long size) {
    const long quarter = size / 4 / 64 * 64;
    words sum[4] = {};
    for (long i = 0; i < quarter; i += 64)
        UNROLL for (int stream = 0; stream < 4; stream++)
            UNROLL for (int part = 0; part < 64; part += BYTES)
                sum[stream] += *(const words *)(data + stream * quarter + i + part);
    sum[0] += sum[1] + sum[2] + sum[3];
    unsigned all = 0;
    for (int i = 0; i < BYTES / 4; i++) all += sum[0][i];
    return all;
}

/* `rounds` of independent multiply-adds in float32. Returns how many operations that were; sets *out. */
double roof_fma(long rounds, float *out) {
    floats sum[SUMS], a = {}, b = {};
    a += out[0], b += out[1];
    UNROLL for (int i = 0; i < SUMS; i++) sum[i] = b * (float)i;
    for (long round = 0; round < rounds; round++) UNROLL for (int i = 0; i < SUMS; i++) sum[i] = sum[i] * a + b;
    for (int i = 1; i < SUMS; i++) sum[0] += sum[i];
    *out = sum[0][0];
    return 2.0 * rounds * SUMS * (BYTES / 4);
}

/* The same in dots of bfloat16, two products each, where the level has them; else in float32. */
double roof_dots(long rounds, float *out) {
#if defined(__AVX512BF16__)
    __m512 sum[SUMS];
    const __m512bh a = (__m512bh)_mm512_set1_ps(out[0]), b = (__m512bh)_mm512_set1_ps(out[1]);
    UNROLL for (int i = 0; i < SUMS; i++) sum[i] = _mm512_set1_ps((float)i);
    for (long round = 0; round < rounds; round++)
        UNROLL for (int i = 0; i < SUMS; i++) sum[i] = _mm512_dpbf16_ps(sum[i], a, b);
    for (int i = 1; i < SUMS; i++) sum[0] += sum[i];
    *out = sum[0][0];
    return 4.0 * rounds * SUMS * (BYTES / 4);
#elif defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
    float32x4_t sum[SUMS];
    const bfloat16x8_t a = vreinterpretq_bf16_f32(vdupq_n_f32(out[0])), b = vreinterpretq_bf16_f32(vdupq_n_f32(out[1]));
    UNROLL for (int i = 0; i < SUMS; i++) sum[i] = vdupq_n_f32((float)i);
    for (long round = 0; round < rounds; round++)
        UNROLL for (int i = 0; i < SUMS; i++) sum[i] = vbfdotq_f32(sum[i], a, b);
    for (int i = 1; i < SUMS; i++) sum[0] += sum[i];
    *out = sum[0][0];
    return 4.0 * rounds * SUMS * (BYTES / 4);
#else
    return roof_fma(rounds, out);
#endif
}

/* The same in integers as x and weights of 8 or of 4 bits are multiplied: an instruction that multiplies bytes in fours,
 * or pairs of 16 or 8 bits and an addition. */
double roof_integers(long rounds, int *out, int bits) {
    words sum[SUMS], a = {}, b = {};
    a += (unsigned)out[0], b += (unsigned)out[1];
    UNROLL for (int i = 0; i < SUMS; i++) sum[i] = b * (unsigned)i;
    for (long round = 0; round < rounds; round++)
        UNROLL for (int i = 0; i < SUMS; i++) {
#if defined(__AVX512VNNI__)
            sum[i] = (words)_mm512_dpbusd_epi32((__m512i)sum[i], (__m512i)a, (__m512i)b);
#elif defined(__AVX512BW__)
            sum[i] += (words)(bits == 8 ? _mm512_madd_epi16((__m512i)a, (__m512i)b) : _mm512_maddubs_epi16((__m512i)a, (__m512i)b));
            __asm__("" : "+v"(a), "+v"(sum[i]));
#elif defined(__AVXVNNI__)
            sum[i] = (words)_mm256_dpbusd_avx_epi32((__m256i)sum[i], (__m256i)a, (__m256i)b);
#elif defined(__AVX2__)
            sum[i] += (words)(bits == 8 ? _mm256_madd_epi16((__m256i)a, (__m256i)b) : _mm256_maddubs_epi16((__m256i)a, (__m256i)b));
            __asm__("" : "+x"(a), "+x"(sum[i]));
#elif defined(__ARM_FEATURE_DOTPROD)
            sum[i] = (words)vdotq_s32((int32x4_t)sum[i], (int8x16_t)a, (int8x16_t)b);
#else
            sum[i] = (words)vpadalq_s16((int32x4_t)sum[i], vmull_s8(vget_low_s8((int8x16_t)a), vget_high_s8((int8x16_t)b)));
#endif
        }
    for (int i = 1; i < SUMS; i++) sum[0] += sum[i];
    *out = (int)sum[0][0];
#if defined(__AVX512VNNI__) || defined(__AVXVNNI__) || defined(__ARM_FEATURE_DOTPROD)
    return 2.0 * rounds * SUMS * BYTES;
#elif defined(__x86_64__)
    return 2.0 * rounds * SUMS * (bits == 8 ? BYTES / 2 : BYTES);
#else
    return 2.0 * rounds * SUMS * (BYTES / 2);
#endif
}
