/* Rows of bytes -> steps of 16 rows, as codes and plain weights lie in the layout of matrix.h. */

#ifndef LLAMA_PACK_H
#define LLAMA_PACK_H

#include "vectors.h"

/* LINE: bytes that are taken from each row of a group at a time, a cache line; IN_LINE: units of 4 bytes in it. */
enum { IN_LINE = 16, LINE = 4 * IN_LINE };

/* A line of each of 16 rows -> steps of a group, `unit` bytes each. */
INLINE void take_lines(const char *from, long stride, char *steps, int unit) {
    for (int word = 0; word < IN_LINE; word += LANES)
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

/* Steps of 4 codes of 4 bits, a byte each -> half as many steps of 8: of two, the second in the upper halves. */
INLINE void join_steps(char *steps, long size) {
    for (long i = 0; i < size / 2; i += GROUP * 4)
        for (long j = 0; j < GROUP * 4; j += 4 * LANES) {
            const vu low = load_bits(steps + 2 * i + j), high = load_bits(steps + 2 * i + GROUP * 4 + j);
            store(steps + i + j, (vf)((low & 0x0f0f0f0fu) | (high & 0x0f0f0f0fu) << 4));
        }
}

/* A row of lines -> a group's steps. They are made in the first-level cache, and written whole, past the caches. */
INLINE void pack_group(const char *from, long stride, long rows, long bytes, char *to, int unit, int join) {
    char steps[GROUP * LINE] __attribute__((aligned(64)));
    for (long k = 0, size; k < bytes; k += LINE, from += LINE, to += size) {
        const long now = bytes - k < LINE ? bytes - k : LINE;
        size = (now + unit - 1) / unit * unit * GROUP;
        if (rows == GROUP && now == LINE)
            take_lines(from, stride, steps, unit);
        else
            take_some(from, stride, rows, now, steps, unit);
        if (join) join_steps(steps, size), size /= 2;
        if ((uintptr_t)to % 64 == 0 && size % (4 * LANES) == 0)
            for (long i = 0; i < size; i += 4 * LANES) stream(to + i, load_bits(steps + i));
        else
            memcpy(to, steps, size);
    }
}

#endif
