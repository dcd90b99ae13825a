/* Matrices as they are stored, and their products. linear.c documents the functions. */

#ifndef LLAMA_MATRIX_H
#define LLAMA_MATRIX_H

#include "abi.h"
#include "numbers.h"
#include "team.h"

/* W (out, in), packed. `codes` are groups of 16 outputs, the last one filled up with zeros, by steps of inputs:
 *
 *     format          step   codes
 *     F32, F16        1      [group][in][16]
 *     BF16            2      [group][in / 2, rounded up][16][2]
 *     INT8, INT8Z     4      [group][in / 4][16][4]
 *     INT4, INT4Z, K4 8      [group][in / 8][16][4]: inputs k..k+3 in the low halves of bytes, k+4..k+7 in the high ones
 *
 * Of the quantized formats `in` is a multiple of 32. `group` inputs, a multiple of 32 (32 itself of INT8 and INT4),
 * share scales; the last ones may be fewer. With n = in / group, rounded up:
 *
 *     format          weight        scales, float16        zeros, bytes
 *     INT8            s (q - 128)   [group][n][16]
 *     INT4            s (q - 8)     [group][n][16]
 *     INT8Z, INT4Z    s (q - z)     [group][n][16]         [group][n][16]
 *     K4              d a q - e b   [group][n][2][16] d,e  [group][in / 32][2][16] a,b
 *
 * `order`: which column of x each input reads, -1 for none; null for its own. `columns`: of x; `in`, unless there is
 * an order. The layout is the same on every level. As Matrix in native.py. */
typedef struct {
    long format, out, in, columns, group;
    const void *codes, *scales, *zeros; /* the latter null in formats without them */
    const int32_t *order;
} matrix_t;

/* PANEL: outputs that a thread computes at a time. CHUNK: rows for which sums are kept beside the tiles. */
enum { GROUPS = 4, PANEL = GROUPS * GROUP, CHUNK = 128 };

INLINE long panels_of(const matrix_t *m) { return (m->out + PANEL - 1) / PANEL; }

/* Outputs of a panel. */
INLINE long width_of(const matrix_t *m, long panel) {
    return m->out - panel * PANEL < PANEL ? m->out - panel * PANEL : PANEL;
}

/* Sums of a panel -> y, of which a row has `out` elements. */
INLINE void put_panel(int dtype, const float *sums, char *y, long rows, long out, long width) {
    for (long r = 0; r < rows; r++)
        for (long i = 0; i < width; i += LANES)
            put_some(dtype, y, r * out + i, load(sums + r * PANEL + i), width - i);
}

/* What tiles read of x: FLOATS, or PAIRS of bfloat16, an even number in each row; of quantized weights integers of 8 or
 * 16 bits, in blocks (blocks.c). */
enum { FLOATS, PAIRS, BYTES, WORDS };

/* Rows of one form. `row`: bytes from one to the next; of blocks, from a tile to the next for each row of it. */
typedef struct {
    const char *x;
    long row;
} rows_t;

int form_of(const matrix_t *m, int dtype);
int is_form(const matrix_t *m, int dtype);
int same_form(const matrix_t *m, const matrix_t *other, int dtype);
long form_row(const matrix_t *m, int dtype);
void to_form(const matrix_t *m, int dtype, const void *x, long rows, long first, long last, void *to);
void panel_sums(const matrix_t *m, rows_t x, long rows, int dtype, long panel, float *sums);

#endif
