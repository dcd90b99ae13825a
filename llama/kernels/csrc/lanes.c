/* Attention of a few queries behind a long prefix: a chunk of a prompt, a draft, the heads of a group. Each is in a
 * lane, so nothing is summed across lanes, and keys and values are read once for all of them. */

#include "attention.h"

#include <float.h>
#include <math.h>

#include "cached.h"
#include "matrix.h"

/* BLOCK: positions of a block, which stays in the first-level cache while all queries of a tile pass over it.
 * KEYS: independent sums, so that no instruction waits for the one before. QUERIES: queries whose values are
 * weighed at once. */
enum { BLOCK = 64, KEYS = VECTORS == 1 ? 8 : 6, QUERIES = VECTORS == 1 ? 8 : 4 };

/* Up to 16 queries of one key head. Query i sees positions below limits[i]. The softmax is computed online, block by
 * block (Milakov and Gimelshein 2018).
 *
 * Queries and keys, weights and values are multiplied as floats, or as pairs of bfloat16 where there are DOTS. */
typedef struct {
    uint32_t query[DEEP * GROUP];    /* of each float or pair of dim, 16 lanes */
    uint32_t weights[BLOCK * GROUP]; /* of each position or pair of positions, 16 lanes */
    float sums[GROUP * DEEP];        /* of values, by weight; see `accumulate` for their order */
    float top[GROUP], total[GROUP];  /* greatest score and sum of weights so far */
    float fading[GROUP];             /* what the last block left of the weights before it */
    int32_t limits[GROUP];
    long count, last; /* queries, and the greatest limit */
} lanes_t;

INLINE vf multiplied(int pairs, vf sum, vu a, vu b) {
    return pairs ? dot_pairs(sum, a, b) : fma_of((vf)a, (vf)b, sum);
}

/* Scores of 16 lanes x `length` positions, minus infinity where a query does not see one. keys: floats or pairs,
 * `row` bytes apart. */
INLINE void score_block(const lanes_t *l, int pairs, const char *keys, long row, long block, long length, long dim,
                        float scale, float *scores) {
    for (long s = 0; s < length; s += KEYS) {
        vf sum[KEYS][VECTORS];
        const char *key[KEYS];
        UNROLL for (int j = 0; j < KEYS; j++) {
            key[j] = keys + (s + j < length ? s + j : length - 1) * row;
            UNROLL for (int v = 0; v < VECTORS; v++) sum[j][v] = (vf){};
        }
        for (long i = 0; i < (pairs ? dim / 2 : dim); i++) {
            vu query[VECTORS];
            UNROLL for (int v = 0; v < VECTORS; v++) query[v] = load_bits(l->query + i * GROUP + v * LANES);
            UNROLL for (int j = 0; j < KEYS; j++) {
                const vu each = broadcast_bits(key[j] + 4 * i);
                UNROLL for (int v = 0; v < VECTORS; v++) sum[j][v] = multiplied(pairs, sum[j][v], query[v], each);
            }
        }
        UNROLL for (int j = 0; j < KEYS; j++)
            UNROLL for (int v = 0; v < VECTORS; v++) {
                const vi limit = (vi)load(l->limits + v * LANES);
                const vf score = choose(limit > (int32_t)(block + s + j), sum[j][v] * scale, broadcast(-INFINITY));
                store(scores + (s + j) * GROUP + v * LANES, score);
            }
    }
}

/* Scores -> weights relative to the greatest score so far, and what is left of the weights before. */
INLINE void weigh_block(lanes_t *l, int pairs, const float *scores, long length) {
    UNROLL for (int v = 0; v < VECTORS; v++) {
        const float *score = scores + v * LANES;
        const vf before = load(l->top + v * LANES);
        vf best = before;
        for (long s = 0; s < length; s++) best = larger(best, load(score + s * GROUP));
        const vf fade = exponential(before - best);
        vf total = load(l->total + v * LANES) * fade;
        for (long s = 0; s < length; s += pairs ? 2 : 1) {
            uint32_t *to = l->weights + (pairs ? s / 2 : s) * GROUP + v * LANES;
            vf weight = exponential(load(score + s * GROUP) - best);
            if (pairs) {
                /* The values are multiplied by rounded weights: sum these, so that the shares add up to 1. What is
                 * behind the last position is not seen. */
                weight = rounded_bf16(weight);
                const vf next = rounded_bf16(exponential(load(score + (s + 1) * GROUP) - best));
                store(to, (vf)((vu)weight >> 16 | (vu)next));
                total += weight;
                weight = next;
            } else
                store(to, weight);
            total += weight;
        }
        store(l->top + v * LANES, best);
        store(l->total + v * LANES, total);
        store(l->fading + v * LANES, fade);
    }
}

/* sums (queries, dim) = sums * fading + weights x values, for QUERIES queries and two vectors of sums. Of pairs, two
 * positions at a time: the first vector is of the even elements of a row, the second of the odd ones. */
INLINE void accumulate(int pairs, float *sums, const float *fading, const uint32_t *weights, const char *values,
                       long row, long length, long dim) {
    vf low[QUERIES], high[QUERIES];
    UNROLL for (int j = 0; j < QUERIES; j++) {
        low[j] = load(sums + j * dim) * fading[j];
        high[j] = load(sums + j * dim + LANES) * fading[j];
    }
    for (long s = 0; s < length; s += pairs ? 2 : 1) {
        vu first = load_bits(values + s * row), second;
        if (pairs) {
            /* Memory behind the last position may hold a NaN, and 0 x NaN is NaN: read the last one twice. */
            const vu next = load_bits(values + (s + 1 < length ? s + 1 : s) * row);
            second = first >> 16 | (next & 0xffff0000u);
            first = (first & 0xffff) | next << 16;
        } else
            second = load_bits(values + s * row + 4 * LANES);
        UNROLL for (int j = 0; j < QUERIES; j++) {
            const vu weight = broadcast_bits(weights + (pairs ? s / 2 : s) * GROUP + j);
            low[j] = multiplied(pairs, low[j], weight, first);
            high[j] = multiplied(pairs, high[j], weight, second);
        }
    }
    UNROLL for (int j = 0; j < QUERIES; j++) {
        store(sums + j * dim, low[j]);
        store(sums + j * dim + LANES, high[j]);
    }
}

/* Positions block to block + length for one set of lanes: keys, values, and the distance of their rows, in the form
 * that is multiplied. */
INLINE void score_set(lanes_t *l, int pairs, const char *keys, long row, long block, long length, long dim,
                      float scale) {
    float scores[(BLOCK + KEYS) * GROUP];
    score_block(l, pairs, keys, row, block, length, dim, scale, scores);
    weigh_block(l, pairs, scores, length);
}

INLINE void accumulate_set(lanes_t *l, int pairs, const char *values, long row, long length, long dim) {
    for (long lane = 0; lane < l->count; lane += QUERIES)
        for (long i = 0; i < dim; i += 2 * LANES)
            accumulate(pairs, l->sums + lane * dim + i, l->fading + lane, l->weights + lane,
                       values + i * (pairs ? 2 : 4), row, length, dim);
}

/* A query's floats or pairs -> its lane. */
INLINE void fill_lane(int dtype, int pairs, lanes_t *l, long lane, const void *query, long dim) {
    if (pairs) {
        for (long i = 0; i < dim / 2; i++) memcpy(l->query + i * GROUP + lane, (const char *)query + 4 * i, 4);
        return;
    }
    for (long i = 0; i < dim; i += LANES) {
        const vu some = (vu)get(dtype, query, i);
        for (int j = 0; j < LANES; j++) l->query[(i + j) * GROUP + lane] = some[j];
    }
}

/* Queries `first` to first + count of a key head into lanes. Query i is head i % group of token i / group. */
INLINE void fill_lanes(int dtype, int pairs, lanes_t *l, const heads_t *h, const part_t *part, const void *q, long first,
                       long count) {
    const long group = h->heads / h->kv_heads;
    memset(l->query, 0, h->dim * GROUP * sizeof(*l->query));
    memset(l->sums, 0, h->dim * GROUP * sizeof(*l->sums));
    memset(l->limits, 0, sizeof(l->limits));
    for (long lane = 0; lane < count; lane++) {
        const long token = (first + lane) / group;
        fill_lane(dtype, pairs, l, lane, at(q, (token * h->heads + (first + lane) % group) * h->dim, dtype), h->dim);
        l->limits[lane] = (int32_t)(part->start + token + 1);
    }
    for (int lane = 0; lane < GROUP; lane++) l->top[lane] = -FLT_MAX, l->total[lane] = 0;
    l->count = count, l->last = l->limits[count - 1];
}

/* The sums of a query over its total -> y. */
INLINE void store_sums(int dtype, int pairs, const float *sums, float share, void *y, long dim) {
    for (long i = 0; i < dim; i += 2 * LANES) {
        const vf low = load(sums + i) * share, high = load(sums + i + LANES) * share;
        if (pairs)
            store(at(y, i, BF16), (vf)(upper_bf16(low) >> 16 | upper_bf16(high)));
        else {
            put(dtype, y, i, low);
            put(dtype, y, i + LANES, high);
        }
    }
}

/* Rows -> floats. */
INLINE void widen(int cache, const char *rows, long length, long dim, float *to) {
    for (long i = 0; i < length * dim; i += 2 * GROUP) {
        const char *from = cached(rows, i, cache);
        UNROLL for (int v = 0; v < 2 * VECTORS; v++) store(to + i + v * LANES, get_cached(cache, from, v * LANES));
    }
}

/* Where `length` rows of a sequence from `first` on can be read as floats or pairs: in place, if they lie in one run;
 * else copied or widened into `to`. Below `last` there are more, which are fetched if they lie elsewhere. */
INLINE const char *readable(int cache, int pairs, const paged_t *p, long first, long length, long last, long dim,
                            float *to) {
    const int as_they_are = cache == F32 || pairs;
    if (first + length < last && run_from(p, first, first + length + 1) <= length)
        for (long s = 0; s < BLOCK; s++) fetch_row(p, first + BLOCK + s, last, dim, cache);
    for (long s = 0, run; s < length; s += run) {
        run = run_from(p, first + s, first + length);
        const char *rows = row_at(p, first + s, dim, cache);
        if (as_they_are && run == length) return rows;
        if (as_they_are)
            memcpy(cached(to, s * dim, cache), rows, run * dim * size_of(cache));
        else
            widen(cache, rows, run, dim, to + s * dim);
    }
    return (const char *)to;
}

/* Of `length` positions from `block` on, how many a set of lanes sees; not positive: none. */
INLINE long seen(const lanes_t *l, long block, long length) {
    return l->last - block < length ? l->last - block : length;
}

/* All positions up to `last` of one head's keys and values, for all sets. They are cut at the same positions whatever
 * the runs are, so that sums are the same. */
INLINE void pass(int cache, int pairs, lanes_t *sets, long used, const heads_t *h, const paged_t *keys,
                 const paged_t *values, long last) {
    const long row = h->dim * (pairs ? 2 : 4);
    float wide[BLOCK * DEEP];
    for (long block = 0; block < last; block += BLOCK) {
        const long length = last - block < BLOCK ? last - block : BLOCK;
        const char *k = readable(cache, pairs, keys, block, length, last, h->dim, wide);
        for (long set = 0; set < used; set++) {
            const long mine = seen(sets + set, block, length);
            if (mine > 0) score_set(sets + set, pairs, k, row, block, mine, h->dim, h->scale);
        }
        const char *v = readable(cache, pairs, values, block, length, last, h->dim, wide);
        for (long set = 0; set < used; set++) {
            const long mine = seen(sets + set, block, length);
            if (mine > 0) accumulate_set(sets + set, pairs, v, row, mine, h->dim);
        }
    }
}

INLINE void tile(int dtype, int cache, const heads_t *h, const part_t *part, long head, long first, long count) {
    const int pairs = pairs_of(dtype, cache);
    lanes_t sets[MAX_SETS];
    const long group = h->heads / h->kv_heads, used = (count + GROUP - 1) / GROUP;
    const long first_row = head * h->positions * h->dim, last = part->start + (first + count - 1) / group + 1;
    const paged_t keys = {cached(part->keys, first_row, cache), part->table, h->shift};
    const paged_t values = {cached(part->values, first_row, cache), part->table, h->shift};
    const void *q = at(part->q, head * group * h->dim, dtype);
    for (long set = 0; set < used; set++) {
        const long left = count - set * GROUP;
        fill_lanes(dtype, pairs, sets + set, h, part, q, first + set * GROUP, left < GROUP ? left : GROUP);
    }
    pass(cache, pairs, sets, used, h, &keys, &values, last);
    for (long i = 0; i < count; i++) {
        const lanes_t *l = sets + i / GROUP;
        const long query = first + i;
        void *y = at(part->y, (query / group * h->heads + head * group + query % group) * h->dim, dtype);
        store_sums(dtype, pairs, l->sums + i % GROUP * h->dim, 1 / l->total[i % GROUP], y, h->dim);
    }
}

/* Queries `first` to first + count of a key head, at most MAX_SETS x 16. dim is a multiple of 32, at most DEEP. */
void attend_tile(const heads_t *h, const part_t *part, long head, long first, long count) {
    FOR_CACHE(h->dtype, h->cache, tile, h, part, head, first, count);
}
