/* Rows of float32, float16 or bfloat16, read and written as vectors of float. The dtype is a constant at every
 * call, so that no choice is left at run time. */

#ifndef LLAMA_NUMBERS_H
#define LLAMA_NUMBERS_H

#include "vectors.h"

/* As DTYPES in native.py. */
enum { F32, F16, BF16 };

/* Of weights only, as FORMATS in quantized.py; INT8 also of caches (cached.h). */
enum { INT8 = 3, INT4, INT8Z, INT4Z, K4 };

/* f(dtype, ...) with the dtype as a constant: the compiler makes one f for each. */
#define FOR_DTYPE(dtype, f, ...)       \
    do {                               \
        if ((dtype) == F32)            \
            f(F32, __VA_ARGS__);       \
        else if ((dtype) == F16)       \
            f(F16, __VA_ARGS__);       \
        else                           \
            f(BF16, __VA_ARGS__);      \
    } while (0)

INLINE long size_of(int dtype) { return dtype == F32 ? 4 : 2; }

INLINE char *at(const void *row, long i, int dtype) { return (char *)row + i * size_of(dtype); }

/* Elements i, i + 1, ... of a row. */
INLINE vf get(int dtype, const void *row, long i) {
    const void *p = at(row, i, dtype);
    return dtype == F32 ? load(p) : dtype == F16 ? widen_f16(p) : widen_bf16(p);
}

INLINE void put(int dtype, void *row, long i, vf v) {
    void *p = at(row, i, dtype);
    if (dtype == F32)
        store(p, v);
    else if (dtype == F16)
        narrow_f16(p, v);
    else
        narrow_bf16(p, v);
}

/* The first `count` of them, at most a vector; `rest` fills the other lanes. */
INLINE vf get_some(int dtype, const void *row, long i, long count, float rest) {
    if (count >= LANES) return get(dtype, row, i);
    char some[4 * LANES] = {0};
    memcpy(some, at(row, i, dtype), count * size_of(dtype));
    return choose(lane_numbers() < (int32_t)count, get(dtype, some, 0), broadcast(rest));
}

INLINE void put_some(int dtype, void *row, long i, vf v, long count) {
    if (count >= LANES) {
        put(dtype, row, i, v);
        return;
    }
    char some[4 * LANES];
    put(dtype, some, 0, v);
    memcpy(at(row, i, dtype), some, count * size_of(dtype));
}

/* v in the precision of the dtype. */
INLINE vf rounded(int dtype, vf v) {
    if (dtype == F32) return v;
    if (dtype == BF16) return rounded_bf16(v);
    char some[2 * LANES];
    narrow_f16(some, v);
    return widen_f16(some);
}

#endif
