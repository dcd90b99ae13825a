/* Matrices as they are stored, and their products. linear.c documents the functions. */

#ifndef LLAMA_MATRIX_H
#define LLAMA_MATRIX_H

#include "abi.h"
#include "numbers.h"
#include "team.h"

/* W (out, in), packed. `codes` are groups of 16 outputs, the last one filled up with zeros, by steps of inputs:
 *
 *     format      step   codes
 *     F32, F16    1      [group][in][16]
 *     BF16        2      [group][in / 2, rounded up][16][2]
 *
 * The layout is the same on every level. As Matrix in native.py. */
typedef struct {
    long format, out, in;
    const void *codes;
    /* Of quantized formats; null without them. order: which column of x each input reads, null for its own. */
    const void *scales, *zeros;
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

/* What tiles read of x: FLOATS, or PAIRS of bfloat16; an even number in each row. */
enum { FLOATS, PAIRS, FORMS };

/* Rows of one form. `row`: bytes from one to the next. */
typedef struct {
    const char *x;
    long row;
} rows_t;

int form_of(const matrix_t *m, int dtype);
int is_form(int form, int dtype, long in);
long form_row(int form, long in);
void to_form(int form, int dtype, const void *x, long in, long first, long last, void *to);
void panel_sums(const matrix_t *m, rows_t x, long rows, int form, long panel, float *sums);

#endif
