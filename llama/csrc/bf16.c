/* bfloat16 on CPUs with AVX512-BF16. First y = x W^T for any number of rows of x.
 *
 * W (out, in) is packed once into groups of 16 outputs, in pairs of inputs: packed[g][k / 2][16][2]. One
 * 64-byte load then feeds one dot-product instruction for 16 outputs, nothing is summed across lanes,
 * and one row of x reads W as one stream at the speed of memory. A panel of 4 groups stays in the
 * second-level cache while the rows of x pass over it 6 at a time, which keeps 24 sums in registers.
 * Products of two bfloat16 are summed in float32.
 *
 * The OpenMP symbols are left undefined on purpose: they resolve to the runtime that torch has
 * loaded, so that there is one pool of threads.
 */

#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#define TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512bf16")))
#define INLINE static inline __attribute__((always_inline))

/* FEW: rows up to which starting threads costs more than they save. */
enum { LANES = 16, GROUPS = 4, ROWS = 6, FEW = 8 };

/* Goes up with every change of a signature or of the packed layout; native.py asks for it. */
int llama_bf16_abi(void) { return 2; }

int llama_bf16_supported(void) {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512bf16");
}

/* 16 rows of 16 pairs, `stride` elements apart, to 16 columns of 16 pairs, one behind the other. */
TARGET INLINE void transpose(const uint16_t *w, long stride, uint16_t *to) {
    __m512i r[LANES], t[LANES];
    for (int i = 0; i < LANES; i++) r[i] = _mm512_loadu_si512(w + i * stride);
    for (int i = 0; i < LANES; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < LANES; i += 4)
        for (int j = 0; j < 2; j++) {
            r[i + 2 * j] = _mm512_unpacklo_epi64(t[i + j], t[i + 2 + j]);
            r[i + 2 * j + 1] = _mm512_unpackhi_epi64(t[i + j], t[i + 2 + j]);
        }
    /* Now r[4 q + c] has, in its 128-bit part p, rows 4 q to 4 q + 3 of column 4 p + c. */
    for (int c = 0; c < 4; c++) {
        const __m512i a = _mm512_shuffle_i32x4(r[c], r[4 + c], 0x88), b = _mm512_shuffle_i32x4(r[c], r[4 + c], 0xdd);
        const __m512i d = _mm512_shuffle_i32x4(r[8 + c], r[12 + c], 0x88);
        const __m512i e = _mm512_shuffle_i32x4(r[8 + c], r[12 + c], 0xdd);
        /* Past the caches: what is packed now is read much later. */
        _mm512_stream_si512((void *)(to + (0 + c) * 2 * LANES), _mm512_shuffle_i32x4(a, d, 0x88));
        _mm512_stream_si512((void *)(to + (4 + c) * 2 * LANES), _mm512_shuffle_i32x4(b, e, 0x88));
        _mm512_stream_si512((void *)(to + (8 + c) * 2 * LANES), _mm512_shuffle_i32x4(a, d, 0xdd));
        _mm512_stream_si512((void *)(to + (12 + c) * 2 * LANES), _mm512_shuffle_i32x4(b, e, 0xdd));
    }
}

/* A block w (rows, columns), its rows `stride` elements apart, into a packed W of `in` inputs. `packed` points to
 * where the block begins; it begins at a multiple of 16 outputs and 2 inputs, on 64 bytes. `columns` is even.
 * In the last group of 16 outputs, those past `rows` become zero. */
TARGET void llama_bf16_pack(const uint16_t *w, uint16_t *packed, long stride, long in, long rows, long columns,
                            int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long first = 0; first < rows; first += LANES) {
        const uint16_t *from = w + first * stride;
        uint16_t *to = packed + first * in;
        long k = 0;
        if (first + LANES <= rows)
            for (; k + 2 * LANES <= columns; k += 2 * LANES) transpose(from + k, stride, to + k * LANES);
        for (; k < columns; k += 2)
            for (long i = 0; i < LANES; i++)
                if (first + i < rows)
                    memcpy(to + k * LANES + 2 * i, from + i * stride + k, 4);
                else
                    memset(to + k * LANES + 2 * i, 0, 4);
        _mm_sfence();
    }
}

/* One panel against `rows` rows. The counts are constants at every call, so that the compiler unrolls
 * the loops and keeps the sums in registers. `width` is the number of outputs that exist. */
TARGET INLINE void tile(const uint16_t *w, const uint16_t *x, uint16_t *y, long in, long out, long width, int groups,
                        int rows) {
    __m512 sum[ROWS][GROUPS];
    for (int r = 0; r < rows; r++)
        for (int g = 0; g < groups; g++) sum[r][g] = _mm512_setzero_ps();
    for (long k = 0; k < in; k += 2) {
        __m512bh wv[GROUPS];
        for (int g = 0; g < groups; g++) wv[g] = (__m512bh)_mm512_loadu_epi16(w + (g * in + k) * LANES);
        for (int r = 0; r < rows; r++) {
            int32_t pair;
            memcpy(&pair, x + r * in + k, 4);
            const __m512bh xv = (__m512bh)_mm512_set1_epi32(pair);
            for (int g = 0; g < groups; g++) sum[r][g] = _mm512_dpbf16_ps(sum[r][g], wv[g], xv);
        }
    }
    for (int r = 0; r < rows; r++)
        for (int g = 0; g < groups; g++) {
            const long left = width - g * LANES;
            const __mmask16 mask = left >= LANES ? 0xffff : left > 0 ? (1u << left) - 1 : 0;
            _mm256_mask_storeu_epi16(y + r * out + g * LANES, mask, (__m256i)_mm512_cvtneps_pbh(sum[r][g]));
        }
}

TARGET INLINE void panel(const uint16_t *w, const uint16_t *x, uint16_t *y, long rows, long in, long out, long width,
                         int groups) {
    for (; rows >= ROWS; rows -= ROWS, x += ROWS * in, y += ROWS * out) tile(w, x, y, in, out, width, groups, ROWS);
    if (rows == 5) tile(w, x, y, in, out, width, groups, 5);
    if (rows == 4) tile(w, x, y, in, out, width, groups, 4);
    if (rows == 3) tile(w, x, y, in, out, width, groups, 3);
    if (rows == 2) tile(w, x, y, in, out, width, groups, 2);
    if (rows == 1) tile(w, x, y, in, out, width, groups, 1);
}

TARGET static void any_panel(const uint16_t *w, const uint16_t *x, uint16_t *y, long rows, long in, long out,
                             long width) {
    if (width > 3 * LANES)
        panel(w, x, y, rows, in, out, width, 4);
    else if (width > 2 * LANES)
        panel(w, x, y, rows, in, out, width, 3);
    else if (width > LANES)
        panel(w, x, y, rows, in, out, width, 2);
    else
        panel(w, x, y, rows, in, out, width, 1);
}

/* x (rows, in), contiguous, times the packed W -> y (rows, out). */
void llama_bf16_linear(const uint16_t *x, const uint16_t *packed, uint16_t *y, long rows, long in, long out,
                       int threads) {
    const long step = GROUPS * LANES;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long first = 0; first < out; first += step)
        any_panel(packed + first * in, x, y + first, rows, in, out, out - first < step ? out - first : step);
}

/* ---- what stands between the matrix products, one call instead of ten small ones ---- */

TARGET INLINE __m512 widen(const uint16_t *p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_epi16(p)), 16));
}

TARGET INLINE void narrow(uint16_t *p, __m512 value) { _mm256_storeu_epi16(p, (__m256i)_mm512_cvtneps_pbh(value)); }

TARGET INLINE __m512 rounded(__m512 value) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(value)), 16));
}

/* y = bfloat16(x / rms(x)) * weight, as the torch code in model.py rounds it; n is a multiple of 16. */
TARGET static void norm(const uint16_t *x, const uint16_t *weight, uint16_t *y, long n, float eps) {
    __m512 squares = _mm512_setzero_ps();
    for (long i = 0; i < n; i += LANES) {
        const __m512 v = widen(x + i);
        squares = _mm512_fmadd_ps(v, v, squares);
    }
    const __m512 mean = _mm512_set1_ps(_mm512_reduce_add_ps(squares) / (float)n + eps);
    const __m512 scale = _mm512_div_ps(_mm512_set1_ps(1), _mm512_sqrt_ps(mean));
    for (long i = 0; i < n; i += LANES)
        narrow(y + i, _mm512_mul_ps(rounded(_mm512_mul_ps(widen(x + i), scale)), widen(weight + i)));
}

void llama_bf16_rms_norm(const uint16_t *x, const uint16_t *weight, uint16_t *y, long rows, long n, float eps,
                         int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (rows > FEW)
    for (long r = 0; r < rows; r++) norm(x + r * n, weight, y + r * n, n, eps);
}

TARGET static void rotate(uint16_t *x, const float *table, long heads, long dim) {
    for (long h = 0; h < heads; h++, x += dim)
        for (long i = 0; i < dim; i += LANES) {
            const __m512 v = widen(x + i), t = _mm512_loadu_ps(table + i);
            const __m512 cosine = _mm512_moveldup_ps(t), sine = _mm512_movehdup_ps(t);
            const __m512 swapped = _mm512_permute_ps(v, 0xb1);
            /* even: a cos - b sin; odd: b cos + a sin */
            narrow(x + i, _mm512_fmaddsub_ps(v, cosine, _mm512_mul_ps(swapped, sine)));
        }
}

/* Turn the pairs (2j, 2j + 1) of each head (rows, heads, dim) in place; dim is a multiple of 16.
 * table: (cos, sin) for each pair of a row. */
void llama_bf16_rotate(uint16_t *x, const float *table, long rows, long heads, long dim, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (rows > FEW)
    for (long r = 0; r < rows; r++) rotate(x + r * heads * dim, table + r * dim, heads, dim);
}

/* e^x for x <= 0: 2^n times a polynomial on [-ln2 / 2, ln2 / 2], exact to about 2 units in the last place. */
TARGET INLINE __m512 exponential(__m512 x) {
    const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 0);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
    __m512 p = _mm512_set1_ps(1.0f / 720);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 120));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 24));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 6));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.5f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1));
    return _mm512_scalef_ps(p, n);
}

/* One query head over `length` positions. score holds at least `length` rounded up to 16. dim: of 32. */
TARGET static void head(const uint16_t *q, const uint16_t *keys, const uint16_t *values, uint16_t *y, float *score,
                        long length, long dim, float scale) {
    float top = -INFINITY;
    for (long s = 0; s < length; s++) {
        __m512 sum = _mm512_setzero_ps();
        for (long i = 0; i < dim; i += 2 * LANES)
            sum = _mm512_dpbf16_ps(sum, (__m512bh)_mm512_loadu_epi16(q + i),
                                   (__m512bh)_mm512_loadu_epi16(keys + s * dim + i));
        score[s] = _mm512_reduce_add_ps(sum) * scale;
        top = score[s] > top ? score[s] : top;
    }
    __m512 total = _mm512_setzero_ps();
    for (long s = 0; s < length; s += LANES) {
        const __mmask16 mask = length - s >= LANES ? 0xffff : (1u << (length - s)) - 1;
        const __m512 difference = _mm512_sub_ps(_mm512_maskz_loadu_ps(mask, score + s), _mm512_set1_ps(top));
        const __m512 weight = _mm512_maskz_mov_ps(mask, exponential(difference));
        total = _mm512_add_ps(total, weight);
        _mm512_mask_storeu_ps(score + s, mask, weight);
    }
    const __m512 share = _mm512_set1_ps(1 / _mm512_reduce_add_ps(total));
    for (long i = 0; i < dim; i += 2 * LANES) {
        __m512 low = _mm512_setzero_ps(), high = low;
        for (long s = 0; s < length; s++) {
            const __m512 weight = _mm512_set1_ps(score[s]);
            low = _mm512_fmadd_ps(weight, widen(values + s * dim + i), low);
            high = _mm512_fmadd_ps(weight, widen(values + s * dim + i + LANES), high);
        }
        narrow(y + i, _mm512_mul_ps(low, share));
        narrow(y + i + LANES, _mm512_mul_ps(high, share));
    }
}

/* One new token: store its key and value (kv_heads, dim) at `position` of keys and values
 * (kv_heads, capacity, dim), then let its query (heads, dim) see positions 0 to `position` -> y.
 * score: heads x room floats of work space. */
TARGET void llama_bf16_decode(const uint16_t *q, const uint16_t *key, const uint16_t *value, uint16_t *keys,
                              uint16_t *values, uint16_t *y, float *score, long heads, long kv_heads, long dim,
                              long capacity, long position, long room, float scale, int threads) {
    for (long h = 0; h < kv_heads; h++) {
        memcpy(keys + (h * capacity + position) * dim, key + h * dim, dim * sizeof(*key));
        memcpy(values + (h * capacity + position) * dim, value + h * dim, dim * sizeof(*value));
    }
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long h = 0; h < heads; h++) {
        const long at = h / (heads / kv_heads) * capacity * dim;
        head(q + h * dim, keys + at, values + at, y + h * dim, score + h * room, position + 1, dim, scale);
    }
}
