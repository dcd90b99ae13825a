/* Weights in float32 -> 4 bits, with scales that are searched for: k4 and int4 of kernels/quantized.py. quantizers.py
 * has the same in torch, operation by operation: the same codes and scales, bit for bit, on every level.
 *
 * A lane is a block of 32 weights x. Each weight counts with w = |x| + the block's mean |x|: an error on a large one
 * does more harm. For some scales around that which spans the block, x is rounded to codes q; for these the scale and
 * the offset with the least sum of w (x - weight)^2 have a closed form. The best of them is taken. */

#include "abi.h"
#include "team.h"
#include "vectors.h"

/* Weights of a block, and of k4's blocks that share d and e. A piece of work is 16 blocks. */
enum { BLOCK = 32, SUPER = 256, PIECE = GROUP * BLOCK };
/* Scales that are tried: so many on either side, a fifth of a code apart. */
enum { TRIES = 6 };
/* Smaller ranges are taken for 0: their inverse is no float. */
#define TINY 1e-30f

typedef struct {
    const float *x;
    uint8_t *codes;
    uint16_t *scales;
    uint8_t *zeros;
    long count;
} quantize_t;

/* The weights of one block in each lane, and how much each counts. */
typedef struct {
    vf x[BLOCK], w[BLOCK];
} lanes_t;

INLINE vf magnitude(vf v) { return (vf)((vi)v & 0x7fffffff); }

/* To the nearest integer, ties to even, within two integers. */
INLINE vf code_of(vf v, float least, float most) {
    const float shift = 12582912; /* 1.5 x 2^23 */
    return (smaller(larger(v, broadcast(least)), broadcast(most)) + shift) - shift;
}

INLINE vf inverse_of(vf v) { return choose(magnitude(v) > TINY, 1 / v, (vf){}); }

/* -> the mean |x| of each. */
static vf take(lanes_t *l, const float *from) {
    vf mean = {};
    for (int i = 0; i < BLOCK; i += LANES) {
        vu v[LANES];
        UNROLL for (int k = 0; k < LANES; k++) v[k] = load_bits(from + k * BLOCK + i);
        transpose(v);
        UNROLL for (int k = 0; k < LANES; k++) l->x[i + k] = (vf)v[k];
    }
    for (int i = 0; i < BLOCK; i++) mean += magnitude(l->x[i]);
    mean *= 1.0f / BLOCK;
    for (int i = 0; i < BLOCK; i++) l->w[i] = magnitude(l->x[i]) + mean;
    return mean;
}

static void give(uint8_t *to, const vf codes[BLOCK]) {
    for (int i = 0; i < BLOCK; i++)
        for (int k = 0; k < LANES; k++) to[k * BLOCK + i] = (uint8_t)(int)codes[i][k];
}

/* ---- k4 ---- */

/* x is about s q - m with 0 <= q <= 15 and m >= 0: s and m of each block. */
static void search_k4(const lanes_t *l, vf *scale, vf *offset) {
    vf low = {}, high = l->x[0], W = {}, Wx = {};
    for (int i = 0; i < BLOCK; i++) {
        low = smaller(low, l->x[i]), high = larger(high, l->x[i]);
        W += l->w[i], Wx += l->w[i] * l->x[i];
    }
    const vf range = high - low, unit = inverse_of(range);
    vf best = broadcast(-__builtin_inff());
    *scale = range * (1.0f / 15), *offset = -low;
    for (int t = -TRIES; t <= TRIES; t++) {
        const vf inverse = unit * (float)(15 + t / 5.0);
        vf Wq = {}, Wqq = {}, Wqx = {};
        for (int i = 0; i < BLOCK; i++) {
            const vf q = code_of((l->x[i] - low) * inverse, 0, 15), wq = l->w[i] * q;
            Wq += wq, Wqq += wq * q, Wqx += wq * l->x[i];
        }
        const vf D = W * Wqq - Wq * Wq, r = 1 / D;
        vf s = (W * Wqx - Wx * Wq) * r, m = (Wq * Wqx - Wqq * Wx) * r;
        const vi below = m < 0;
        s = choose(below, Wqx / Wqq, s), m = choose(below, (vf){}, m);
        const vf gain = s * Wqx - m * Wx; /* the less of the error */
        const vi better = (D > 0) & (s > 0) & (gain > best);
        best = choose(better, gain, best), *scale = choose(better, s, *scale), *offset = choose(better, m, *offset);
    }
}

/* The factor of 8 blocks' numbers, in float16, with which the largest becomes 63. */
static float factor_of(const float each[SUPER / BLOCK], uint16_t *half) {
    float top = each[0], wide[LANES];
    char some[2 * LANES];
    for (int i = 1; i < SUPER / BLOCK; i++) top = each[i] > top ? each[i] : top;
    narrow_f16(some, broadcast(top * (1.0f / 63)));
    store(wide, widen_f16(some));
    memcpy(half, some, sizeof(*half));
    return wide[0];
}

/* The whole numbers a and b beside the nearest ones that are best together, and the codes for them. */
static void refine_k4(const lanes_t *l, vf d, vf e, vf *a, vf *b, vf codes[BLOCK]) {
    const vf a0 = *a, b0 = *b;
    vf least = broadcast(__builtin_inff());
    for (int t = 0; t < 9; t++) { /* the nearest ones first */
        const vf a1 = code_of(a0 + (float)((t + 1) % 3 - 1), 0, 63), b1 = code_of(b0 + (float)((t / 3 + 1) % 3 - 1), 0, 63);
        const vf s = d * a1, m = e * b1, inverse = inverse_of(s);
        vf error = {};
        for (int i = 0; i < BLOCK; i++) {
            const vf q = code_of((l->x[i] + m) * inverse, 0, 15), off = (s * q - m) - l->x[i];
            error += (l->w[i] * off) * off;
        }
        const vi better = error < least;
        least = choose(better, error, least), *a = choose(better, a1, *a), *b = choose(better, b1, *b);
    }
    const vf m = e * *b, inverse = inverse_of(d * *a);
    for (int i = 0; i < BLOCK; i++) codes[i] = code_of((l->x[i] + m) * inverse, 0, 15);
}

/* 16 blocks, of which `supers` times 8 are there. */
static void k4_piece(const quantize_t *q, long piece) {
    const long first = piece * PIECE / SUPER;
    const int supers = q->count - first < PIECE / SUPER ? (int)(q->count - first) : PIECE / SUPER;
    lanes_t l[VECTORS];
    float x[PIECE] = {0}, scale[GROUP], offset[GROUP], d[GROUP], e[GROUP], mean[GROUP];
    uint8_t codes[PIECE], zeros[2 * GROUP];
    memcpy(x, q->x + first * SUPER, supers * SUPER * sizeof(float));
    for (int v = 0; v < VECTORS; v++) {
        vf s, m;
        store(mean + v * LANES, take(&l[v], x + v * LANES * BLOCK));
        search_k4(&l[v], &s, &m);
        store(scale + v * LANES, s), store(offset + v * LANES, m);
    }
    for (int i = 0; i < GROUP; i += SUPER / BLOCK) {
        uint16_t half[2];
        const float ds = factor_of(scale + i, half), es = factor_of(offset + i, half + 1);
        for (int k = 0; k < SUPER / BLOCK; k++) d[i + k] = ds, e[i + k] = es;
        if (i < supers * SUPER / BLOCK) memcpy(q->scales + 2 * (first + i * BLOCK / SUPER), half, sizeof(half));
    }
    for (int v = 0; v < VECTORS; v++) {
        const vf ds = load(d + v * LANES), es = load(e + v * LANES);
        vf a = code_of(load(scale + v * LANES) * inverse_of(ds), 0, 63);
        vf b = code_of(load(offset + v * LANES) * inverse_of(es), 0, 63), found[BLOCK];
        refine_k4(&l[v], ds, es, &a, &b, found);
        give(codes + v * LANES * BLOCK, found);
        for (int k = 0; k < LANES; k++) {
            zeros[2 * (v * LANES + k)] = (uint8_t)(int)a[k];
            zeros[2 * (v * LANES + k) + 1] = (uint8_t)(int)b[k];
        }
    }
    memcpy(q->codes + first * SUPER, codes, supers * SUPER);
    memcpy(q->zeros + first * 2 * SUPER / BLOCK, zeros, supers * 2 * SUPER / BLOCK);
    for (int i = 0; i < supers * SUPER / BLOCK; i++)
        if (!(mean[i] - mean[i] == 0)) { /* a NaN or infinity */
            const long at = first + i * BLOCK / SUPER;
            q->scales[2 * at] = q->scales[2 * at + 1] = 0x7e00;
            memset(q->codes + at * SUPER, 0, SUPER);
            memset(q->zeros + at * 2 * SUPER / BLOCK, 0, 2 * SUPER / BLOCK);
        }
}

/* ---- int4 ---- */

/* x is about s q with -8 <= q <= 7: s of each block. The number of largest magnitude becomes -8, or nearly. */
static vf search_int4(const lanes_t *l) {
    vf most = l->x[0];
    for (int i = 1; i < BLOCK; i++) most = choose(magnitude(l->x[i]) > magnitude(most), l->x[i], most);
    const vf unit = inverse_of(most);
    vf best = broadcast(-__builtin_inff()), scale = most * -0.125f;
    for (int t = -TRIES; t <= TRIES; t++) {
        const vf inverse = unit * -(float)(8 + t / 5.0);
        vf Wqq = {}, Wqx = {};
        for (int i = 0; i < BLOCK; i++) {
            const vf q = code_of(l->x[i] * inverse, -8, 7), wq = l->w[i] * q;
            Wqq += wq * q, Wqx += wq * l->x[i];
        }
        const vf s = Wqx / Wqq, gain = s * Wqx;
        const vi better = (Wqq > 0) & (gain > best);
        best = choose(better, gain, best), scale = choose(better, s, scale);
    }
    return scale;
}

static void int4_piece(const quantize_t *q, long piece) {
    const long first = piece * GROUP;
    const int blocks = q->count - first < GROUP ? (int)(q->count - first) : GROUP;
    lanes_t l;
    float x[PIECE] = {0}, mean[LANES];
    uint8_t codes[PIECE];
    uint16_t scales[GROUP];
    memcpy(x, q->x + first * BLOCK, blocks * BLOCK * sizeof(float));
    for (int v = 0; v < VECTORS; v++) {
        uint16_t *half = scales + v * LANES;
        vf found[BLOCK];
        store(mean, take(&l, x + v * LANES * BLOCK));
        narrow_f16(half, search_int4(&l));
        const vf inverse = inverse_of(widen_f16(half));
        for (int i = 0; i < BLOCK; i++) found[i] = code_of(l.x[i] * inverse, -8, 7) + 8;
        give(codes + v * LANES * BLOCK, found);
        for (int k = 0; k < LANES; k++)
            if (!(mean[k] - mean[k] == 0)) { /* a NaN or infinity */
                half[k] = 0x7e00;
                memset(codes + (v * LANES + k) * BLOCK, 8, BLOCK);
            }
    }
    memcpy(q->codes + first * BLOCK, codes, blocks * BLOCK);
    memcpy(q->scales + first, scales, blocks * sizeof(*scales));
}

static void k4_share(void *what, team_t *team, long thread) {
    const quantize_t *q = what;
    const long pieces = (q->count * SUPER + PIECE - 1) / PIECE;
    for (long i = share(pieces, thread, team->threads); i < share(pieces, thread + 1, team->threads); i++)
        k4_piece(q, i);
}

static void int4_share(void *what, team_t *team, long thread) {
    const quantize_t *q = what;
    const long pieces = (q->count + GROUP - 1) / GROUP;
    for (long i = share(pieces, thread, team->threads); i < share(pieces, thread + 1, team->threads); i++)
        int4_piece(q, i);
}

/* `count` times 256 weights -> codes (count, 256), scales (count, 2): d and e, zeros (count, 8, 2): a and b. A NaN or
 * infinity makes d and e NaN. */
EXPORT void llama_quantize_k4(const float *x, uint8_t *codes, uint16_t *scales, uint8_t *zeros, long count,
                              long threads) {
    quantize_t q = {x, codes, scales, zeros, count};
    run_team(k4_share, &q, threads);
}

/* `count` times 32 weights -> codes (count, 32), scales (count). A NaN or infinity makes its scale NaN. */
EXPORT void llama_quantize_int4(const float *x, uint8_t *codes, uint16_t *scales, long count, long threads) {
    quantize_t q = {x, codes, scales, 0, count};
    run_team(int4_share, &q, threads);
}
