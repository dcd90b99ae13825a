/* Weights from rows into the layout of matrix.h, a block at a time: a checkpoint is packed while it is read. */

#include "matrix.h"

/* WORDS: of 4 bytes, that are taken from each row of a group at a time: a cache line. */
enum { WORDS = 16, LINE = 4 * WORDS };

typedef struct {
    const matrix_t *m;
    const char *from;
    long stride, row, column, rows, columns;
} pack_t;

/* A line of each of 16 rows -> steps of a group, `unit` bytes each. */
INLINE void take_lines(const char *from, long stride, char *steps, int unit) {
    for (int word = 0; word < WORDS; word += LANES)
        for (int row = 0; row < GROUP; row += LANES) {
            vu v[LANES];
            UNROLL for (int i = 0; i < LANES; i++) v[i] = load_bits(from + (row + i) * stride + word * 4);
            transpose(v);
            UNROLL for (int i = 0; i < LANES; i++) {
                char *to = steps + (word + i) * GROUP * 4 + row * unit;
                const vh low = __builtin_convertvector(v[i], vh), high = __builtin_convertvector(v[i] >> 16, vh);
                if (unit == 4)
                    store(to, (vf)v[i]);
                else {
                    memcpy(to, &low, sizeof(low));
                    memcpy(to + GROUP * unit, &high, sizeof(high));
                }
            }
        }
}

/* The same of `rows` rows, of which `bytes` are there; what is missing is 0. */
INLINE void take_some(const char *from, long stride, long rows, long bytes, char *steps, int unit) {
    memset(steps, 0, GROUP * LINE);
    for (long i = 0; i < rows; i++)
        for (long k = 0; k < bytes; k += unit)
            memcpy(steps + k * GROUP + i * unit, from + i * stride + k, bytes - k < unit ? bytes - k : unit);
}

/* A row of lines -> a group's steps. They are made in the first-level cache, and written whole, past the caches. */
INLINE void pack_group(const char *from, long stride, long rows, long bytes, char *to, int unit) {
    char steps[GROUP * LINE] __attribute__((aligned(64)));
    for (long k = 0; k < bytes; k += LINE, from += LINE, to += sizeof(steps)) {
        const long now = bytes - k < LINE ? bytes - k : LINE, size = (now + unit - 1) / unit * unit * GROUP;
        if (rows == GROUP && now == LINE)
            take_lines(from, stride, steps, unit);
        else
            take_some(from, stride, rows, now, steps, unit);
        if ((uintptr_t)to % 64 == 0 && size % (4 * LANES) == 0)
            for (long i = 0; i < size; i += 4 * LANES) stream(to + i, load_bits(steps + i));
        else
            memcpy(to, steps, size);
    }
}

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
            pack_group(from, p->stride * element, rows, p->columns * element, to, 2);
        else
            pack_group(from, p->stride * element, rows, p->columns * element, to, 4);
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
