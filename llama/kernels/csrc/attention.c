/* Attention over cached keys and values: of one query at a time, or of many in lanes.c. A result depends on the sequence
 * alone, on no other one and no number of threads. */

#include "attention.h"

#include <float.h>
#include <math.h>

#include "cached.h"
#include "matrix.h"

/* LANES_PAY: from so many queries on, one pass with one query in each lane takes less time than one pass for each
 * query. WIDE: values that one query weighs at a time. */
enum { LANES_PAY = 3, WIDE = 64 };

/* ---- one query ---- */

/* The product of a query, as floats, or of pairs as it is, and a key. */
INLINE float product(int pairs, int cache, const void *query, const void *key, long dim) {
    vf sum[VECTORS] = {0};
    if (pairs)
        for (long i = 0; i < dim; i += 2 * GROUP)
            UNROLL for (int v = 0; v < VECTORS; v++) {
                const long pair = i + v * 2 * LANES;
                sum[v] = dot_pairs(sum[v], load_bits(at(query, pair, BF16)), load_bits(at(key, pair, BF16)));
            }
    else if (cache == INT8)
        for (long i = 0; i < dim; i += BLOCK_SIZE) {
            const char *block = cached(key, i, cache);
            UNROLL for (int v = 0; v < BLOCK_SIZE / LANES; v++)
                sum[v % VECTORS] = fma_of(load((const float *)query + i + v * LANES),
                                          get_cached(cache, block, v * LANES), sum[v % VECTORS]);
        }
    else
        for (long i = 0; i < dim; i += GROUP)
            UNROLL for (int v = 0; v < VECTORS; v++)
                sum[v] = fma_of(load((const float *)query + i + v * LANES), get(cache, key, i + v * LANES), sum[v]);
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
INLINE void weigh_values(int dtype, int cache, const float *score, const void *values, void *y, long length, long dim,
                         float share, int groups) {
    vf sum[WIDE / LANES];
    UNROLL for (int v = 0; v < groups * VECTORS; v++) sum[v] = (vf){};
    for (long s = 0; s < length; s++) {
        const vf weight = broadcast(score[s]);
        const char *row = cached(values, s * dim, cache);
        UNROLL for (int v = 0; v < groups * VECTORS; v++)
            sum[v] = fma_of(weight, get_cached(cache, row, v * LANES), sum[v]);
    }
    UNROLL for (int v = 0; v < groups * VECTORS; v++) put(dtype, y, v * LANES, sum[v] * share);
}

INLINE void attend_query(int dtype, int cache, const void *q, const void *keys, const void *values, void *y,
                         float *score, long length, long dim, float scale) {
    const int pairs = pairs_of(dtype, cache);
    float wide[dim], top = -INFINITY;
    const void *query = q;
    if (!pairs) {
        for (long i = 0; i < dim; i += LANES) store(wide + i, get(dtype, q, i));
        query = wide;
    }
    for (long s = 0; s < length; s++) {
        score[s] = product(pairs, cache, query, cached(keys, s * dim, cache), dim) * scale;
        top = score[s] > top ? score[s] : top;
    }
    const float share = 1 / softmax(score, length, top);
    long i = 0;
    for (; i + WIDE <= dim; i += WIDE)
        weigh_values(dtype, cache, score, cached(values, i, cache), at(y, i, dtype), length, dim, share, WIDE / GROUP);
    for (; i < dim; i += 2 * GROUP)
        weigh_values(dtype, cache, score, cached(values, i, cache), at(y, i, dtype), length, dim, share, 2);
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
        attend_tile(h, run, head, first, all - first < tile ? all - first : tile);
        return;
    }
    const long token = first / group, query = (token * h->heads + head * group + first % group) * h->dim;
    const long first_key = head * run->capacity * h->dim;
    FOR_CACHE(h->dtype, h->cache, attend_query, at(run->q, query, h->dtype), cached(run->keys, first_key, h->cache),
              cached(run->values, first_key, h->cache), at(run->y, query, h->dtype), score, run->start + token + 1,
              h->dim, h->scale);
}

/* 32 numbers -> a block. The scale is that of the greatest, 1/127 of it in bfloat16, and bytes belong to the scale as
 * it was rounded: each is off by half a scale at most. Numbers whose scale would be subnormal become 0. A NaN or an
 * infinity makes the scale a NaN, and so the whole block. */
INLINE void quantize_block(int dtype, const void *x, char *block) {
    vf v[BLOCK_SIZE / LANES];
    vi most = {0};
    UNROLL for (int i = 0; i < BLOCK_SIZE / LANES; i++) {
        v[i] = get(dtype, x, i * LANES);
        /* As integers, so that a NaN is the greatest. */
        const vi size = (vi)v[i] & 0x7fffffff, more = size > most;
        most = (size & more) | (most & ~more);
    }
    int32_t bits = 0;
    for (int i = 0; i < LANES; i++) bits = most[i] > bits ? most[i] : bits;
    float top;
    memcpy(&top, &bits, sizeof(top));
    const vf rounded_scale = rounded_bf16(broadcast(top / 127));
    const float scale = rounded_scale[0], inverse = scale >= FLT_MIN && bits < 0x7f800000 ? 1 / scale : 0;
    const uint16_t kept = bits >= 0x7f800000 ? 0x7fc0 : inverse == 0 ? 0 : (uint16_t)(((vu)rounded_scale)[0] >> 16);
    memcpy(block, &kept, sizeof(kept));
    UNROLL for (int i = 0; i < BLOCK_SIZE / LANES; i++) {
        const float shift = 12582912; /* 1.5 x 2^23: what is added to it is rounded to an integer */
        const vf whole = v[i] * inverse + shift - shift;
        /* 127.5 becomes 128 */
        const vf code = choose(whole > 127, broadcast(127), choose(whole < -127, broadcast(-127), whole));
        narrow_i8(block + 2 + i * LANES, inverse == 0 ? (vf){} : code);
    }
}

INLINE void store_row(int dtype, int cache, const void *x, void *rows, long to, long dim) {
    char *row = cached(rows, to, cache);
    if (cache != INT8)
        memcpy(row, x, dim * size_of(dtype));
    else
        for (long i = 0; i < dim; i += BLOCK_SIZE) quantize_block(dtype, at(x, i, dtype), cached(row, i, cache));
}

/* Store one head's key and value (kv_heads, dim) of a token in the caches (kv_heads, capacity, dim). */
void store_token(const heads_t *h, const void *key, const void *value, void *keys, void *values, long position,
                 long capacity, long head) {
    const long from = head * h->dim, to = (head * capacity + position) * h->dim;
    FOR_CACHE(h->dtype, h->cache, store_row, at(key, from, h->dtype), keys, to, h->dim);
    FOR_CACHE(h->dtype, h->cache, store_row, at(value, from, h->dtype), values, to, h->dim);
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
    const long token = h->kv_heads * h->dim;
    for (long r = share(p->run.count, thread, team->threads); r < share(p->run.count, thread + 1, team->threads); r++)
        for (long head = 0; head < h->kv_heads; head++)
            store_token(h, at(p->key, r * token, h->dtype), at(p->value, r * token, h->dtype), p->keys, p->values,
                        p->run.start + r, p->run.capacity, head);
    wait_all(team);
    const long items = attention_items(h, p->run.count, team->threads);
    for (long i; (i = next_piece(team, items)) < items;)
        attend_item(h, &p->run, i, team->threads, p->score + thread * p->room);
}

/* Floats of a thread's scores that `llama_attend` needs. */
EXPORT long llama_attend_room(long count, long start, long heads, long kv_heads, long dim) {
    const heads_t h = {heads, kv_heads, dim, 1, F32, F32};
    return tile_size(&h, count * (heads / kv_heads), 1) == 1 ? (start + count + GROUP - 1) / GROUP * GROUP : 0;
}

/* Store the keys and values (count, kv_heads, dim) of tokens at positions start.. of a sequence in its caches
 * (kv_heads, capacity, dim), then attend from their queries (count, heads, dim) to all positions up to their own ->
 * y (count, heads, dim). score: threads x room floats. cache: the caches' format. dim is a multiple of 32. */
EXPORT void llama_attend(const void *q, const void *key, const void *value, void *keys, void *values, void *y,
                         float *score, long room, long count, long heads, long kv_heads, long dim, long capacity,
                         long start, float scale, long dtype, long cache, long threads) {
    attend_t p = {{heads, kv_heads, dim, scale, (int)dtype, (int)cache}, {q, keys, values, y, count, start, capacity},
                  key, value, keys, values, score, room};
    run_team(attend_share, &p, threads);
}
