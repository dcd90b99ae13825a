/* Keys and values as they lie in a cache: of the activations' dtype, or INT8, groups of 32 neighbouring numbers of a
 * head: a scale in bfloat16, which has float32's range, and a signed byte for each. A number is scale x byte, exactly,
 * so attention has the bits that it has over floats of these values.
 *
 * Positions lie in blocks, which a sequence's table names in their order. Blocks with neighbouring numbers are
 * neighbours in memory: loops go over runs of such blocks, and a sequence in one run costs what an array does. */

#ifndef LLAMA_CACHED_H
#define LLAMA_CACHED_H

#include "numbers.h"

/* Numbers of a block, and its bytes. */
enum { BLOCK_SIZE = 32, BLOCK_BYTES = 2 + BLOCK_SIZE };

/* f(dtype, format, ...) with both as constants, as FOR_DTYPE. The format is INT8 or the dtype. */
#define FOR_CACHE(dtype, format, f, ...)            \
    do {                                            \
        if ((format) == INT8)                       \
            FOR_DTYPE(dtype, f, INT8, __VA_ARGS__); \
        else if ((dtype) == F32)                    \
            f(F32, F32, __VA_ARGS__);               \
        else if ((dtype) == F16)                    \
            f(F16, F16, __VA_ARGS__);               \
        else                                        \
            f(BF16, BF16, __VA_ARGS__);             \
    } while (0)

/* Whether queries and keys, weights and values are multiplied as pairs of bfloat16. */
INLINE int pairs_of(int dtype, int format) { return DOTS && dtype == BF16 && format == BF16; }

/* The address of number i of a cache; of blocks, i is a multiple of 32. */
INLINE char *cached(const void *rows, long i, int format) {
    return format == INT8 ? (char *)rows + i / BLOCK_SIZE * BLOCK_BYTES : at(rows, i, format);
}

/* The scale, in all lanes. A block begins with it: what the first four bytes have beside it is shifted out. */
INLINE vf scale_of(const char *block) {
    /* GCC otherwise shifts in a register for integers, from where the way into all lanes is longer than from memory. */
#if defined(__AVX512F__) && LANES == 16
    return (vf)_mm512_slli_epi32((__m512i)broadcast_bits(block), 16);
#elif defined(__AVX2__) && LANES == 8
    return (vf)_mm256_slli_epi32((__m256i)broadcast_bits(block), 16);
#else
    return (vf)(broadcast_bits(block) << 16);
#endif
}

/* Numbers i, i + 1, ... from an address of `cached` on; they lie in one block. */
INLINE vf get_cached(int format, const void *from, long i) {
    if (format != INT8) return get(format, from, i);
    const char *block = cached(from, i, format);
    return widen_i8(block + 2 + i % BLOCK_SIZE) * scale_of(block);
}

/* ---- blocks of positions ---- */

/* Where the next rows lie elsewhere, memory is fetched so many bytes before it is read: the CPU's own prefetcher cannot
 * follow a table. LINE: of its caches. TURN: the most positions for which one address is looked up. */
enum { LINE = 64, AHEAD = 16384, TURN = 16 };

/* One head's keys or values of one sequence. */
typedef struct {
    const char *rows;     /* of block 0 */
    const int32_t *table; /* the sequence's blocks, in order */
    int shift;            /* a block has 1 << shift positions */
} paged_t;

/* Bytes of a row. */
INLINE long row_size(long dim, int format) { return format == INT8 ? dim / BLOCK_SIZE * BLOCK_BYTES : dim * size_of(format); }

/* The row of a position. */
INLINE const char *row_at(const paged_t *p, long position, long dim, int format) {
    const long block = p->table[position >> p->shift], place = position & ((1L << p->shift) - 1);
    return p->rows + ((block << p->shift) + place) * row_size(dim, format);
}

/* How many positions from `from` on, below `end`, lie one behind the other. */
INLINE long run_from(const paged_t *p, long from, long end) {
    const int32_t *block = p->table + (from >> p->shift);
    long to = ((from >> p->shift) + 1) << p->shift;
    for (; to < end && block[1] == block[0] + 1; to += 1L << p->shift) block++;
    return (to < end ? to : end) - from;
}

/* Positions of a turn, cut at its multiples: all lie in one block, and so do those that are fetched meanwhile. */
INLINE long turn_of(const paged_t *p) { return p->shift < 4 ? 1L << p->shift : TURN; }

/* Memory that is fetched while rows are read, line by line; none if both are equal. */
typedef struct {
    const char *next, *end;
} fetch_t;

/* Positions that take about AHEAD bytes. A multiple of TURN, so that turns begin where turns begin. */
INLINE long rows_ahead(long dim, int format) {
    const long rows = AHEAD / row_size(dim, format) / TURN * TURN;
    return rows < TURN ? TURN : rows;
}

/* What to fetch while `count` rows of a turn are read, from `position` on, in a run up to `end`: as many AHEAD, if they
 * lie behind the run. Behind the last of `length` positions come those of `next`, if it has any rows. */
INLINE fetch_t fetch_for(const paged_t *p, const paged_t *next, long position, long count, long end, long length,
                         long dim, int format) {
    long to = position + rows_ahead(dim, format);
    if (to < end) return (fetch_t){0};
    if (to >= length) {
        to -= (length + TURN - 1) / TURN * TURN;
        if (!next->rows || to < 0 || to >= length) return (fetch_t){0};
        p = next;
    }
    const char *row = row_at(p, to, dim, format);
    return (fetch_t){row, row + count * row_size(dim, format)};
}

/* The next lines of so many bytes, into the second-level cache: the first one's buffers for misses are needed by what is
 * read now. */
INLINE void fetch(fetch_t *f, long bytes) {
    const char *end = f->next + bytes < f->end ? f->next + bytes : f->end;
    for (; f->next < end; f->next += LINE) __builtin_prefetch(f->next, 0, 2);
}

/* Fetch the row of a position, if it is below `end`. */
INLINE void fetch_row(const paged_t *p, long position, long end, long dim, int format) {
    if (position >= end) return;
    const char *row = row_at(p, position, dim, format);
    for (long i = 0; i < row_size(dim, format); i += LINE) __builtin_prefetch(row + i, 0, 2);
}

#endif
