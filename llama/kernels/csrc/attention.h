/* Attention of one sequence, also for the fused layers. attention.c documents the functions. */

#ifndef LLAMA_ATTENTION_H
#define LLAMA_ATTENTION_H

/* Heads of a layer. */
typedef struct {
    long heads, kv_heads, dim;
    float scale; /* of scores */
    int dtype;
} heads_t;

/* The tokens of one sequence in a step: q and y (count, heads, dim), which begin at position `start`; keys and
 * values (kv_heads, capacity, dim) hold these tokens already. */
typedef struct {
    const void *q, *keys, *values;
    void *y;
    long count, start, capacity;
} run_t;

long attention_items(const heads_t *h, long count, long threads);
void attend_item(const heads_t *h, const run_t *run, long item, long threads, float *score);
void store_token(const heads_t *h, const void *key, const void *value, void *keys, void *values, long position,
                 long capacity, long head);

#endif
