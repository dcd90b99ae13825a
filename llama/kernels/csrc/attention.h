/* Attention, for the fused layers in bf16.c. attention.c documents arguments and results. */

#ifndef LLAMA_ATTENTION_H
#define LLAMA_ATTENTION_H

#include <stdint.h>

/* DEEP: the largest head dimension of a tile. LANES_PAY: from so many queries on, one pass with one query in
 * each lane takes less time than one pass for each query. */
enum { DEEP = 256, LANES_PAY = 3 };

void llama_attend_query(const uint16_t *q, const uint16_t *keys, const uint16_t *values, uint16_t *y, float *score,
                        long length, long dim, float scale);
long llama_tile_size(long all, long kv_heads, long threads);
void llama_attend_tile(const uint16_t *q, const uint16_t *keys, const uint16_t *values, uint16_t *y, long first,
                       long count, long group, long row, long dim, long start, float scale);

#endif
