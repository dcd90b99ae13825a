/* Products with quantized weights. quantized.c and blocks.c document the functions. */

#ifndef LLAMA_QUANTIZED_H
#define LLAMA_QUANTIZED_H

#include "dots.h"
#include "matrix.h"

/* BLOCK: inputs that share a scale of x. TALL: rows of a tile, at most. */
enum { BLOCK = 32, TALL = 6 };

/* A block of a row of x: 32 integers of 8 bits, or of 16 in WORDS, and this behind them. x is their product with
 * `scale`, to 1/254 of the block's largest. */
typedef struct {
    float scale;
    int32_t less, less_8, less_128; /* the sum of the integers, times -1, -8 and -128 */
} block_t;

INLINE long block_codes(int form) { return form == WORDS ? 2 * BLOCK : BLOCK; }
INLINE long block_bytes(int form) { return block_codes(form) + sizeof(block_t); }

/* Rows of the first tile of `rows` of a chunk, and so on for those that are left. 8 rows are split into 4 and 4, not
 * 6 and 2: a tile of few rows waits for its loads. */
INLINE long tile_rows(long rows) {
    const long tiles = (rows + TALL - 1) / TALL;
    return (rows + tiles - 1) / tiles;
}

INLINE int is_quantized(const matrix_t *m) { return m->format >= INT8; }

/* The form of x for a quantized weight. */
INLINE int blocks_form(const matrix_t *m) {
    return !FOURS && (m->format == INT8 || m->format == INT8Z) ? WORDS : BYTES;
}

void to_blocks(const matrix_t *m, int dtype, const void *x, long rows, long first, long last, void *to);
void quantized_sums(const matrix_t *m, rows_t x, long rows, long panel, float *sums);

#endif
