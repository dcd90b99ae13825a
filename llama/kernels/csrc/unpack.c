/* Rows of blocks as a GGUF file holds them -> the layout of matrix.h, in one pass.
 * checkpoint/weight_files/gguf_types.py and to_int8 in kernels/quantized.py have the same in torch: the same bits, on
 * every level.
 *
 * 16 rows are taken together, 256 weights of each at a time. Blocks of Q8_0, Q4_0 and Q4_K keep their codes and
 * scales. Those of other types become floats, and these become int8. */

#include "pack.h"

#include "matrix.h"
#include "quantized.h"

/* The types, by the numbers that stand in a file. */
enum { Q4_0 = 2, Q4_1, Q5_0 = 6, Q5_1, Q8_0, Q2_K = 10, Q3_K, Q4_K, Q5_K, Q6_K };
/* PIECE: weights of a row that are taken at a time. RUN: weights that share factors in every type. */
enum { PIECE = 256, BLOCKS = PIECE / BLOCK, RUN = 16, RUNS = PIECE / RUN };

typedef struct {
    const matrix_t *m;
    const uint8_t *raw;
    long stride, skip, row, rows;
    int type, bad;
} unpack_t;

/* 16 bytes of a file, and what is made of them. */
typedef uint32_t v16 __attribute__((vector_size(16)));

INLINE v16 bytes_at(const void *p) {
    v16 v;
    memcpy(&v, p, sizeof(v));
    return v;
}

INLINE void put_bytes(void *p, v16 v) { memcpy(p, &v, sizeof(v)); }

INLINE uint16_t half_at(const uint8_t *p) {
    uint16_t half;
    memcpy(&half, p, sizeof(half));
    return half;
}

INLINE int is_finite(uint16_t half) { return (half & 0x7c00) != 0x7c00; }

INLINE long length_of(int type) { return type < Q2_K ? BLOCK : PIECE; }

INLINE long bytes_of(int type) {
    return type == Q4_0   ? 18
           : type == Q4_1 ? 20
           : type == Q5_0 ? 22
           : type == Q5_1 ? 24
           : type == Q8_0 ? 34
           : type == Q2_K ? 84
           : type == Q3_K ? 110
           : type == Q4_K ? 144
           : type == Q5_K ? 176
                          : 210;
}

/* ---- codes ---- */

/* Of each `run` bytes (16, 32 or 64) first the low halves, then the high ones. */
INLINE void take_halves(const uint8_t *from, long bytes, long run, uint8_t *codes) {
    for (long k = 0; k < bytes; k += run)
        for (long i = 0; i < run; i += 16) {
            const v16 v = bytes_at(from + k + i);
            put_bytes(codes + 2 * k + i, v & 0x0f0f0f0fu);
            put_bytes(codes + 2 * k + run + i, v >> 4 & 0x0f0f0f0fu);
        }
}

/* 64 bytes -> 256 times 2 bits, of each 32 bytes the lowest first. They become bits `shift` and up of the codes. */
INLINE void add_pairs(const uint8_t *from, int shift, uint8_t *codes) {
    for (int k = 0; k < 64; k += 32)
        for (int i = 0; i < 32; i += 16) {
            const v16 v = bytes_at(from + k + i);
            UNROLL for (int j = 0; j < 4; j++) {
                uint8_t *to = codes + 4 * k + 32 * j + i;
                put_bytes(to, bytes_at(to) | (v >> 2 * j & 0x03030303u) << shift);
            }
        }
}

/* 32 bytes -> 256 bits, the lowest of all bytes first. They become bit `shift` of the codes. */
INLINE void add_bits(const uint8_t *from, int shift, uint8_t *codes) {
    for (int i = 0; i < 32; i += 16) {
        const v16 v = bytes_at(from + i);
        UNROLL for (int j = 0; j < 8; j++) {
            uint8_t *to = codes + 32 * j + i;
            put_bytes(to, bytes_at(to) | (v >> j & 0x01010101u) << shift);
        }
    }
}

/* 4 bytes -> bit 4 of 32 codes, the lowest first. */
INLINE void add_fifth(const uint8_t *from, uint8_t *codes) {
    for (int i = 0; i < BLOCK / 8; i++) {
        /* A bit in each of 8 bytes, which carries into the highest one of its byte. */
        const uint64_t bits = from[i] * 0x0101010101010101u & 0x8040201008040201u;
        uint64_t eight;
        memcpy(&eight, codes + 8 * i, sizeof(eight));
        eight |= (bits + 0x7f7f7f7f7f7f7f7fu) >> 3 & 0x1010101010101010u;
        memcpy(codes + 8 * i, &eight, sizeof(eight));
    }
}

/* The 6-bit factors of d and of dmin in the 12 bytes of Q4_K and Q5_K. */
INLINE void take_factors(const uint8_t *from, uint8_t a[BLOCKS], uint8_t b[BLOCKS]) {
    for (int i = 0; i < 4; i++) {
        const uint8_t low = from[i], mid = from[4 + i], high = from[8 + i];
        a[i] = low & 63, a[4 + i] = (high & 15) | low >> 6 << 4;
        b[i] = mid & 63, b[4 + i] = high >> 4 | mid >> 6 << 4;
    }
}

/* ---- types whose codes and scales stay ---- */

/* The part of a piece that belongs to the matrix: weights `first` to `last` of it; the matrix's column of its weight 0,
 * which may be less than 0. */
typedef struct {
    long first, last, column;
} part_t;

/* A piece of one row -> its codes. Its scales and zeros go into the matrix, where the row's begin at `scales` and
 * `zeros`. Returns whether all scales are finite. */
INLINE int take_row(const unpack_t *u, int type, part_t part, const uint8_t *from, uint8_t *codes, uint16_t *scales,
                    uint8_t *zeros) {
    int finite = 1;
    if (type == Q4_K) {
        const uint16_t d = half_at(from), e = half_at(from + 2);
        uint8_t a[BLOCKS], b[BLOCKS];
        take_factors(from + 4, a, b);
        take_halves(from + 16, PIECE / 2, 32, codes);
        for (long i = part.first; i < part.last; i += u->m->group) {
            uint16_t *to = scales + (part.column + i) / u->m->group * 2 * GROUP;
            to[0] = d, to[GROUP] = e;
        }
        for (long i = part.first / BLOCK; i < part.last / BLOCK; i++) {
            uint8_t *to = zeros + (part.column / BLOCK + i) * 2 * GROUP;
            to[0] = a[i], to[GROUP] = b[i];
        }
        return is_finite(d) && is_finite(e);
    }
    for (long i = part.first / BLOCK; i < part.last / BLOCK; i++) {
        const uint8_t *block = from + i * bytes_of(type);
        const uint16_t s = half_at(block);
        if (type == Q8_0)
            for (int k = 0; k < BLOCK; k += 16)
                put_bytes(codes + i * BLOCK + k, bytes_at(block + 2 + k) ^ 0x80808080u);
        else
            take_halves(block + 2, BLOCK / 2, BLOCK / 2, codes + i * BLOCK);
        scales[(part.column / BLOCK + i) * GROUP] = s;
        finite &= is_finite(s);
    }
    return finite;
}

/* ---- types that become int8 ---- */

/* A piece of one row, of weights code d - m. */
typedef struct {
    int8_t codes[PIECE];
    float d[RUNS], m[RUNS];
} numbers_t;

INLINE void subtract(uint8_t *codes, long count, int offset) {
    for (long i = 0; i < count; i++) codes[i] = (uint8_t)(codes[i] - offset);
}

/* `blocks` blocks of 32. */
INLINE void take_small(int type, const uint8_t *from, long blocks, numbers_t *to) {
    uint8_t *codes = (uint8_t *)to->codes;
    const int offset = type == Q4_1 || type == Q5_1, at = offset ? 4 : 2;
    uint16_t d[RUNS] = {0}, m[RUNS] = {0};
    for (long i = 0; i < blocks; i++, from += bytes_of(type), codes += BLOCK) {
        d[2 * i] = d[2 * i + 1] = half_at(from);
        if (offset) m[2 * i] = m[2 * i + 1] = half_at(from + 2) ^ 0x8000; /* it is added */
        take_halves(from + (type == Q4_1 ? at : at + 4), BLOCK / 2, BLOCK / 2, codes);
        if (type != Q4_1) add_fifth(from + at, codes);
        if (type == Q5_0) subtract(codes, BLOCK, 16);
    }
    for (int i = 0; i < RUNS; i += LANES) {
        store(to->d + i, widen_f16(d + i));
        store(to->m + i, widen_f16(m + i));
    }
}

INLINE void take_large(int type, const uint8_t *from, numbers_t *to) {
    uint8_t *codes = (uint8_t *)to->codes;
    const long at = type == Q2_K ? 80 : type == Q3_K ? 108 : type == Q5_K ? 0 : 208;
    uint16_t halves[GROUP] = {half_at(from + at)};
    if (type == Q2_K || type == Q5_K) halves[1] = half_at(from + at + 2);
    float both[GROUP], d[RUNS], m[RUNS] = {0};
    store(both, widen_f16(halves));
    if (type == Q2_K) {
        memset(codes, 0, PIECE);
        add_pairs(from + 16, 0, codes);
        for (int i = 0; i < RUNS; i++) d[i] = from[i] & 15, m[i] = from[i] >> 4;
    } else if (type == Q3_K) {
        memset(codes, 0, PIECE);
        add_pairs(from + 32, 0, codes);
        add_bits(from, 2, codes);
        subtract(codes, PIECE, 4); /* the bit that is stored apart is 1 where 4 is not to be taken away */
        for (int i = 0; i < RUNS; i++) {
            const int low = i < 8 ? from[96 + i] & 15 : from[96 + i - 8] >> 4;
            d[i] = (low | (from[104 + i % 4] >> i / 4 * 2 & 3) << 4) - 32;
        }
    } else if (type == Q5_K) {
        uint8_t a[BLOCKS], b[BLOCKS];
        take_factors(from + 4, a, b);
        take_halves(from + 48, PIECE / 2, 32, codes);
        add_bits(from + 16, 4, codes);
        for (int i = 0; i < RUNS; i++) d[i] = a[i / 2], m[i] = b[i / 2];
    } else {
        take_halves(from, PIECE / 2, 64, codes);
        add_pairs(from + 128, 4, codes);
        subtract(codes, PIECE, 32);
        for (int i = 0; i < RUNS; i++) d[i] = (int8_t)from[192 + i];
    }
    for (int i = 0; i < RUNS; i++) {
        to->d[i] = both[0] * d[i];
        to->m[i] = both[1] * m[i];
    }
}

/* Blocks of 32 floats -> their scales and codes in int8, by to_int8's rule. */
INLINE void to_int8(const float x[GROUP * BLOCK], uint16_t scales[GROUP], uint8_t codes[GROUP * BLOCK]) {
    float top[GROUP * LANES], inverse[GROUP];
    const float shift = 12582912; /* 1.5 x 2^23: rounds what is added to it to integers */
    for (int i = 0; i < GROUP; i++) {
        vf most = {};
        UNROLL for (int k = 0; k < BLOCK; k += LANES)
            most = larger(most, (vf)(load_bits(x + i * BLOCK + k) & 0x7fffffffu));
        store(top + i * LANES, most);
    }
    for (int i = 0; i < GROUP; i += LANES) {
        vu v[LANES];
        UNROLL for (int k = 0; k < LANES; k++) v[k] = load_bits(top + (i + k) * LANES);
        transpose(v);
        vf most = (vf)v[0];
        UNROLL for (int k = 1; k < LANES; k++) most = larger(most, (vf)v[k]);
        const vf exact = most / 127;
        narrow_f16(scales + i, exact);
        const vi too_small = (widen_f16(scales + i) < exact) & (exact < 0x1p-14f); /* subnormal in float16 */
        for (int k = 0; k < LANES; k++) scales[i + k] -= too_small[k];
        const vf s = widen_f16(scales + i);
        store(inverse + i, choose(s > 0, 1 / s, (vf){}));
    }
    for (int i = 0; i < GROUP; i++)
        UNROLL for (int k = 0; k < BLOCK; k += LANES) {
            const vf q = smaller(larger(load(x + i * BLOCK + k) * inverse[i], broadcast(-128)), broadcast(127));
            narrow_i8(codes + i * BLOCK + k, (q + shift) - shift);
        }
    for (int i = 0; i < GROUP * BLOCK; i += 16) put_bytes(codes + i, bytes_at(codes + i) ^ 0x80808080u);
}

/* A piece of two rows, of which the second may be missing; the rest as in take_row. */
INLINE int requantize(int type, part_t part, const uint8_t *from, long stride, long rows, uint8_t *codes,
                      uint16_t *scales) {
    float x[2 * PIECE];
    uint16_t found[GROUP];
    if (rows < 2 || part.last - part.first < PIECE) memset(x, 0, sizeof(x));
    int finite = 1;
    for (long r = 0; r < rows; r++) {
        numbers_t n;
        if (length_of(type) == BLOCK)
            take_small(type, from + r * stride, part.last / BLOCK, &n);
        else
            take_large(type, from + r * stride, &n);
        for (long i = part.first; i < part.last; i += RUN) {
            const float d = n.d[i / RUN], m = n.m[i / RUN];
            UNROLL for (int k = 0; k < RUN; k += LANES)
                store(x + r * PIECE + i + k, widen_i8(n.codes + i + k) * d - broadcast(m));
        }
        for (long i = part.first / RUN; i < part.last / RUN; i++) {
            uint32_t d, m;
            memcpy(&d, n.d + i, sizeof(d)), memcpy(&m, n.m + i, sizeof(m));
            finite &= ((d & 0x7f800000) != 0x7f800000) & ((m & 0x7f800000) != 0x7f800000);
        }
    }
    to_int8(x, found, codes);
    for (long r = 0; r < rows; r++)
        for (long i = part.first / BLOCK; i < part.last / BLOCK; i++) {
            scales[(part.column / BLOCK + i) * GROUP + r] = found[r * BLOCKS + i];
            finite &= is_finite(found[r * BLOCKS + i]);
        }
    return finite;
}

/* ---- matrices ---- */

INLINE int unpack_group(const unpack_t *u, int type, int kept, long g) {
    const matrix_t *m = u->m;
    const long rows = u->rows - g * GROUP < GROUP ? u->rows - g * GROUP : GROUP, to = u->row / GROUP + g;
    const long n = (m->in + m->group - 1) / m->group, small = type == Q4_0 || type == Q4_K, end = u->skip + m->in;
    const long sizes = n * (type == Q4_K ? 2 : 1) * GROUP, bytes = m->in / BLOCK * 2 * GROUP;
    uint16_t *scales = (uint16_t *)m->scales + to * sizes;
    uint8_t *zeros = type == Q4_K ? (uint8_t *)m->zeros + to * bytes : 0;
    char *packed = (char *)m->codes + to * m->in * GROUP / (small ? 2 : 1);
    const uint8_t *from = u->raw + g * GROUP * u->stride;
    uint8_t codes[GROUP * PIECE] __attribute__((aligned(64)));
    int finite = 1;
    if (rows < GROUP) { /* the rows that fill up the group */
        memset(codes, 0, sizeof(codes));
        memset(scales, 0, 2 * sizes);
        if (zeros) memset(zeros, 0, bytes);
    }
    for (long k = 0; k < end; k += PIECE, from += PIECE / length_of(type) * bytes_of(type)) {
        /* 16 rows side by side are more than the CPU fetches ahead by itself. */
        for (long r = 0; r < rows && k + PIECE < end; r++)
            for (long i = 0; i < PIECE / length_of(type) * bytes_of(type); i += 64)
                __builtin_prefetch(from + r * u->stride + PIECE / length_of(type) * bytes_of(type) + i);
        const part_t part = {k < u->skip ? u->skip - k : 0, end - k < PIECE ? end - k : PIECE, k - u->skip};
        if (kept)
            for (long r = 0; r < rows; r++)
                finite &= take_row(u, type, part, from + r * u->stride, codes + r * PIECE, scales + r, zeros + r);
        else
            for (long r = 0; r < rows; r += 2)
                finite &= requantize(type, part, from + r * u->stride, u->stride, rows - r < 2 ? 1 : 2,
                                     codes + r * PIECE, scales + r);
        if (!kept && rows % 2) memset(codes + rows * PIECE, 0, PIECE);
        const long size = part.last - part.first, at = (part.column + part.first) * GROUP;
        if (small)
            pack_group((char *)codes + part.first, PIECE, GROUP, size, packed + at / 2, 4, 1);
        else
            pack_group((char *)codes + part.first, PIECE, GROUP, size, packed + at, 4, 0);
    }
    return finite;
}

/* Takes groups of a type, which is a constant, until none is left. */
#define UNPACK(type, kept)                                \
    case type:                                            \
        while ((g = next_piece(team, groups)) < groups)   \
            finite &= unpack_group(u, type, kept, g);     \
        break;

static void unpack_share(void *what, team_t *team, long thread) {
    unpack_t *u = what;
    const long groups = (u->rows + GROUP - 1) / GROUP;
    int finite = 1;
    long g;
    switch (u->type) {
        UNPACK(Q8_0, 1)
        UNPACK(Q4_0, 1)
        UNPACK(Q4_K, 1)
        UNPACK(Q4_1, 0)
        UNPACK(Q5_0, 0)
        UNPACK(Q5_1, 0)
        UNPACK(Q2_K, 0)
        UNPACK(Q3_K, 0)
        UNPACK(Q5_K, 0)
        UNPACK(Q6_K, 0)
    }
    if (!finite) __atomic_store_n(&u->bad, 1, __ATOMIC_RELAXED);
    end_stream();
}

/* Write `rows` rows of m, of which the first is `row`, a multiple of 16; so is their number, unless they are the last.
 * They are blocks of a type, rows `stride` bytes apart; m begins with weight `skip` of the first, a multiple of m's
 * group. m has the format that the type's codes have: INT8, INT4 or K4; INT8 for all others. Returns 0 if a scale is
 * NaN or infinite, else 1. */
EXPORT long llama_unpack(const matrix_t *m, const void *raw, long stride, long type, long skip, long row, long rows,
                         long threads) {
    unpack_t u = {m, raw, stride, skip, row, rows, (int)type, 0};
    run_team(unpack_share, &u, threads);
    return !u.bad;
}
