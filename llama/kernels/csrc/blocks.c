/* x as quantized weights take it: integers from -127 to 127, with a scale for each 32 of a row.
 *
 * A block has m, its largest absolute value: the scale is m / 127, and an integer is x (127 / m), rounded to the
 * nearest, ties to even. Where 127 / m is not finite, all are 0. A NaN or infinity makes the scale a NaN, and so all
 * outputs of the row.
 *
 * Blocks of the rows of one tile lie together: [tile][block][row]. So a tile reads one stream, and finds its rows at
 * constant distances. */

#include <math.h>

#include "quantized.h"

enum { PARTS = BLOCK / LANES, INFINITE = 0x7f800000 };

/* Two in the middle of four change places: 16-bit pairs lie as tiles find the codes (see `words_of`). */
#define MIDDLE(i) (((i) & ~3) | ((i) & 1) << 1 | ((i) >> 1 & 1))

/* The 32 numbers of a block -> its form. */
INLINE void to_block(int form, const vf x[PARTS], char *to) {
    vi most = {0};
    UNROLL for (int i = 0; i < PARTS; i++) most = larger_int(most, (vi)x[i] & 0x7fffffff);
    /* The bits of floats have the order of floats; those of a NaN are beyond infinity's. */
    const int32_t bits = largest_int(most);
    float m;
    memcpy(&m, &bits, 4);
    const float inverse = 127 / m;
    block_t block = {bits >= INFINITE ? NAN : 0, 0, 0, 0};
    if (bits >= INFINITE || isinf(inverse))
        memset(to, 0, block_codes(form));
    else {
        const float shift = 12582912; /* 1.5 x 2^23: the integer is in the last bits of what is added to it */
        vi sum = {0};
        UNROLL for (int i = 0; i < PARTS; i++) {
            const vi q = (vi)(x[i] * inverse + shift) - (vi)broadcast(shift);
            sum += q;
            if (form == WORDS) {
                const vh words = __builtin_convertvector((vu)SHUFFLE(q, MIDDLE), vh);
                memcpy(to + i * sizeof(words), &words, sizeof(words));
            } else {
                const vq bytes = __builtin_convertvector(q, vq);
                memcpy(to + i * sizeof(bytes), &bytes, sizeof(bytes));
            }
        }
        const int32_t less = -total_int(sum);
        block = (block_t){m / 127, less, less * 8, less * 128};
    }
    memcpy(to + block_codes(form), &block, sizeof(block));
}

/* The number of a row that input k reads. */
INLINE float number_at(int dtype, const void *x, const int32_t *order, long k) {
    return order[k] < 0 ? 0 : get_some(dtype, x, order[k], 1, 0)[0];
}

/* A row of x -> its blocks, `step` bytes apart. */
INLINE void row_to_blocks(int dtype, int form, const void *x, const int32_t *order, long in, char *to, long step) {
    for (long k = 0; k < in; k += BLOCK, to += step) {
        vf part[PARTS];
        if (order) {
            float some[BLOCK];
            for (long i = 0; i < BLOCK; i++) some[i] = number_at(dtype, x, order, k + i);
            memcpy(part, some, sizeof(some));
        } else
            UNROLL for (int i = 0; i < PARTS; i++) part[i] = get(dtype, x, k + i * LANES);
        to_block(form, part, to);
    }
}

/* Rows first to last of x (rows, columns) in blocks for m -> `to`, which has all rows. */
void to_blocks(const matrix_t *m, int dtype, const void *x, long rows, long first, long last, void *to) {
    const int form = blocks_form(m);
    const long size = block_bytes(form), row = form_row(m, dtype);
    for (long begin = 0, count; begin < last; begin += count) {
        const long left = CHUNK - begin % CHUNK < rows - begin ? CHUNK - begin % CHUNK : rows - begin;
        count = tile_rows(left);
        for (long r = begin > first ? begin : first; r < begin + count && r < last; r++) {
            const void *from = at(x, r * m->columns, dtype);
            char *blocks = (char *)to + begin * row + (r - begin) * size;
            if (form == WORDS)
                FOR_DTYPE(dtype, row_to_blocks, WORDS, from, m->order, m->in, blocks, count * size);
            else
                FOR_DTYPE(dtype, row_to_blocks, BYTES, from, m->order, m->in, blocks, count * size);
        }
    }
}
