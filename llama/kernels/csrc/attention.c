/* Attention over cached keys and values: one query, or up to 16 at once, one in each lane. A result depends on
 * the sequence alone, on no other one and no number of threads. */

#include "attention.h"

#include <math.h>

#include "matrix.h"

/* DEEP: the largest head of a tile. LANES_PAY: from so many queries on, one pass with one query in each lane takes
 * less time than one pass for each query. WIDE: values that one query weighs at a time. */
enum { DEEP = 256, LANES_PAY = 3, WIDE = 64 };

/* ---- one query ---- */

/* The product of a query, as floats, or with PAIRS as it is, and a key. */
INLINE float product(int dtype, const void *query, const void *key, long dim) {
    vf sum[VECTORS] = {0};
    if (DOTS && dtype == BF16)
        for (long i = 0; i < dim; i += 2 * GROUP)
            UNROLL for (int v = 0; v < VECTORS; v++) {
                const long pair = i + v * 2 * LANES;
                sum[v] = dot_pairs(sum[v], load_bits(at(query, pair, BF16)), load_bits(at(key, pair, BF16)));
            }
    else
        for (long i = 0; i < dim; i += GROUP)
            UNROLL for (int v = 0; v < VECTORS; v++)
                sum[v] = fma_of(load((const float *)query + i + v * LANES), get(dtype, key, i + v * LANES), sum[v]);
    return total_of(sum);
}

/* score[s] becomes e^(score[s] - top) -> their sum. */
static float softmax(float *score, long length, float top) {
    vf total[VECTORS] = {0};
    for (long s = 0; s < length; s += GROUP)
        UNROLL for (int v = 0; v < VECTORS; v++) {
            const long first = s + v * LANES, left = length - first;
            if (left <= 0) continue;
            const vf weight = exponential(get_some(F32, score, first, left, -INFINITY) - top);
            total[v] += weight;
            put_some(F32, score, first, weight, left);
        }
    return total_of(total);
}

/* `groups` x 16 of y (dim): the values, weighed by the scores, times share. */
INLINE void weigh_values(int dtype, const float *score, const void *values, void *y, long length, long dim, float share,
                         int groups) {
    vf sum[WIDE / LANES];
    UNROLL for (int v = 0; v < groups * VECTORS; v++) sum[v] = (vf){};
    for (long s = 0; s < length; s++) {
        const vf weight = broadcast(score[s]);
        UNROLL for (int v = 0; v < groups * VECTORS; v++)
            sum[v] = fma_of(weight, get(dtype, values, s * dim + v * LANES), sum[v]);
    }
    UNROLL for (int v = 0; v < groups * VECTORS; v++) put(dtype, y, v * LANES, sum[v] * share);
}

INLINE void attend_query(int dtype, const void *q, const void *keys, const void *values, void *y, float *score,
                         long length, long dim, float scale) {
    float wide[dim], top = -INFINITY;
    const void *query = q;
    if (!(DOTS && dtype == BF16)) {
        for (long i = 0; i < dim; i += LANES) store(wide + i, get(dtype, q, i));
        query = wide;
    }
    for (long s = 0; s < length; s++) {
        score[s] = product(dtype, query, at(keys, s * dim, dtype), dim) * scale;
        top = score[s] > top ? score[s] : top;
    }
    const float share = 1 / softmax(score, length, top);
    long i = 0;
    for (; i + WIDE <= dim; i += WIDE)
        weigh_values(dtype, score, at(values, i, dtype), at(y, i, dtype), length, dim, share, WIDE / GROUP);
    for (; i < dim; i += 2 * GROUP)
        weigh_values(dtype, score, at(values, i, dtype), at(y, i, dtype), length, dim, share, 2);
}

/* ---- a few queries behind a long prefix: a chunk of a prompt, a draft, the heads of a group ---- */

/* BLOCK: positions of a block, which stays in the first-level cache while all queries of a tile pass over it.
 * KEYS: independent sums, so that no instruction waits for the one before. QUERIES: queries whose values are
 * weighed at once. MAX_SETS: sets of 16 lanes in the largest tile. */
enum { BLOCK = 64, KEYS = VECTORS == 1 ? 8 : 6, QUERIES = VECTORS == 1 ? 8 : 4, MAX_SETS = 4 };

/* Up to 16 queries of one key head, each in a lane: nothing is summed across lanes, and keys and values are read
 * once for all of them. Query i sees positions below limits[i]. The softmax is computed online, block by block
 * (Milakov and Gimelshein 2018).
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

/* Scores of 16 lanes x `length` positions. keys: floats or pairs, `row` bytes apart. */
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
                const vf score = choose(limit > (int32_t)(block + s + j), sum[j][v] * scale, broadcast(-1e30f));
                store(scores + (s + j) * GROUP + v * LANES, score);
            }
    }
}

/* Scores -> weights relative to the greatest score so far, and what is left of the weights before. */
INLINE void weigh_block(lanes_t *l, int pairs, const float *scores, long block, long length) {
    UNROLL for (int v = 0; v < VECTORS; v++) {
        const vf before = load(l->top + v * LANES);
        const vi limit = (vi)load(l->limits + v * LANES);
        vf best = before;
        for (long s = 0; s < length; s++) best = larger(best, load(scores + s * GROUP + v * LANES));
        const vf fade = exponential(before - best);
        vf total = load(l->total + v * LANES) * fade;
        for (long s = 0; s < length; s++) {
            const vf difference = load(scores + s * GROUP + v * LANES) - best;
            vf weight = choose(limit > (int32_t)(block + s), exponential(difference), (vf){});
            uint32_t *to = l->weights + (pairs ? s / 2 : s) * GROUP + v * LANES;
            if (pairs) {
                /* The values are multiplied by rounded weights: sum these, so that the shares add up to 1. */
                const vu bits = upper_bf16(weight);
                weight = (vf)bits;
                store(to, (vf)(s % 2 ? bits | load_bits(to) : bits >> 16));
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
INLINE void score_set(lanes_t *l, int pairs, const char *keys, long row, long block, long length, long dim, float scale) {
    float scores[(BLOCK + KEYS) * GROUP];
    score_block(l, pairs, keys, row, block, length, dim, scale, scores);
    weigh_block(l, pairs, scores, block, length);
}

INLINE void accumulate_set(lanes_t *l, int pairs, const char *values, long row, long length, long dim) {
    for (long lane = 0; lane < l->count; lane += QUERIES)
        for (long i = 0; i < dim; i += 2 * LANES)
            accumulate(pairs, l->sums + lane * dim + i, l->fading + lane, l->weights + lane,
                       values + i * (pairs ? 2 : 4), row, length, dim);
}

/* Queries `first` to first + count of a key head into lanes. Query i is head i % group of token i / group. */
INLINE void fill_lanes(int dtype, lanes_t *l, const heads_t *h, const run_t *run, const void *q, long first, long count) {
    const int pairs = DOTS && dtype == BF16;
    const long group = h->heads / h->kv_heads, units = pairs ? h->dim / 2 : h->dim;
    memset(l->query, 0, units * GROUP * sizeof(*l->query));
    memset(l->sums, 0, h->dim * GROUP * sizeof(*l->sums));
    memset(l->limits, 0, sizeof(l->limits));
    for (long lane = 0; lane < count; lane++) {
        const long token = (first + lane) / group;
        const void *from = at(q, (token * h->heads + (first + lane) % group) * h->dim, dtype);
        l->limits[lane] = (int32_t)(run->start + token + 1);
        for (long i = 0; i < h->dim; i += LANES) {
            const vf some = pairs ? (vf){} : get(dtype, from, i);
            for (int j = 0; j < LANES && !pairs; j++) memcpy(l->query + (i + j) * GROUP + lane, (const float *)&some + j, 4);
        }
        for (long i = 0; i < units && pairs; i++) memcpy(l->query + i * GROUP + lane, (const char *)from + 4 * i, 4);
    }
    for (int lane = 0; lane < GROUP; lane++) l->top[lane] = -1e30f, l->total[lane] = 0;
    l->count = count, l->last = l->limits[count - 1];
}

/* The sums of a query over its total -> y. */
INLINE void store_sums(int dtype, const float *sums, float share, void *y, long dim) {
    for (long i = 0; i < dim; i += 2 * LANES) {
        const vf low = load(sums + i) * share, high = load(sums + i + LANES) * share;
        if (DOTS && dtype == BF16)
            store(at(y, i, BF16), (vf)(upper_bf16(low) >> 16 | upper_bf16(high)));
        else {
            put(dtype, y, i, low);
            put(dtype, y, i + LANES, high);
        }
    }
}

/* Where `length` rows of a cache can be read as floats or pairs: in place, or widened into `to`. */
INLINE const char *readable(int dtype, const void *rows, long length, long dim, float *to) {
    if (dtype == F32 || (DOTS && dtype == BF16)) return rows;
    for (long i = 0; i < length * dim; i += LANES) store(to + i, get(dtype, rows, i));
    return (const char *)to;
}

/* Queries `first` to first + count of a key head, at most MAX_SETS x 16. */
INLINE void attend_tile(int dtype, const heads_t *h, const run_t *run, long head, long first, long count) {
    lanes_t sets[MAX_SETS];
    float wide[BLOCK * DEEP];
    const int pairs = DOTS && dtype == BF16;
    const long group = h->heads / h->kv_heads, used = (count + GROUP - 1) / GROUP, cache = head * run->capacity * h->dim;
    const long row = h->dim * (pairs ? 2 : 4), last = run->start + (first + count - 1) / group + 1;
    const void *q = at(run->q, head * group * h->dim, dtype);
    for (long set = 0; set < used; set++) {
        const long left = count - set * GROUP;
        fill_lanes(dtype, sets + set, h, run, q, first + set * GROUP, left < GROUP ? left : GROUP);
    }
    for (long block = 0; block < last; block += BLOCK) {
        const long length = last - block < BLOCK ? last - block : BLOCK;
        const long from = cache + block * h->dim;
        const char *keys = readable(dtype, at(run->keys, from, dtype), length, h->dim, wide);
#define SEEN(set) (sets[set].last - block < length ? sets[set].last - block : length)
        for (long set = 0; set < used; set++)
            if (SEEN(set) > 0) score_set(sets + set, pairs, keys, row, block, SEEN(set), h->dim, h->scale);
        const char *values = readable(dtype, at(run->values, from, dtype), length, h->dim, wide);
        for (long set = 0; set < used; set++)
            if (SEEN(set) > 0) accumulate_set(sets + set, pairs, values, row, SEEN(set), h->dim);
#undef SEEN
    }
    for (long i = 0; i < count; i++) {
        const lanes_t *l = sets + i / GROUP;
        const long query = first + i;
        void *y = at(run->y, (query / group * h->heads + head * group + query % group) * h->dim, dtype);
        store_sums(dtype, l->sums + i % GROUP * h->dim, 1 / l->total[i % GROUP], y, h->dim);
    }
}

/* ---- a sequence: its queries cut into items, each for one thread ---- */

/* Whether queries go into lanes, and how many of a key head's `all` into one tile: many, so that keys and values are
 * read seldom, but few enough that all threads get work. 1: they go one by one. */
static long tile_size(const heads_t *h, long all, long threads) {
    if (all < LANES_PAY || h->dim > DEEP) return 1;
    const long sets = (all + GROUP - 1) / GROUP, fair = sets * h->kv_heads / (4 * threads);
    return GROUP * (fair < 1 ? 1 : fair > MAX_SETS ? MAX_SETS : fair);
}

/* How many items `count` tokens of a sequence are. */
long attention_items(const heads_t *h, long count, long threads) {
    const long all = count * (h->heads / h->kv_heads), tile = tile_size(h, all, threads);
    return h->kv_heads * ((all + tile - 1) / tile);
}

/* One of them. score has room for all positions, where queries go one by one. dim is a multiple of 32. */
void attend_item(const heads_t *h, const run_t *run, long item, long threads, float *score) {
    const long group = h->heads / h->kv_heads, all = run->count * group, tile = tile_size(h, all, threads);
    const long tiles = (all + tile - 1) / tile, head = item / tiles, first = item % tiles * tile;
    if (tile > 1) {
        FOR_DTYPE(h->dtype, attend_tile, h, run, head, first, all - first < tile ? all - first : tile);
        return;
    }
    const long token = first / group, query = (token * h->heads + head * group + first % group) * h->dim;
    const long cache = head * run->capacity * h->dim;
    FOR_DTYPE(h->dtype, attend_query, at(run->q, query, h->dtype), at(run->keys, cache, h->dtype),
              at(run->values, cache, h->dtype), at(run->y, query, h->dtype), score, run->start + token + 1, h->dim,
              h->scale);
}

/* Store one head's key and value (kv_heads, dim) of a token in the caches (kv_heads, capacity, dim). */
void store_token(const heads_t *h, const void *key, const void *value, void *keys, void *values, long position,
                 long capacity, long head) {
    const long from = head * h->dim, to = (head * capacity + position) * h->dim, bytes = h->dim * size_of(h->dtype);
    memcpy(at(keys, to, h->dtype), at(key, from, h->dtype), bytes);
    memcpy(at(values, to, h->dtype), at(value, from, h->dtype), bytes);
}

/* ---- the operator ---- */

typedef struct {
    heads_t heads;
    run_t run;
    const void *key, *value;
    void *keys, *values;
    float *score;
    long room;
} attend_t;

static void attend_share(void *what, team_t *team, long thread) {
    const attend_t *p = what;
    const heads_t *h = &p->heads;
    const long stores = p->run.count * h->kv_heads, token = h->kv_heads * h->dim;
    for (long i; (i = next_piece(team)) < stores;) {
        const long r = i / h->kv_heads;
        store_token(h, at(p->key, r * token, h->dtype), at(p->value, r * token, h->dtype), p->keys, p->values,
                    p->run.start + r, p->run.capacity, i % h->kv_heads);
    }
    wait_all(team);
    const long items = attention_items(h, p->run.count, team->threads);
    for (long i; (i = next_piece(team)) < items;)
        attend_item(h, &p->run, i, team->threads, p->score + thread * p->room);
}

/* Floats of a thread's scores that `llama_attend` needs. */
EXPORT long llama_attend_room(long count, long start, long heads, long kv_heads, long dim) {
    const heads_t h = {heads, kv_heads, dim, 1, F32};
    return tile_size(&h, count * (heads / kv_heads), 1) == 1 ? (start + count + GROUP - 1) / GROUP * GROUP : 0;
}

/* Store the keys and values (count, kv_heads, dim) of tokens at positions start.. of a sequence in its caches
 * (kv_heads, capacity, dim), then attend from their queries (count, heads, dim) to all positions up to their own ->
 * y (count, heads, dim). score: threads x room floats. dim is a multiple of 32. */
EXPORT void llama_attend(const void *q, const void *key, const void *value, void *keys, void *values, void *y,
                         float *score, long room, long count, long heads, long kv_heads, long dim, long capacity,
                         long start, float scale, long dtype, long threads) {
    attend_t p = {{heads, kv_heads, dim, scale, (int)dtype}, {q, keys, values, y, count, start, capacity},
                  key, value, keys, values, score, room};
    run_team(attend_share, &p, threads);
}
