/* Products with quantized weights: exact sums of integers in blocks of 32 inputs, which fma adds up in float32, block
 * by block in the order of the inputs:
 *
 *     int8, int4, ...z   sum = fma(s x.scale, D - z X, sum)
 *     k4                 sum = fma(d a x.scale, D, sum), then fma(-(e b x.scale), X, sum)
 *
 * D is the sum of codes times integers of x, X that of the integers of x. So a row has the same bits on every level,
 * in any tile, on any thread and beside any other rows.
 *
 * Tiles, strips and panels are as in linear.c. */

#include "quantized.h"

/* REGISTERS: vectors that the CPU has. DEPTH: blocks that all rows pass over at a time, if there are many: the codes of
 * a panel stay in the first-level cache. AHEAD: bytes from what is computed to what is fetched. */
#if defined(__AVX512F__) || defined(__aarch64__)
enum { REGISTERS = 32 };
#else
enum { REGISTERS = 16 };
#endif
enum { DEPTH = 8, AHEAD = 8192 };
/* Vectors of outputs of a tile, at most. */
enum { MOST = 2 * VECTORS };

/* A weight's panel from some block on. Steps are bytes from one group of 16 outputs to the next; `blocks` share a
 * scale, of which `left` are still there. */
typedef struct {
    const char *codes, *scales, *zeros;
    long codes_step, scales_step, zeros_step;
    long blocks, left;
} panel_t;

INLINE int bits_of(int format) { return format == INT8 || format == INT8Z ? 8 : 4; }
INLINE int zero_of(int format) { return format == INT8 ? 128 : format == INT4 ? 8 : 0; }
INLINE int has_zeros(int format) { return format == INT8Z || format == INT4Z; }
INLINE int form_for(int format) { return !FOURS && bits_of(format) == 8 ? WORDS : BYTES; }
/* Bytes of a block's codes, and of a scale, of a group. */
INLINE long codes_bytes(int format) { return BLOCK * GROUP * bits_of(format) / 8; }
INLINE long scale_bytes(int format) { return format == K4 ? 4 * GROUP : 2 * GROUP; }

INLINE const block_t *block_of(int format, const char *x, int row) {
    return (const block_t *)(x + row * block_bytes(form_for(format)) + block_codes(form_for(format)));
}

/* The compiler moves no load from one side of this to the other. Of one row, codes of 8 bits are read in the order in
 * which they lie: GCC had read the sixth line of a block before the second, the CPU then recognized no stream, and one
 * thread read 25 GB/s instead of 30 (AVX-512). With 4 bits GCC keeps the order, and this would cost 5 %. */
#define IN_ORDER() __asm__ volatile("" : : : "memory")

/* ---- a block ---- */

/* What D begins with, so that it ends as D - z X. */
INLINE void begin_dots(int format, const panel_t *p, const char *x, vi dot[TALL][MOST], int n, int rows) {
    UNROLL for (int v = 0; v < n; v++) {
        vi zero = {0};
        if (has_zeros(format))
            zero = widen_bytes(p->zeros + v / VECTORS * p->zeros_step + v % VECTORS * LANES);
        UNROLL for (int r = 0; r < rows; r++) {
            const block_t *b = block_of(format, x, r);
            if (has_zeros(format))
                dot[r][v] = times(zero, broadcast_int(b->less));
            else if (format == INT4)
                dot[r][v] = broadcast_int(b->less_8);
            else if (format == INT8 && !EXCESS)
                dot[r][v] = broadcast_int(b->less_128);
            else
                dot[r][v] = (vi){0};
            if (format == INT8Z && EXCESS) dot[r][v] -= broadcast_int(b->less_128);
        }
    }
}

INLINE vu codes_at(const panel_t *p, long step, int v) {
    return load_bits(p->codes + v / VECTORS * p->codes_step + step * 4 * GROUP + v % VECTORS * 4 * LANES);
}

INLINE void dots_of_fours(int format, const panel_t *p, const char *x, vi dot[TALL][MOST], int n, int rows) {
    const long size = block_bytes(BYTES);
    UNROLL for (int k = 0; k < bits_of(format); k++) {
        vu codes[MOST];
        UNROLL for (int v = 0; v < n; v++) codes[v] = codes_at(p, k, v);
        if (bits_of(format) == 8) {
            if (rows == 1) IN_ORDER();
            UNROLL for (int v = 0; v < n; v++) codes[v] = less_excess(codes[v]);
            UNROLL for (int r = 0; r < rows; r++) {
                const vu each = broadcast_bits(x + r * size + k * 4);
                UNROLL for (int v = 0; v < n; v++) dot[r][v] = dot_fours(dot[r][v], codes[v], each);
            }
        } else {
            UNROLL for (int r = 0; r < rows; r++) {
                const vu each = broadcast_bits(x + r * size + k * 8);
                UNROLL for (int v = 0; v < n; v++) dot[r][v] = dot_fours(dot[r][v], codes[v] & 0x0f0f0f0fu, each);
            }
            UNROLL for (int v = 0; v < n; v++) codes[v] = codes[v] >> 4 & 0x0f0f0f0fu;
            UNROLL for (int r = 0; r < rows; r++) {
                const vu each = broadcast_bits(x + r * size + k * 8 + 4);
                UNROLL for (int v = 0; v < n; v++) dot[r][v] = dot_fours(dot[r][v], codes[v], each);
            }
        }
    }
}

/* 8-bit codes as 16-bit pairs: of four, those at even places, then those at odd ones. x lies so. */
INLINE void dots_of_words(const panel_t *p, const char *x, vi dot[TALL][MOST], int n, int rows) {
    const long size = block_bytes(WORDS);
    UNROLL for (int k = 0; k < 8; k++) {
        vu codes[MOST];
        UNROLL for (int v = 0; v < n; v++) codes[v] = codes_at(p, k, v) & 0x00ff00ffu;
        UNROLL for (int r = 0; r < rows; r++) {
            const vu each = broadcast_bits(x + r * size + k * 8);
            UNROLL for (int v = 0; v < n; v++) dot[r][v] = dot_pairs_of_words(dot[r][v], codes[v], each);
        }
        UNROLL for (int v = 0; v < n; v++) codes[v] = (vu)((vh2)codes_at(p, k, v) >> 8);
        UNROLL for (int r = 0; r < rows; r++) {
            const vu each = broadcast_bits(x + r * size + k * 8 + 4);
            UNROLL for (int v = 0; v < n; v++) dot[r][v] = dot_pairs_of_words(dot[r][v], codes[v], each);
        }
    }
}

/* 4-bit codes: of a whole block, a 16-bit sum holds 16 products of 15 x 127. */
INLINE void dots_of_bytes(const panel_t *p, const char *x, vs dot[TALL][MOST], int n, int rows) {
    const long size = block_bytes(BYTES);
    UNROLL for (int k = 0; k < 4; k++) {
        vu codes[MOST];
        UNROLL for (int v = 0; v < n; v++) codes[v] = codes_at(p, k, v) & 0x0f0f0f0fu;
        UNROLL for (int r = 0; r < rows; r++) {
            const vu each = broadcast_bits(x + r * size + k * 8);
            UNROLL for (int v = 0; v < n; v++) dot[r][v] = dot_pairs_of_bytes(dot[r][v], codes[v], each);
        }
        UNROLL for (int v = 0; v < n; v++) codes[v] = codes_at(p, k, v) >> 4 & 0x0f0f0f0fu;
        UNROLL for (int r = 0; r < rows; r++) {
            const vu each = broadcast_bits(x + r * size + k * 8 + 4);
            UNROLL for (int v = 0; v < n; v++) dot[r][v] = dot_pairs_of_bytes(dot[r][v], codes[v], each);
        }
    }
}

/* D - z X of a block. */
INLINE void dots_of(int format, const panel_t *p, const char *x, vi dot[TALL][MOST], int n, int rows) {
    begin_dots(format, p, x, dot, n, rows);
    if (FOURS)
        dots_of_fours(format, p, x, dot, n, rows);
    else if (bits_of(format) == 8)
        dots_of_words(p, x, dot, n, rows);
    else {
        vs halves[TALL][MOST] = {0};
        dots_of_bytes(p, x, halves, n, rows);
        const vu ones = 0x00010001u - (vu){0};
        UNROLL for (int r = 0; r < rows; r++)
            UNROLL for (int v = 0; v < n; v++) dot[r][v] = dot_pairs_of_words(dot[r][v], (vu)halves[r][v], ones);
    }
}

/* A block's part of the sums. */
INLINE void add_dots(int format, const panel_t *p, const char *x, vi dot[TALL][MOST], vf sum[TALL][MOST], int n,
                     int rows) {
    UNROLL for (int v = 0; v < n; v++) {
        const char *scale = p->scales + v / VECTORS * p->scales_step + v % VECTORS * 2 * LANES;
        vf s = widen_f16(scale), e = {0};
        if (format == K4) {
            const char *zero = p->zeros + v / VECTORS * p->zeros_step + v % VECTORS * LANES;
            s *= __builtin_convertvector(widen_bytes(zero), vf);
            e = widen_f16(scale + 2 * GROUP) * __builtin_convertvector(widen_bytes(zero + GROUP), vf);
        }
        UNROLL for (int r = 0; r < rows; r++) {
            const block_t *b = block_of(format, x, r);
            const vf scale_x = broadcast(b->scale);
            sum[r][v] = fma_of(s * scale_x, __builtin_convertvector(dot[r][v], vf), sum[r][v]);
            if (format == K4)
                sum[r][v] = fma_of(e * scale_x, __builtin_convertvector(broadcast_int(b->less), vf), sum[r][v]);
        }
    }
}

/* ---- tiles ---- */

/* To the next block. */
INLINE void advance(int format, panel_t *p) {
    p->codes += codes_bytes(format);
    if (format == K4) p->zeros += 2 * GROUP;
    if (--p->left) return;
    p->left = p->blocks;
    p->scales += scale_bytes(format);
    if (has_zeros(format)) p->zeros += GROUP;
}

/* With much to compute for each code, the CPU alone reads too little ahead. One row of 4 bits takes 0.89 of the time with
 * this (two threads; a plain read 0.6); one of 8 bits is faster without. */
INLINE void fetch(int format, const panel_t *p, int groups, int rows) {
    if (rows == 1 && bits_of(format) == 8) return;
    UNROLL for (int g = 0; g < groups; g++)
        UNROLL for (int i = 0; i < codes_bytes(format); i += 64) {
            const char *next = p->codes + g * p->codes_step + AHEAD + i;
            rows == 1 ? __builtin_prefetch(next) : __builtin_prefetch(next, 0, 2);
        }
}

/* sums (rows, PANEL) of `groups` groups: of some blocks, added to what is there unless they are the first. The counts
 * are constants at every call. */
INLINE void tile(int format, panel_t p, const char *x, float *sums, long blocks, int first, int groups, int rows) {
    const int n = groups * VECTORS;
    vf sum[TALL][MOST];
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int v = 0; v < n; v++) sum[r][v] = first ? (vf){0} : load(sums + r * PANEL + v * LANES);
    for (long b = 0; b < blocks; b++, x += rows * block_bytes(form_for(format))) {
        vi dot[TALL][MOST];
        fetch(format, &p, groups, rows);
        dots_of(format, &p, x, dot, n, rows);
        add_dots(format, &p, x, dot, sum, n, rows);
        advance(format, &p);
    }
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int v = 0; v < n; v++) store(sums + r * PANEL + v * LANES, sum[r][v]);
}

/* `rows` rows times `groups` groups. Two at once where there are registers for it; of one row one, since the codes of
 * neighbouring groups are a single stream. */
INLINE void strip(int format, panel_t p, const char *x, float *sums, long blocks, int first, long groups, int rows) {
    const int most = rows > 1 && 4 * VECTORS * rows <= REGISTERS - 4 ? 2 : 1;
    while (groups > 0) {
        const int now = groups >= most ? most : 1;
        if (now == 2)
            tile(format, p, x, sums, blocks, first, 2, rows);
        else
            tile(format, p, x, sums, blocks, first, 1, rows);
        groups -= now, sums += now * GROUP;
        p.codes += now * p.codes_step, p.scales += now * p.scales_step, p.zeros += now * p.zeros_step;
    }
}

/* Some blocks of all rows, a tile of rows at a time; `row` bytes of x for each. */
INLINE void all_rows(int format, panel_t p, rows_t x, long rows, long done, float *sums, long blocks, int first,
                     long groups) {
    while (rows > 0) {
        const long now = tile_rows(rows);
        const char *from = x.x + done * now * block_bytes(form_for(format));
        switch (now) {
            case 6: strip(format, p, from, sums, blocks, first, groups, 6); break;
            case 5: strip(format, p, from, sums, blocks, first, groups, 5); break;
            case 4: strip(format, p, from, sums, blocks, first, groups, 4); break;
            case 3: strip(format, p, from, sums, blocks, first, groups, 3); break;
            case 2: strip(format, p, from, sums, blocks, first, groups, 2); break;
            default: strip(format, p, from, sums, blocks, first, groups, 1);
        }
        rows -= now, x.x += now * x.row, sums += now * PANEL;
    }
}

/* A panel from some block on. */
INLINE panel_t panel_from(int format, const matrix_t *m, long panel, long block) {
    const long n = (m->in + m->group - 1) / m->group, share = m->group / BLOCK, all = m->in / BLOCK, first = panel * GROUPS;
    panel_t p = {.codes_step = all * codes_bytes(format), .scales_step = n * scale_bytes(format), .blocks = share};
    p.codes = (const char *)m->codes + first * p.codes_step + block * codes_bytes(format);
    p.scales = (const char *)m->scales + first * p.scales_step + block / share * scale_bytes(format);
    p.left = share - block % share;
    if (format == K4) p.zeros_step = all * 2 * GROUP;
    if (has_zeros(format)) p.zeros_step = n * GROUP;
    p.zeros = (const char *)m->zeros + first * p.zeros_step;
    p.zeros += format == K4 ? block * 2 * GROUP : has_zeros(format) ? block / share * GROUP : 0;
    return p;
}

INLINE void panel_of(int format, const matrix_t *m, rows_t x, long rows, long panel, float *sums) {
    const long all = m->in / BLOCK, depth = rows <= TALL ? all : DEPTH, groups = (width_of(m, panel) + GROUP - 1) / GROUP;
    for (long b = 0; b < all; b += depth)
        all_rows(format, panel_from(format, m, panel, b), x, rows, b, sums, all - b < depth ? all - b : depth, b == 0,
                 groups);
}

/* Functions of their own: each is large. */
#define PANEL_OF(format, name)                                                                                \
    __attribute__((noinline)) static void name(const matrix_t *m, rows_t x, long rows, long panel, float *sums) { \
        panel_of(format, m, x, rows, panel, sums);                                                            \
    }
PANEL_OF(INT8, panel_int8)
PANEL_OF(INT4, panel_int4)
PANEL_OF(INT8Z, panel_int8z)
PANEL_OF(INT4Z, panel_int4z)
PANEL_OF(K4, panel_k4)

/* `rows` rows, at most CHUNK, in blocks, times a panel -> sums (rows, PANEL). */
void quantized_sums(const matrix_t *m, rows_t x, long rows, long panel, float *sums) {
    switch (m->format) {
        case INT8: panel_int8(m, x, rows, panel, sums); break;
        case INT4: panel_int4(m, x, rows, panel, sums); break;
        case INT8Z: panel_int8z(m, x, rows, panel, sums); break;
        case INT4Z: panel_int4z(m, x, rows, panel, sums); break;
        default: panel_k4(m, x, rows, panel, sums);
    }
}
