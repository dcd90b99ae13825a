/* Attention over cached keys and values: of one query at a time, or of many in lanes.c. A result depends on the sequence
 * alone: on no other one, on no number of threads, and not on which blocks it has. */

#include "attention.h"

#include <float.h>
#include <math.h>

#include "cached.h"
#include "matrix.h"

/* LANES_PAY: from so many queries on, one pass with one query in each lane takes less time than one pass for each
 * query. WIDE, HALF: values that one query weighs at a time. ROWS: keys of int8 that it is multiplied with at once. */
enum { LANES_PAY = 3, WIDE = LANES == 16 ? 128 : 64, HALF = 64, ROWS = 4 };

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

/* Of as many keys of int8 as there are lanes: 4 hide what each waits for, and the last sums are made together. */
INLINE vf products(const float *query, const char *keys, long dim, fetch_t *ahead) {
    const long row = row_size(dim, INT8);
    vf sums[LANES];
    UNROLL for (int some = 0; some < LANES; some += ROWS, keys += ROWS * row) {
        vf sum[ROWS][VECTORS] = {0};
        for (long i = 0; i < dim; i += BLOCK_SIZE)
            UNROLL for (int v = 0; v < BLOCK_SIZE / LANES; v++) {
                const vf x = load(query + i + v * LANES);
                UNROLL for (int j = 0; j < ROWS; j++) {
                    const char *block = cached(keys + j * row, i, INT8);
                    sum[j][v % VECTORS] = fma_of(x, get_cached(INT8, block, v * LANES), sum[j][v % VECTORS]);
                }
            }
        UNROLL for (int j = 0; j < ROWS; j++) sums[some + j] = folded(sum[j]);
        fetch(ahead, ROWS * row);
    }
    return totals_of(sums);
}

/* Scores of `count` keys, one behind the other. */
INLINE void score_keys(int pairs, int cache, const void *query, const char *keys, long count, long dim, float scale,
                       float *score, fetch_t *ahead) {
    const long row = row_size(dim, cache);
    long i = 0;
    for (; cache == INT8 && i + LANES <= count; i += LANES)
        store(score + i, products(query, keys + i * row, dim, ahead) * scale);
    for (; i < count; i++) {
        score[i] = product(pairs, cache, query, keys + i * row, dim) * scale;
        fetch(ahead, row);
    }
}

/* score[s] becomes e^(score[s] - the greatest) -> their sum. */
static float softmax(float *score, long length) {
    vf best[4], total[VECTORS] = {0};
    UNROLL for (int v = 0; v < 4; v++) best[v] = broadcast(-INFINITY);
    for (long s = 0; s < length; s += 4 * LANES)
        UNROLL for (int v = 0; v < 4; v++) {
            const long first = s + v * LANES, left = length - first;
            if (left > 0) best[v] = larger(get_some(F32, score, first, left, -INFINITY), best[v]);
        }
    const float top = largest_of(larger(larger(best[0], best[1]), larger(best[2], best[3])));
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

/* sums (groups x 16) + `count` values, `row` bytes apart, weighed by the scores. */
INLINE void weigh_rows(int cache, int groups, const float *score, const char *values, long count, long row, float *sums,
                       fetch_t *ahead) {
    vf sum[WIDE / LANES];
    UNROLL for (int v = 0; v < groups * VECTORS; v++) sum[v] = load(sums + v * LANES);
    for (long i = 0; i < count; i++, values += row) {
        const vf weight = broadcast(score[i]);
        UNROLL for (int v = 0; v < groups * VECTORS; v++)
            sum[v] = fma_of(weight, get_cached(cache, values, v * LANES), sum[v]);
        fetch(ahead, row);
    }
    UNROLL for (int v = 0; v < groups * VECTORS; v++) store(sums + v * LANES, sum[v]);
}

/* sums (dim) + `count` values, one behind the other, weighed. All of a row before the next turn, so that memory is read
 * once. */
INLINE void weigh_values(int cache, const float *score, const char *values, long count, long dim, float *sums,
                         fetch_t *ahead) {
    const long row = row_size(dim, cache);
    long i = 0;
    for (; WIDE > HALF && i + WIDE <= dim; i += WIDE)
        weigh_rows(cache, WIDE / GROUP, score, cached(values, i, cache), count, row, sums + i, ahead);
    for (; i + HALF <= dim; i += HALF)
        weigh_rows(cache, HALF / GROUP, score, cached(values, i, cache), count, row, sums + i, ahead);
    for (; i < dim; i += 2 * GROUP)
        weigh_rows(cache, 2, score, cached(values, i, cache), count, row, sums + i, ahead);
}

/* f(s, rows, count, ahead) for each turn of `length` positions: positions s to s + count, whose rows lie together, and
 * what to fetch meanwhile. `next` is read behind them. */
#define FOR_TURNS(p, next, length, dim, cache, f)                                            \
    for (long s = 0, end, turn = turn_of(p); s < (length); s = end) {                        \
        end = s + run_from(p, s, length);                                                    \
        const char *rows = row_at(p, s, dim, cache);                                         \
        for (long count; s < end; s += count, rows += count * row_size(dim, cache)) {        \
            count = turn - s % turn < end - s ? turn - s % turn : end - s;                   \
            fetch_t ahead = fetch_for(p, next, s, count, end, length, dim, cache);           \
            f;                                                                               \
        }                                                                                    \
    }

/* `next`: the keys that are probably read behind these values. What comes behind keys and values is fetched only where
 * they lie in several runs: in one, the CPU's own prefetcher is in step, and bfloat16 would lose 0.03 to 0.08. */
INLINE void attend_query(int dtype, int cache, const void *q, const paged_t *keys, const paged_t *values,
                         const paged_t *next, void *y, float *score, long length, long dim, float scale) {
    const int pairs = pairs_of(dtype, cache), together = run_from(keys, 0, length) == length;
    const paged_t none = {0};
    float wide[dim], sums[dim];
    const void *query = q;
    if (!pairs) {
        for (long i = 0; i < dim; i += LANES) store(wide + i, get(dtype, q, i));
        query = wide;
    }
    FOR_TURNS(keys, together ? &none : values, length, dim, cache,
              score_keys(pairs, cache, query, rows, count, dim, scale, score + s, &ahead));
    const float share = 1 / softmax(score, length);
    memset(sums, 0, sizeof(sums));
    FOR_TURNS(values, together ? &none : next, length, dim, cache,
              weigh_values(cache, score + s, rows, count, dim, sums, &ahead));
    for (long i = 0; i < dim; i += LANES) put(dtype, y, i, load(sums + i) * share);
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
static long items_of(const heads_t *h, long count, long threads) {
    const long all = count * (h->heads / h->kv_heads), tile = tile_size(h, all, threads);
    return h->kv_heads * ((all + tile - 1) / tile);
}

/* One of them. score has room for all positions, where queries go one by one. dim is a multiple of 32. */
static void attend_item(const heads_t *h, const part_t *part, long item, long threads, float *score) {
    const long group = h->heads / h->kv_heads, all = part->count * group, tile = tile_size(h, all, threads);
    const long tiles = (all + tile - 1) / tile, head = item / tiles, first = item % tiles * tile;
    if (tile > 1) {
        attend_tile(h, part, head, first, all - first < tile ? all - first : tile);
        return;
    }
    const long token = first / group, query = (token * h->heads + head * group + first % group) * h->dim;
    const long first_row = head * h->positions * h->dim;
    const paged_t keys = {cached(part->keys, first_row, h->cache), part->table, h->shift};
    const paged_t values = {cached(part->values, first_row, h->cache), part->table, h->shift};
    const paged_t next = {head + 1 < h->kv_heads ? cached(part->keys, first_row + h->positions * h->dim, h->cache) : 0,
                          part->table, h->shift};
    FOR_CACHE(h->dtype, h->cache, attend_query, at(part->q, query, h->dtype), &keys, &values, &next,
              at(part->y, query, h->dtype), score, part->start + token + 1, h->dim, h->scale);
}

/* Attention of all rows, q and y (rows, heads, dim), whose keys and values are stored already. A thread's pieces are
 * items of one sequence after the other. score: this thread's. */
void attend_parts(const heads_t *h, const parts_t *parts, const void *q, const void *keys, const void *values, void *y,
                  team_t *team, float *score) {
    long all = 0;
    for (long i = 0; i < parts->count; i++) all += items_of(h, parts->firsts[i + 1] - parts->firsts[i], team->threads);
    /* The sequence of the last piece, and the pieces before it and in it. */
    long which = -1, before = 0, items = 0;
    for (long piece; (piece = next_piece(team, all)) < all;) {
        if (piece < before) which = -1, before = items = 0;
        while (piece >= before + items) {
            which++, before += items;
            items = items_of(h, parts->firsts[which + 1] - parts->firsts[which], team->threads);
        }
        const long first = parts->firsts[which], from = first * h->heads * h->dim;
        const part_t part = {at(q, from, h->dtype), keys, values, at(y, from, h->dtype), parts->tables[which],
                             parts->firsts[which + 1] - first, parts->starts[which]};
        attend_item(h, &part, piece - before, team->threads, score);
    }
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

/* Store one head's key and value of a token (kv_heads, dim). */
void store_token(const heads_t *h, const void *key, const void *value, void *keys, void *values, long slot, long head) {
    const long from = head * h->dim, to = (head * h->positions + slot) * h->dim;
    FOR_CACHE(h->dtype, h->cache, store_row, at(key, from, h->dtype), keys, to, h->dim);
    FOR_CACHE(h->dtype, h->cache, store_row, at(value, from, h->dtype), values, to, h->dim);
}

/* ---- the operator ---- */

/* As _Attend in native.py. score: threads x room floats. */
typedef struct {
    heads_t heads;
    parts_t parts;
    const void *q, *key, *value;
    void *keys, *values, *y;
    float *score;
    long room, threads;
} attend_t;

static void attend_share(void *what, team_t *team, long thread) {
    const attend_t *p = what;
    const heads_t *h = &p->heads;
    const long token = h->kv_heads * h->dim, rows = p->parts.firsts[p->parts.count];
    for (long r = share(rows, thread, team->threads); r < share(rows, thread + 1, team->threads); r++)
        for (long head = 0; head < h->kv_heads; head++)
            store_token(h, at(p->key, r * token, h->dtype), at(p->value, r * token, h->dtype), p->keys, p->values,
                        p->parts.slots[r], head);
    wait_all(team);
    attend_parts(h, &p->parts, p->q, p->keys, p->values, p->y, team, p->score + thread * p->room);
}

/* Floats of a thread's scores that `llama_attend` needs, for the longest sequence of those whose queries go one by
 * one. */
EXPORT long llama_attend_room(const attend_t *p) {
    const heads_t *h = &p->heads;
    long room = 0;
    for (long i = 0; i < p->parts.count; i++) {
        const long count = p->parts.firsts[i + 1] - p->parts.firsts[i], length = p->parts.starts[i] + count;
        if (tile_size(h, count * (h->heads / h->kv_heads), 1) == 1 && length > room) room = length;
    }
    return (room + GROUP - 1) / GROUP * GROUP;
}

/* Store the keys and values (rows, kv_heads, dim) of a step's tokens in their slots, then attend from the queries (rows,
 * heads, dim) of each sequence to all of its positions up to their own -> y (rows, heads, dim). dim is a multiple of
 * 32. */
EXPORT void llama_attend(const attend_t *p) { run_team(attend_share, (void *)p, p->threads); }
