/* Matrix products: y = x W^T for any number of rows of x, in every format of a packed W. quantized.c has
 * those whose sums are of integers.
 *
 * One step of a tile loads the weights of 16 to 64 outputs for one or two inputs, then goes over its rows: nothing
 * is summed across lanes, one row of x reads W as a few streams at the speed of memory, and many rows find the
 * weights in registers. A panel of 64 outputs, some inputs of it at a time, stays in a cache while all rows pass
 * over it.
 *
 * Each sum is float32, and adds its products in the order of the inputs, whatever the tile, the panel, the thread
 * or the rows beside it. So a row has the same result alone and among others. */

#include "matrix.h"

#include "quantized.h"

/* ROWS: of a tile. SUMS: vectors of sums that leave registers for weights and x. TWICE: how many fewer where pairs
 * are taken apart. DEPTH: inputs that all rows pass over at a time, if they are many; NEAR: steps, if they are few.
 * AHEAD: bytes of a group from what is computed to what is fetched. SPAN: rows that go through all panels before the
 * next ones do. */
#if defined(__AVX512F__) || defined(__aarch64__)
enum { ROWS = 6, SUMS = 24, TWICE = 0 };
#else
enum { ROWS = 6, SUMS = 96 / LANES, TWICE = 2 };
#endif
enum { DEPTH = 1024, NEAR = 64, AHEAD = 8192, SPAN = 512 };

/* How a step of a tile computes: what the weights are, and whether pairs are multiplied. A step FROM_BF16 is of the
 * even inputs of its pairs, and goes on FROM_ODD. */
enum { FROM_F32, FROM_F16, FROM_BF16, FROM_ODD, BY_PAIRS };

/* ---- x in the form that the tiles take ---- */

int form_of(const matrix_t *m, int dtype) {
    if (is_quantized(m)) return blocks_form(m);
    return DOTS && m->format == BF16 && dtype == BF16 ? PAIRS : FLOATS;
}

/* Whether rows of x have the form that m takes as they are. */
int is_form(const matrix_t *m, int dtype) {
    return !is_quantized(m) && dtype == (form_of(m, dtype) == PAIRS ? BF16 : F32) && m->in % 2 == 0;
}

/* Whether both take the same rows in the same form. */
int same_form(const matrix_t *m, const matrix_t *other, int dtype) {
    return form_of(m, dtype) == form_of(other, dtype) && m->in == other->in && m->order == other->order;
}

/* Bytes of a row in the form that m takes. */
long form_row(const matrix_t *m, int dtype) {
    const int form = form_of(m, dtype);
    const long bytes = is_quantized(m) ? m->in / BLOCK * block_bytes(form) : (m->in + 1) / 2 * 2 * (form == PAIRS ? 2 : 4);
    return (bytes + 63) / 64 * 64;
}

INLINE void widen_row(int dtype, const void *x, long in, float *to) {
    long i = 0;
    for (; i + LANES <= in; i += LANES) store(to + i, get(dtype, x, i));
    for (; i < in; i++) to[i] = get_some(dtype, x, i, 1, 0)[0];
    if (in % 2) to[in] = 0;
}

/* Rows first to last of x (rows, columns) in the form that m takes -> `to`, which has all rows. PAIRS are made of
 * bfloat16 only. */
void to_form(const matrix_t *m, int dtype, const void *x, long rows, long first, long last, void *to) {
    const int form = form_of(m, dtype);
    const long in = m->in;
    if (is_quantized(m)) {
        to_blocks(m, dtype, x, rows, first, last, to);
        return;
    }
    for (long r = first; r < last; r++) {
        char *row = (char *)to + r * form_row(m, dtype);
        const char *from = at(x, r * in, dtype);
        if (form == PAIRS) {
            memcpy(row, from, in * 2);
            if (in % 2) memset(row + in * 2, 0, 2);
        } else
            FOR_DTYPE(dtype, widen_row, from, in, (float *)row);
    }
}

/* ---- tiles ---- */

/* Bytes of one step: of a group of weights, and of a row of x. */
INLINE long step_weights(int kind) { return kind == FROM_F16 ? 2 * GROUP : 4 * GROUP; }
INLINE long step_x(int kind) { return kind == FROM_BF16 ? 8 : 4; }

/* One vector of weights; `upper` is a mask for FROM_ODD. */
INLINE vu weights_at(int kind, const char *step, long group, int v, uint32_t upper) {
    const char *from = step + v / VECTORS * group;
    if (kind == FROM_F16) return (vu)widen_f16(from + v % VECTORS * 2 * LANES);
    const vu bits = load_bits(from + v % VECTORS * 4 * LANES);
    return kind == FROM_BF16 ? bits << 16 : kind == FROM_ODD ? bits & upper : bits;
}

INLINE vf multiplied(int kind, vf sum, vu weights, vu x) {
    return kind == BY_PAIRS ? dot_pairs(sum, weights, x) : fma_of((vf)weights, (vf)x, sum);
}

/* One step, for n vectors of weights. What there is less of is read first, and stays in registers. */
INLINE void one_step(int kind, const char *w, long group, rows_t x, vf sum[ROWS][GROUPS * VECTORS], int n, int rows,
                     uint32_t upper) {
    vu few[GROUPS * VECTORS > ROWS ? GROUPS * VECTORS : ROWS];
    if (rows > n) {
        UNROLL for (int v = 0; v < n; v++) few[v] = weights_at(kind, w, group, v, upper);
        UNROLL for (int r = 0; r < rows; r++) {
            const vu each = broadcast_bits(x.x + r * x.row);
            UNROLL for (int v = 0; v < n; v++) sum[r][v] = multiplied(kind, sum[r][v], few[v], each);
        }
    } else {
        UNROLL for (int r = 0; r < rows; r++) few[r] = broadcast_bits(x.x + r * x.row);
        UNROLL for (int v = 0; v < n; v++) {
            const vu each = weights_at(kind, w, group, v, upper);
            UNROLL for (int r = 0; r < rows; r++) sum[r][v] = multiplied(kind, sum[r][v], each, few[r]);
        }
    }
}

/* sums (rows, PANEL) of `groups` groups: of `steps` steps, added to what is there unless they are the first. The
 * counts are constants at every call, so that the loops unroll and the sums stay in registers. */
INLINE void tile(int kind, const char *w, long group, rows_t x, float *sums, long steps, int first, int groups,
                 int rows) {
    const int n = groups * VECTORS;
    vf sum[ROWS][GROUPS * VECTORS];
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int v = 0; v < n; v++) sum[r][v] = first ? (vf){} : load(sums + r * PANEL + v * LANES);
    for (long k = 0; k < steps; k++, w += step_weights(kind), x.x += step_x(kind)) {
        /* With much to compute for each weight, the CPU alone reads too little ahead. Into the second-level cache:
         * the first one waits for fewer lines at a time. 6 rows of float32 on AVX2 read 7.8 GB/s without this, 17
         * into the first-level cache, 24 so; 8 rows of bfloat16 on AVX-512 take 0.9 of the time. */
        if (rows >= groups)
            UNROLL for (int g = 0; g < groups; g++) __builtin_prefetch(w + g * group + AHEAD, 0, 2);
        one_step(kind, w, group, x, sum, n, rows, 0);
        if (kind == FROM_BF16) {
            uint32_t upper = 0xffff0000u;
            READ_AGAIN(upper);
            one_step(FROM_ODD, w, group, (rows_t){x.x + 4, x.row}, sum, n, rows, upper);
        }
    }
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int v = 0; v < n; v++) store(sums + r * PANEL + v * LANES, sum[r][v]);
}

/* `rows` rows times `groups` groups, as many at once as there are registers for their sums. */
INLINE void strip(int kind, const char *w, long group, rows_t x, float *sums, long steps, int first, long groups,
                  int rows) {
    const int fit = (kind == FROM_BF16 ? SUMS - TWICE : SUMS) / (VECTORS * rows);
    const int most = fit > GROUPS ? GROUPS : fit > 0 ? fit : 1;
    for (; groups >= most; groups -= most, w += most * group, sums += most * GROUP)
        tile(kind, w, group, x, sums, steps, first, most, rows);
    if (most > 3 && groups == 3)
        tile(kind, w, group, x, sums, steps, first, 3, rows);
    else if (most > 2 && groups == 2)
        tile(kind, w, group, x, sums, steps, first, 2, rows);
    else if (most > 1 && groups == 1)
        tile(kind, w, group, x, sums, steps, first, 1, rows);
}

/* Steps of all rows, a tile of rows at a time. */
INLINE void block(int kind, const char *w, long group, rows_t x, long rows, float *sums, long steps, int first,
                  long groups) {
    /* 8 rows are split into 4 and 4, not 6 and 2: a tile of few rows waits for its loads. */
    for (long tiles = (rows + ROWS - 1) / ROWS; tiles > 0; tiles--) {
        const long now = (rows + tiles - 1) / tiles;
        switch (now) {
            case 6: strip(kind, w, group, x, sums, steps, first, groups, 6); break;
            case 5: strip(kind, w, group, x, sums, steps, first, groups, 5); break;
            case 4: strip(kind, w, group, x, sums, steps, first, groups, 4); break;
            case 3: strip(kind, w, group, x, sums, steps, first, groups, 3); break;
            case 2: strip(kind, w, group, x, sums, steps, first, groups, 2); break;
            default: strip(kind, w, group, x, sums, steps, first, groups, 1);
        }
        rows -= now, x.x += now * x.row, sums += now * PANEL;
    }
}

INLINE void panel_of_kind(int kind, const matrix_t *m, rows_t x, long rows, long panel, float *sums) {
    const long inputs = kind == FROM_BF16 || kind == BY_PAIRS ? 2 : 1, steps = (m->in + inputs - 1) / inputs;
    /* A tile of all rows reads each weight once, and needs no cache for them. The tiles of a few rows find the
     * weights in the first-level cache, and read what comes next meanwhile: on AVX2, 8 rows of bfloat16 take 0.75
     * of the time, 24 rows 0.93. With many tiles, loading and storing sums so often costs more (3 % at 128 rows). */
    const long depth = rows <= ROWS ? steps : rows <= 8 * ROWS ? NEAR : DEPTH / inputs;
    const long group = steps * step_weights(kind), groups = (width_of(m, panel) + GROUP - 1) / GROUP;
    const char *w = (const char *)m->codes + panel * GROUPS * group;
    for (long k = 0; k < steps; k += depth) {
        const rows_t from = {x.x + k * step_x(kind), x.row};
        const long now = steps - k < depth ? steps - k : depth;
        block(kind, w + k * step_weights(kind), group, from, rows, sums, now, k == 0, groups);
    }
}

/* Functions of their own: each is large. */
#define PANEL_OF(kind, name)                                                                                  \
    __attribute__((noinline)) static void name(const matrix_t *m, rows_t x, long rows, long panel, float *sums) { \
        panel_of_kind(kind, m, x, rows, panel, sums);                                                         \
    }
PANEL_OF(FROM_F32, panel_f32)
PANEL_OF(FROM_F16, panel_f16)
PANEL_OF(FROM_BF16, panel_bf16)
PANEL_OF(BY_PAIRS, panel_pairs)

/* `rows` rows, at most CHUNK, in the form that m takes of rows of a dtype, times a panel -> sums (rows, PANEL). */
void panel_sums(const matrix_t *m, rows_t x, long rows, int dtype, long panel, float *sums) {
    if (is_quantized(m))
        quantized_sums(m, x, rows, panel, sums);
    else if (DOTS && form_of(m, dtype) == PAIRS)
        panel_pairs(m, x, rows, panel, sums);
    else if (m->format == BF16)
        panel_bf16(m, x, rows, panel, sums);
    else if (m->format == F16)
        panel_f16(m, x, rows, panel, sums);
    else
        panel_f32(m, x, rows, panel, sums);
}

/* ---- the operator ---- */

typedef struct {
    const matrix_t *m;
    const void *x;
    char *y, *space;
    long rows;
    int dtype;
} linear_t;

/* Fetch the memory of y that will be written, while its sums are computed: 0.97 of the time for short rows of x. */
INLINE void expect_panel(const char *y, long rows, long row, long width) {
    for (long r = 0; r < rows; r++)
        for (long i = 0; i < width; i += 64) __builtin_prefetch(y + r * row + i, 1, 2);
}

static void linear_share(void *what, team_t *team, long thread) {
    const linear_t *l = what;
    const matrix_t *m = l->m;
    rows_t x = {l->x, m->columns * size_of(l->dtype)};
    if (!is_form(m, l->dtype)) {
        to_form(m, l->dtype, l->x, l->rows, share(l->rows, thread, team->threads),
                share(l->rows, thread + 1, team->threads), l->space);
        wait_all(team);
        x = (rows_t){l->space, form_row(m, l->dtype)};
    }
    float sums[CHUNK * PANEL];
    /* Not all rows at once: then each panel would read x from far away (2,048 rows: 1.07 of the time). */
    const long panels = panels_of(m), spans = (l->rows + SPAN - 1) / SPAN;
    for (long piece; (piece = next_piece(team, spans * panels)) < spans * panels;) {
        const long panel = piece % panels, begin = piece / panels * SPAN;
        const long end = begin + SPAN < l->rows ? begin + SPAN : l->rows;
        for (long first = begin; first < end; first += CHUNK) {
            const long rows = end - first < CHUNK ? end - first : CHUNK;
            char *y = at(l->y, first * m->out + panel * PANEL, l->dtype);
            expect_panel(y, rows, m->out * size_of(l->dtype), width_of(m, panel) * size_of(l->dtype));
            panel_sums(m, (rows_t){x.x + first * x.row, x.row}, rows, l->dtype, panel, sums);
            FOR_DTYPE(l->dtype, put_panel, sums, y, rows, m->out, width_of(m, panel));
        }
    }
}

/* Bytes of work space that `llama_linear` needs. */
EXPORT long llama_linear_space(const matrix_t *m, long rows, long dtype) {
    return is_form(m, (int)dtype) ? 0 : rows * form_row(m, (int)dtype);
}

/* x (rows, columns) times the transpose of m -> y (rows, out), both contiguous and of the dtype. */
EXPORT void llama_linear(const matrix_t *m, const void *x, void *y, void *space, long rows, long dtype,
                         long threads) {
    linear_t l = {m, x, y, space, rows, (int)dtype};
    run_team(linear_share, &l, threads < panels_of(m) ? threads : panels_of(m));
}
