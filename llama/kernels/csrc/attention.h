/* Attention of a step's sequences, also for the fused layers. attention.c and lanes.c document the functions. */

#ifndef LLAMA_ATTENTION_H
#define LLAMA_ATTENTION_H

#include <stdint.h>

#include "team.h"

/* Heads of a layer. Their keys and values are (kv_heads, positions, dim), the positions in blocks of 1 << shift. */
typedef struct {
    long heads, kv_heads, dim, positions;
    float scale; /* of scores */
    int dtype, cache; /* of queries and results; of keys and values: a dtype, the same, or INT8 */
    int shift;
} heads_t;

/* The sequences of a step, as _Parts in native.py. Sequence i has rows firsts[i] up to firsts[i + 1], whose first is
 * at position starts[i]. slots: of each row, where its key and value go among all positions. tables: the blocks of each
 * sequence, in order. */
typedef struct {
    long count;
    const long *firsts, *starts, *slots;
    const int32_t *const *tables;
} parts_t;

/* One of them: q and y (count, heads, dim), which begin at position `start`; keys and values of all sequences, in which
 * these tokens are stored already. */
typedef struct {
    const void *q, *keys, *values;
    void *y;
    const int32_t *table;
    long count, start;
} part_t;

/* DEEP: the largest head of queries in lanes. MAX_SETS: sets of 16 lanes in the largest tile. */
enum { DEEP = 256, MAX_SETS = 4 };

void attend_tile(const heads_t *h, const part_t *part, long head, long first, long count);
void attend_parts(const heads_t *h, const parts_t *parts, const void *q, const void *keys, const void *values, void *y,
                  team_t *team, float *score);
void store_token(const heads_t *h, const void *key, const void *value, void *keys, void *values, long slot, long head);

#endif
