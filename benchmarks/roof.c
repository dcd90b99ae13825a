/* What kernels.py measures the kernels against: a plain read of memory, and multiply-adds that wait for no memory.
   It is compiled with a level's flags, and with -ffp-contract=fast: a * b + c is one instruction. */
#if defined(__AVX512BF16__)
#include <immintrin.h>
#elif defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
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
