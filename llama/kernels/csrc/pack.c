/* Weights from rows into the layout of matrix.h, a block at a time: a checkpoint is packed while it is read. */

#include "matrix.h"

/* Steps of 16 outputs that are gathered at a time: they fill a few cache lines, which are then written whole. */
enum { STEPS = 16 };

typedef struct {
    const matrix_t *m;
    const char *from;
    long stride, row, column, rows, columns;
} pack_t;

/* Up to STEPS steps of a group, `unit` bytes each, from 16 rows of which `rows` exist. `bytes` of a row are there;
 * what is missing of the last step is 0. */
INLINE void gather(const char *from, long stride, long rows, long bytes, char *to, int unit) {
    char steps[STEPS * GROUP * 4] __attribute__((aligned(64))) = {0};
    const long whole = bytes / unit, count = (bytes + unit - 1) / unit;
    for (long i = 0; i < rows; i++)
        for (long k = 0; k < whole; k++) memcpy(steps + (k * GROUP + i) * unit, from + i * stride + k * unit, unit);
    if (count > whole)
        for (long i = 0; i < rows; i++)
            memcpy(steps + (whole * GROUP + i) * unit, from + i * stride + whole * unit, bytes % unit);
    const long size = count * GROUP * unit;
    if ((uintptr_t)to % 64 == 0 && size % (4 * LANES) == 0)
        for (long i = 0; i < size; i += 4 * LANES) stream(to + i, load_bits(steps + i));
    else
        memcpy(to, steps, size);
}

static void pack_share(void *what, team_t *team, long thread) {
    const pack_t *p = what;
    const matrix_t *m = p->m;
    const long element = m->format == F32 ? 4 : 2, unit = m->format == F16 ? 2 : 4, inputs = unit / element;
    const long steps = (m->in + inputs - 1) / inputs, groups = (p->rows + GROUP - 1) / GROUP;
    for (long g = share(groups, thread, team->threads); g < share(groups, thread + 1, team->threads); g++) {
        const long rows = p->rows - g * GROUP < GROUP ? p->rows - g * GROUP : GROUP;
        char *to = (char *)m->codes + ((p->row / GROUP + g) * steps + p->column / inputs) * GROUP * unit;
        for (long k = 0; k < p->columns; k += STEPS * inputs) {
            const long now = p->columns - k < STEPS * inputs ? p->columns - k : STEPS * inputs;
            const char *from = p->from + (g * GROUP * p->stride + k) * element;
            if (unit == 2)
                gather(from, p->stride * element, rows, now * element, to + k / inputs * GROUP * unit, 2);
            else
                gather(from, p->stride * element, rows, now * element, to + k / inputs * GROUP * unit, 4);
        }
    }
    end_stream();
}

/* Pack a block w (rows, columns) of m's own dtype, its rows `stride` elements apart, of which the first entry is
 * (row, column) of m. The row is a multiple of 16, the column even. A last group that is not full is filled up
 * with zeros; so is a last step, where the block ends with the row. */
EXPORT void llama_pack(const matrix_t *m, const void *w, long stride, long row, long column, long rows, long columns,
                       long threads) {
    pack_t p = {m, w, stride, row, column, rows, columns};
    run_team(pack_share, &p, threads);
}
