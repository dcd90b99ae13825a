/* Weights from rows into the layout of matrix.h, a part at a time: a checkpoint is packed while it is read. */

#include "pack.h"

#include "matrix.h"
#include "quantized.h"

typedef struct {
    const matrix_t *m;
    const char *from;
    long stride, row, column, rows, columns;
} pack_t;

static void pack_share(void *what, team_t *team, long thread) {
    const pack_t *p = what;
    const matrix_t *m = p->m;
    const long element = m->format == F32 ? 4 : 2, unit = m->format == F16 ? 2 : 4, inputs = unit / element;
    const long steps = (m->in + inputs - 1) / inputs, groups = (p->rows + GROUP - 1) / GROUP;
    for (long g = share(groups, thread, team->threads); g < share(groups, thread + 1, team->threads); g++) {
        const long rows = p->rows - g * GROUP < GROUP ? p->rows - g * GROUP : GROUP;
        char *to = (char *)m->codes + ((p->row / GROUP + g) * steps + p->column / inputs) * GROUP * unit;
        const char *from = p->from + g * GROUP * p->stride * element;
        if (unit == 2)
            pack_group(from, p->stride * element, rows, p->columns * element, to, 2, 0);
        else
            pack_group(from, p->stride * element, rows, p->columns * element, to, 4, 0);
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

/* ---- quantized weights ---- */

typedef struct {
    const matrix_t *m;
    const uint8_t *codes, *scales, *zeros;
    long stride, row, rows;
} pack_blocks_t;

/* Numbers of `size` bytes (rows, n, parts) -> a group's (n, parts, 16); those of rows that are missing are 0. */
INLINE void spread(const uint8_t *from, long rows, long n, long parts, long size, uint8_t *to) {
    for (long i = 0; i < n * parts; i++, to += GROUP * size)
        for (long r = 0; r < GROUP; r++)
            if (r < rows)
                memcpy(to + r * size, from + (r * n * parts + i) * size, size);
            else
                memset(to + r * size, 0, size);
}

static void pack_blocks_share(void *what, team_t *team, long thread) {
    const pack_blocks_t *p = what;
    const matrix_t *m = p->m;
    const int small = m->format != INT8 && m->format != INT8Z;
    const long groups = (p->rows + GROUP - 1) / GROUP, n = (m->in + m->group - 1) / m->group;
    const long parts = m->format == K4 ? 2 : 1, zeros = m->format == K4 ? m->in / BLOCK : n;
    for (long g = share(groups, thread, team->threads); g < share(groups, thread + 1, team->threads); g++) {
        const long rows = p->rows - g * GROUP < GROUP ? p->rows - g * GROUP : GROUP, to = p->row / GROUP + g;
        const char *codes = (const char *)p->codes + g * GROUP * p->stride;
        if (small)
            pack_group(codes, p->stride, rows, m->in, (char *)m->codes + to * m->in * GROUP / 2, 4, 1);
        else
            pack_group(codes, p->stride, rows, m->in, (char *)m->codes + to * m->in * GROUP, 4, 0);
        const long size = 2 * n * parts;
        spread(p->scales + g * GROUP * size, rows, n, parts, 2, (uint8_t *)m->scales + to * GROUP * size);
        if (!p->zeros) continue;
        const long bytes = zeros * parts;
        spread(p->zeros + g * GROUP * bytes, rows, zeros, parts, 1, (uint8_t *)m->zeros + to * GROUP * bytes);
    }
    end_stream();
}

/* Pack `rows` rows of a quantized m, of which the first is `row`, a multiple of 16: codes (rows, in), a byte each and
 * rows `stride` bytes apart; scales (rows, n), float16, and zeros (rows, n), bytes, if the format has them; of K4
 * scales (rows, n, 2) and zeros (rows, in / 32, 2). The number of rows is a multiple of 16, unless they are the last. */
EXPORT void llama_pack_blocks(const matrix_t *m, const void *codes, long stride, const void *scales, const void *zeros,
                              long row, long rows, long threads) {
    pack_blocks_t p = {m, codes, scales, zeros, stride, row, rows};
    run_team(pack_blocks_share, &p, threads);
}
