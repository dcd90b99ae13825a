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

/* w (out, in) -> packed (ceil(out / 16), in / 2, 16, 2); rows past `out` become zero. `in` is even. */
void llama_bf16_pack(const uint16_t *w, uint16_t *packed, long out, long in, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long first = 0; first < out; first += LANES) {
        uint16_t *to = packed + first * in;
        for (long k = 0; k < in; k += 2, to += 2 * LANES)
            for (long i = 0; i < LANES; i++)
                if (first + i < out)
                    memcpy(to + 2 * i, w + (first + i) * in + k, 4);
                else
                    memset(to + 2 * i, 0, 4);
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

/* ---- a few queries behind a long prefix: a chunk of a prompt, a draft ---- */

/* DEEP: the largest head. SEEN: positions of a block, whose scores stay in the first-level cache. */
enum { DEEP = 256, SEEN = 64, PAIRS = 8 };

/* sums (queries, dim) = sums * fading + weights x values, for PAIRS queries and 32 of dim at a time. */
TARGET INLINE void weigh(float *sums, const float *fading, const float *weights, const uint16_t *values, long length,
                         long dim) {
    __m512 low[PAIRS], high[PAIRS];
#pragma GCC unroll 8
    for (int j = 0; j < PAIRS; j++) {
        low[j] = _mm512_mul_ps(_mm512_loadu_ps(sums + j * dim), _mm512_set1_ps(fading[j]));
        high[j] = _mm512_mul_ps(_mm512_loadu_ps(sums + j * dim + LANES), _mm512_set1_ps(fading[j]));
    }
    for (long s = 0; s < length; s++) {
        const __m512 left = widen(values + s * dim), right = widen(values + s * dim + LANES);
#pragma GCC unroll 8
        for (int j = 0; j < PAIRS; j++) {
            const __m512 weight = _mm512_set1_ps(weights[s * LANES + j]);
            low[j] = _mm512_fmadd_ps(weight, left, low[j]);
            high[j] = _mm512_fmadd_ps(weight, right, high[j]);
        }
    }
#pragma GCC unroll 8
    for (int j = 0; j < PAIRS; j++) {
        _mm512_storeu_ps(sums + j * dim, low[j]);
        _mm512_storeu_ps(sums + j * dim + LANES, high[j]);
    }
}

/* Up to 16 queries of one key head, each in a lane: nothing is summed across lanes, and keys and values pass
 * once for all of them. Query r is head r % group of token r / group, and sees positions below ends[r]. The
 * softmax runs along with the blocks (Milakov and Gimelshein 2018). */
TARGET static void queries(const uint16_t *const *q, const uint16_t *keys, const uint16_t *values, uint16_t *const *y,
                           const int32_t *ends, long count, long dim, float scale) {
    int32_t packed[DEEP / 2 * LANES];
    float sums[LANES * DEEP], weights[SEEN * LANES], fading[LANES], totals[LANES];
    memset(packed, 0, sizeof(packed));
    memset(sums, 0, sizeof(sums));
    for (long lane = 0; lane < count; lane++)
        for (long i = 0; i < dim / 2; i++) memcpy(packed + i * LANES + lane, q[lane] + 2 * i, sizeof(*packed));
    const __m512 nothing = _mm512_set1_ps(-1e30f), lowest = _mm512_set1_ps(-100);
    const __m512i limits = _mm512_loadu_si512(ends);
    const long last = ends[count - 1];
    __m512 top = nothing, total = _mm512_setzero_ps();
    for (long block = 0; block < last; block += SEEN) {
        const long length = last - block < SEEN ? last - block : SEEN;
        __m512 best = top;
        for (long s = 0; s < length; s += 4) {
            __m512 sum[4];
            const uint16_t *key[4];
            for (int j = 0; j < 4; j++) {
                sum[j] = _mm512_setzero_ps();
                key[j] = keys + (block + (s + j < length ? s + j : length - 1)) * dim;
            }
            for (long i = 0; i < dim / 2; i++) {
                const __m512bh query = (__m512bh)_mm512_loadu_si512(packed + i * LANES);
#pragma GCC unroll 4
                for (int j = 0; j < 4; j++) {
                    int32_t pair;
                    memcpy(&pair, key[j] + 2 * i, sizeof(pair));
                    sum[j] = _mm512_dpbf16_ps(sum[j], query, (__m512bh)_mm512_set1_epi32(pair));
                }
            }
            for (int j = 0; j < 4; j++) {
                const __mmask16 seen = _mm512_cmpgt_epi32_mask(limits, _mm512_set1_epi32((int)(block + s + j)));
                const __m512 score = _mm512_mul_ps(sum[j], _mm512_set1_ps(scale));
                sum[j] = _mm512_mask_mov_ps(nothing, seen, score);
                best = _mm512_max_ps(best, sum[j]);
                _mm512_storeu_ps(weights + (s + j) * LANES, sum[j]);
            }
        }
        const __m512 fade = exponential(_mm512_max_ps(_mm512_sub_ps(top, best), lowest));
        _mm512_storeu_ps(fading, fade);
        total = _mm512_mul_ps(total, fade);
        top = best;
        for (long s = 0; s < length; s++) {
            const __m512 score = _mm512_loadu_ps(weights + s * LANES);
            const __mmask16 seen = _mm512_cmpgt_epi32_mask(limits, _mm512_set1_epi32((int)(block + s)));
            const __m512 weight =
                _mm512_maskz_mov_ps(seen, exponential(_mm512_max_ps(_mm512_sub_ps(score, best), lowest)));
            total = _mm512_add_ps(total, weight);
            _mm512_storeu_ps(weights + s * LANES, weight);
        }
        for (long lane = 0; lane < count; lane += PAIRS)
            for (long i = 0; i < dim; i += 2 * LANES)
                weigh(sums + lane * dim + i, fading + lane, weights + lane, values + block * dim + i, length, dim);
    }
    _mm512_storeu_ps(totals, total);
    for (long lane = 0; lane < count; lane++)
        for (long i = 0; i < dim; i += LANES)
            narrow(y[lane] + i,
                   _mm512_mul_ps(_mm512_loadu_ps(sums + lane * dim + i), _mm512_set1_ps(1 / totals[lane])));
}

/* The queries q (rows, heads, dim) of the tokens at positions start.. of keys and values (kv_heads, capacity,
 * dim), in which they are stored already, see what is up to their own position -> y (rows, heads, dim).
 * dim: of 32, up to 256. */
TARGET void llama_bf16_attend(const uint16_t *q, const uint16_t *keys, const uint16_t *values, uint16_t *y, long rows,
                              long heads, long kv_heads, long dim, long capacity, long start, float scale,
                              int threads) {
    const long group = heads / kv_heads, all = rows * group, tiles = (all + LANES - 1) / LANES;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long item = 0; item < kv_heads * tiles; item++) {
        const long h = item / tiles, first = item % tiles * LANES;
        const long count = all - first < LANES ? all - first : LANES;
        const uint16_t *from[LANES];
        uint16_t *to[LANES];
        int32_t ends[LANES] = {0};
        for (long lane = 0; lane < count; lane++) {
            const long row = (first + lane) / group, head = h * group + (first + lane) % group;
            from[lane] = q + (row * heads + head) * dim;
            to[lane] = y + (row * heads + head) * dim;
            ends[lane] = (int32_t)(start + row + 1);
        }
        queries(from, keys + h * capacity * dim, values + h * capacity * dim, to, ends, count, dim, scale);
    }
}
