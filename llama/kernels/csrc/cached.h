/* Keys and values as they lie in a cache: of the activations' dtype, or INT8, blocks of 32 neighbouring numbers of a
 * head: a scale in bfloat16, which has float32's range, and a signed byte for each. A number is scale x byte, exactly,
 * so attention has the bits that it has over floats of these values. */

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
INLINE vf scale_of(const char *block) { return (vf)(broadcast_bits(block) << 16); }

/* Numbers i, i + 1, ... from an address of `cached` on; they lie in one block. */
INLINE vf get_cached(int format, const void *from, long i) {
    if (format != INT8) return get(format, from, i);
    const char *block = cached(from, i, format);
    return widen_i8(block + 2 + i % BLOCK_SIZE) * scale_of(block);
}

#endif
