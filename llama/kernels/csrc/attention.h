/* Attention of one sequence, also for the fused layers. attention.c and lanes.c document the functions. */

#ifndef LLAMA_ATTENTION_H
#define LLAMA_ATTENTION_H

/* Heads of a layer. */
typedef struct {
    long heads, kv_heads, dim;
    float scale; /* of scores */
    int dtype, cache; /* of queries and results; of keys and values: a dtype, the same, or INT8 */
} heads_t;

/* The tokens of one sequence in a step: q and y (count, heads, dim), which begin at position `start`; keys and
 * values (kv_heads, capacity, dim) hold these tokens already. */
typedef struct {
    const void *q, *keys, *values;
    void *y;
    long count, start, capacity;
} run_t;

/* DEEP: the largest head of queries in lanes. MAX_SETS: sets of 16 lanes in the largest tile. */
enum { DEEP = 256, MAX_SETS = 4 };

void attend_tile(const heads_t *h, const run_t *run, long head, long first, long count);
long attention_items(const heads_t *h, long count, long threads);
void attend_item(const heads_t *h, const run_t *run, long item, long threads, float *score);
void store_token(const heads_t *h, const void *key, const void *value, void *keys, void *values, long position,
                 long capacity, long head);

#endif
