/* Attention over cached keys and values in bfloat16, on CPUs with AVX512-BF16: one query, or up to 16 at
 * once, one in each lane of a vector. */

#include "attention.h"

#include <math.h>
#include <omp.h>
#include <string.h>

#include "vectors.h"

/* One query head over `length` positions. score has room for `length` rounded up to a multiple of 16; dim is
 * a multiple of 32. */
TARGET void llama_attend_query(const uint16_t *q, const uint16_t *keys, const uint16_t *values, uint16_t *y,
                               float *score, long length, long dim, float scale) {
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

/* One new token: store its key and value (kv_heads, dim) at `position` of keys and values (kv_heads,
 * capacity, dim), then attend from its query (heads, dim) to positions 0 to `position` -> y (heads, dim).
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
        llama_attend_query(q + h * dim, keys + at, values + at, y + h * dim, score + h * room, position + 1, dim,
                           scale);
    }
}

/* ---- a few queries behind a long prefix: a chunk of a prompt, a draft ---- */

/* BLOCK: positions of a block, which stays in the first-level cache while all queries of a tile pass over it.
 * KEYS: independent sums, so that no instruction waits for the one before. QUERIES: queries that `accumulate`
 * takes at once. MAX_SETS: sets of 16 lanes in the largest tile. */
enum { BLOCK = 64, KEYS = 8, QUERIES = 8, MAX_SETS = 4 };

/* Up to 16 queries of one key head, each in a lane: nothing is summed across lanes, and keys and values are
 * read once for all of them. Query i sees positions below limits[i]. The softmax is computed online, block by
 * block (Milakov and Gimelshein 2018). */
typedef struct {
    int32_t packed[DEEP / 2 * LANES]; /* pairs of the queries */
    float sums[LANES * DEEP];         /* of values, by weight; see `accumulate` for their order */
    __m512 top, total;                /* greatest score and sum of weights so far */
    __m512i limits;
    long count, last; /* queries, and the greatest limit */
} lanes_t;

/* sums (queries, dim) = sums * fading + weights x values, for QUERIES queries and 32 of dim at a time. Two
 * positions at a time: weights[s / 2] has a pair for each lane. Of 32 sums in a row, the first 16 belong to
 * 0-3, 8-11, 16-19 and 24-27 of dim, the order in which unpacking leaves them; `store_sums` undoes it. */
TARGET INLINE void accumulate(float *sums, const float *fading, const int32_t *weights, const uint16_t *values,
                              long length, long dim) {
    __m512 low[QUERIES], high[QUERIES];
#pragma GCC unroll 8
    for (int j = 0; j < QUERIES; j++) {
        low[j] = _mm512_mul_ps(_mm512_loadu_ps(sums + j * dim), _mm512_set1_ps(fading[j]));
        high[j] = _mm512_mul_ps(_mm512_loadu_ps(sums + j * dim + LANES), _mm512_set1_ps(fading[j]));
    }
    for (long s = 0; s < length; s += 2) {
        const __m512i one = _mm512_loadu_si512(values + s * dim);
        /* Memory behind the last position may hold a NaN, and 0 x NaN is NaN: read the last one twice. */
        const __m512i two = s + 1 < length ? _mm512_loadu_si512(values + (s + 1) * dim) : one;
        const __m512bh left = (__m512bh)_mm512_unpacklo_epi16(one, two);
        const __m512bh right = (__m512bh)_mm512_unpackhi_epi16(one, two);
#pragma GCC unroll 8
        for (int j = 0; j < QUERIES; j++) {
            const __m512bh weight = (__m512bh)_mm512_set1_epi32(weights[s / 2 * LANES + j]);
            low[j] = _mm512_dpbf16_ps(low[j], weight, left);
            high[j] = _mm512_dpbf16_ps(high[j], weight, right);
        }
    }
#pragma GCC unroll 8
    for (int j = 0; j < QUERIES; j++) {
        _mm512_storeu_ps(sums + j * dim, low[j]);
        _mm512_storeu_ps(sums + j * dim + LANES, high[j]);
    }
}

/* 32 sums of `accumulate` times `share` -> y. */
TARGET INLINE void store_sums(const float *sums, __m512 share, uint16_t *y) {
    const __m512i first = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
    const __m512i second = _mm512_add_epi32(first, _mm512_set1_epi32(8));
    const __m512 low = _mm512_loadu_ps(sums), high = _mm512_loadu_ps(sums + LANES);
    narrow(y, _mm512_mul_ps(_mm512_permutex2var_ps(low, first, high), share));
    narrow(y + LANES, _mm512_mul_ps(_mm512_permutex2var_ps(low, second, high), share));
}

/* Positions `block` to block + length of keys and values, for one set of lanes. */
TARGET static void attend_block(lanes_t *l, const uint16_t *keys, const uint16_t *values, long block, long length,
                                long dim, float scale) {
    int32_t weights[BLOCK / 2 * LANES];
    float scores[BLOCK * LANES], fading[LANES];
    const __m512 nothing = _mm512_set1_ps(-1e30f), lowest = _mm512_set1_ps(-100);
    __m512 best = l->top;
    for (long s = 0; s < length; s += KEYS) {
        __m512 sum[KEYS];
        const uint16_t *key[KEYS];
        for (int j = 0; j < KEYS; j++) {
            sum[j] = _mm512_setzero_ps();
            key[j] = keys + (block + (s + j < length ? s + j : length - 1)) * dim;
        }
        for (long i = 0; i < dim / 2; i++) {
            const __m512bh query = (__m512bh)_mm512_loadu_si512(l->packed + i * LANES);
#pragma GCC unroll 8
            for (int j = 0; j < KEYS; j++) {
                int32_t pair;
                memcpy(&pair, key[j] + 2 * i, sizeof(pair));
                sum[j] = _mm512_dpbf16_ps(sum[j], query, (__m512bh)_mm512_set1_epi32(pair));
            }
        }
        for (int j = 0; j < KEYS; j++) {
            const __mmask16 seen = _mm512_cmpgt_epi32_mask(l->limits, _mm512_set1_epi32((int)(block + s + j)));
            const __m512 score = _mm512_mul_ps(sum[j], _mm512_set1_ps(scale));
            sum[j] = _mm512_mask_mov_ps(nothing, seen, score);
            best = _mm512_max_ps(best, sum[j]);
            _mm512_storeu_ps(scores + (s + j) * LANES, sum[j]);
        }
    }
    /* The order of the operands keeps a NaN. */
    const __m512 fade = exponential(_mm512_max_ps(lowest, _mm512_sub_ps(l->top, best)));
    __m512 total = _mm512_mul_ps(l->total, fade);
    for (long s = 0; s < length; s += 2) {
        __m512i pair[2];
#pragma GCC unroll 2
        for (int j = 0; j < 2; j++) {
            /* Where the number is odd, the position behind the last is below no limit and gets no weight. */
            const __mmask16 seen = _mm512_cmpgt_epi32_mask(l->limits, _mm512_set1_epi32((int)(block + s + j)));
            const __m512 score = _mm512_maskz_loadu_ps(seen, scores + (s + j) * LANES);
            const __m512 weight = exponential(_mm512_max_ps(lowest, _mm512_sub_ps(score, best)));
            pair[j] = _mm512_maskz_cvtepu16_epi32(seen, (__m256i)_mm512_cvtneps_pbh(weight));
            /* The values are multiplied by rounded weights: sum these, so that the shares add up to 1. */
            total = _mm512_add_ps(total, _mm512_castsi512_ps(_mm512_slli_epi32(pair[j], 16)));
        }
        _mm512_storeu_si512(weights + s / 2 * LANES, _mm512_or_si512(pair[0], _mm512_slli_epi32(pair[1], 16)));
    }
    l->top = best, l->total = total;
    _mm512_storeu_ps(fading, fade);
    for (long lane = 0; lane < l->count; lane += QUERIES)
        for (long i = 0; i < dim; i += 2 * LANES)
            accumulate(l->sums + lane * dim + i, fading + lane, weights + lane, values + block * dim + i, length,
                       dim);
}

/* Queries of a tile, of a key head's `all`: many, so that keys and values are read seldom, but few enough
 * that all threads get work. */
long llama_tile_size(long all, long kv_heads, long threads) {
    const long sets = (all + LANES - 1) / LANES, fair = sets * kv_heads / (4 * threads);
    return LANES * (fair < 1 ? 1 : fair > MAX_SETS ? MAX_SETS : fair);
}

/* Attention of queries `first` to first + count of a key head, at most 64. Query i is head i % group of token
 * i / group. Tokens are `row` elements apart; the first of them is at position `start`. dim is a multiple of
 * 32, at most DEEP. */
TARGET void llama_attend_tile(const uint16_t *q, const uint16_t *keys, const uint16_t *values, uint16_t *y, long first,
                              long count, long group, long row, long dim, long start, float scale) {
    lanes_t sets[MAX_SETS];
    const long used = (count + LANES - 1) / LANES;
    for (long set = 0; set < used; set++) {
        lanes_t *l = sets + set;
        int32_t limits[LANES] = {0};
        memset(l->packed, 0, dim / 2 * LANES * sizeof(*l->packed));
        memset(l->sums, 0, dim * LANES * sizeof(*l->sums));
        l->count = count - set * LANES < LANES ? count - set * LANES : LANES;
        for (long lane = 0; lane < l->count; lane++) {
            const long query = first + set * LANES + lane, token = query / group;
            const uint16_t *from = q + token * row + query % group * dim;
            limits[lane] = (int32_t)(start + token + 1);
            for (long i = 0; i < dim / 2; i++) memcpy(l->packed + i * LANES + lane, from + 2 * i, sizeof(*l->packed));
        }
        l->last = limits[l->count - 1];
        l->limits = _mm512_loadu_si512(limits);
        l->top = _mm512_set1_ps(-1e30f), l->total = _mm512_setzero_ps();
    }
    const long last = start + (first + count - 1) / group + 1;
    for (long block = 0; block < last; block += BLOCK)
        for (long set = 0; set < used; set++) {
            const long left = sets[set].last - block;
            if (left > 0) attend_block(sets + set, keys, values, block, left < BLOCK ? left : BLOCK, dim, scale);
        }
    for (long set = 0; set < used; set++) {
        float totals[LANES];
        _mm512_storeu_ps(totals, sets[set].total);
        for (long lane = 0; lane < sets[set].count; lane++) {
            const long query = first + set * LANES + lane;
            for (long i = 0; i < dim; i += 2 * LANES)
                store_sums(sets[set].sums + lane * dim + i, _mm512_set1_ps(1 / totals[lane]),
                        y + query / group * row + query % group * dim + i);
        }
    }
}

/* Attend from q (rows, heads, dim), the tokens at positions start.., to all positions up to their own in keys
 * and values (kv_heads, capacity, dim), which hold these tokens already -> y (rows, heads, dim). dim is a
 * multiple of 32, at most 256. */
TARGET void llama_bf16_attend(const uint16_t *q, const uint16_t *keys, const uint16_t *values, uint16_t *y, long rows,
                              long heads, long kv_heads, long dim, long capacity, long start, float scale,
                              int threads) {
    const long group = heads / kv_heads, all = rows * group, tile = llama_tile_size(all, kv_heads, threads);
    const long tiles = (all + tile - 1) / tile;
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
    for (long item = 0; item < kv_heads * tiles; item++) {
        const long h = item / tiles, first = item % tiles * tile, at = h * group * dim;
        llama_attend_tile(q + at, keys + h * capacity * dim, values + h * capacity * dim, y + at, first,
                   all - first < tile ? all - first : tile, group, heads * dim, dim, start, scale);
    }
}
