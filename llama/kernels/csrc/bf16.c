/* The Transformer's layers in bfloat16 on CPUs with AVX512-BF16: matrix products, norms, rotary positions,
 * and whole layers in one call (at the end). Attention is in attention.c.
 *
 * Matrix products: y = x W^T for any number of rows of x. W (out, in) is packed once into groups of 16
 * outputs, in pairs of inputs: packed[g][k / 2][16][2]. One 64-byte load then feeds one dot-product
 * instruction for 16 outputs, nothing is summed across lanes, and one row of x reads W as one stream at the
 * speed of memory. A panel of 4 groups stays in the second-level cache while the rows of x pass over it 6 at
 * a time, which keeps 24 sums in registers. Products of two bfloat16 are summed in float32.
 *
 * The OpenMP symbols are left undefined on purpose: they resolve to the runtime that torch has loaded, so
 * that there is one pool of threads.
 */

#include <math.h>
#include <omp.h>
#include <sched.h>
#include <stdint.h>
#include <string.h>

#include "attention.h"
#include "vectors.h"

/* FEW: up to so many rows, starting threads costs more time than they save. SPINS: about 100 microseconds. */
enum { GROUPS = 4, ROWS = 6, FEW = 8, SPINS = 20000 };

/* Raise it, here and in native.py, with every change of a symbol, a signature or the packed layout in any of
 * these files. */
int llama_abi(void) { return 8; }

/* Whether this CPU runs this file, attention.c and rows.c. ranks.c runs on any. */
int llama_supported(void) {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512bf16");
}

/* Transpose 16 rows of 16 pairs, `stride` elements apart, into 16 columns of 16 pairs, contiguous. */
TARGET INLINE void transpose(const uint16_t *w, long stride, uint16_t *to) {
    __m512i r[LANES], t[LANES];
    for (int i = 0; i < LANES; i++) r[i] = _mm512_loadu_si512(w + i * stride);
    for (int i = 0; i < LANES; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < LANES; i += 4)
        for (int j = 0; j < 2; j++) {
            r[i + 2 * j] = _mm512_unpacklo_epi64(t[i + j], t[i + 2 + j]);
            r[i + 2 * j + 1] = _mm512_unpackhi_epi64(t[i + j], t[i + 2 + j]);
        }
    /* Now r[4 q + c] has, in its 128-bit part p, rows 4 q to 4 q + 3 of column 4 p + c. */
    for (int c = 0; c < 4; c++) {
        const __m512i a = _mm512_shuffle_i32x4(r[c], r[4 + c], 0x88), b = _mm512_shuffle_i32x4(r[c], r[4 + c], 0xdd);
        const __m512i d = _mm512_shuffle_i32x4(r[8 + c], r[12 + c], 0x88);
        const __m512i e = _mm512_shuffle_i32x4(r[8 + c], r[12 + c], 0xdd);
        /* Stores bypass the caches: packed weights are read much later. */
        _mm512_stream_si512((void *)(to + (0 + c) * 2 * LANES), _mm512_shuffle_i32x4(a, d, 0x88));
        _mm512_stream_si512((void *)(to + (4 + c) * 2 * LANES), _mm512_shuffle_i32x4(b, e, 0x88));
        _mm512_stream_si512((void *)(to + (8 + c) * 2 * LANES), _mm512_shuffle_i32x4(a, d, 0xdd));
        _mm512_stream_si512((void *)(to + (12 + c) * 2 * LANES), _mm512_shuffle_i32x4(b, e, 0xdd));
    }
}

/* Pack a block w (rows, columns), its rows `stride` elements apart, into a W of `in` inputs. `packed` points
 * to where the block begins: at a multiple of 16 outputs and 2 inputs, aligned to 64 bytes. `columns` is
 * even. In the last group of 16 outputs, those past `rows` become zero. */
TARGET void llama_bf16_pack(const uint16_t *w, uint16_t *packed, long stride, long in, long rows, long columns,
                            int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long first = 0; first < rows; first += LANES) {
        const uint16_t *from = w + first * stride;
        uint16_t *to = packed + first * in;
        long k = 0;
        if (first + LANES <= rows)
            for (; k + 2 * LANES <= columns; k += 2 * LANES) transpose(from + k, stride, to + k * LANES);
        for (; k < columns; k += 2)
            for (long i = 0; i < LANES; i++)
                if (first + i < rows)
                    memcpy(to + k * LANES + 2 * i, from + i * stride + k, 4);
                else
                    memset(to + k * LANES + 2 * i, 0, 4);
        _mm_sfence();
    }
}

/* One panel times `rows` rows. The counts are constants at every call, so that the compiler unrolls the loops
 * and keeps the sums in registers. `width` is the number of outputs that exist. */
TARGET INLINE void tile(const uint16_t *w, const uint16_t *x, uint16_t *y, long in, long out, long width, int groups,
                        int rows) {
    __m512 sum[ROWS][GROUPS];
    for (int r = 0; r < rows; r++)
        for (int g = 0; g < groups; g++) sum[r][g] = _mm512_setzero_ps();
    for (long k = 0; k < in; k += 2) {
        __m512bh wv[GROUPS];
        for (int g = 0; g < groups; g++) wv[g] = (__m512bh)_mm512_loadu_epi16(w + (g * in + k) * LANES);
        for (int r = 0; r < rows; r++) {
            int32_t pair;
            memcpy(&pair, x + r * in + k, 4);
            const __m512bh xv = (__m512bh)_mm512_set1_epi32(pair);
            for (int g = 0; g < groups; g++) sum[r][g] = _mm512_dpbf16_ps(sum[r][g], wv[g], xv);
        }
    }
    for (int r = 0; r < rows; r++)
        for (int g = 0; g < groups; g++) {
            const long left = width - g * LANES;
            const __mmask16 mask = left >= LANES ? 0xffff : left > 0 ? (1u << left) - 1 : 0;
            _mm256_mask_storeu_epi16(y + r * out + g * LANES, mask, (__m256i)_mm512_cvtneps_pbh(sum[r][g]));
        }
}

TARGET INLINE void panel(const uint16_t *w, const uint16_t *x, uint16_t *y, long rows, long in, long out, long width,
                         int groups) {
    /* 8 rows are split into 4 and 4, not 6 and 2: a tile of few rows waits for its loads. */
    for (long tiles = (rows + ROWS - 1) / ROWS; tiles > 0; tiles--) {
        const long now = (rows + tiles - 1) / tiles;
        switch (now) {
            case 6: tile(w, x, y, in, out, width, groups, 6); break;
            case 5: tile(w, x, y, in, out, width, groups, 5); break;
            case 4: tile(w, x, y, in, out, width, groups, 4); break;
            case 3: tile(w, x, y, in, out, width, groups, 3); break;
            case 2: tile(w, x, y, in, out, width, groups, 2); break;
            default: tile(w, x, y, in, out, width, groups, 1);
        }
        rows -= now, x += now * in, y += now * out;
    }
}

TARGET static void any_panel(const uint16_t *w, const uint16_t *x, uint16_t *y, long rows, long in, long out,
                             long width) {
    if (width > 3 * LANES)
        panel(w, x, y, rows, in, out, width, 4);
    else if (width > 2 * LANES)
        panel(w, x, y, rows, in, out, width, 3);
    else if (width > LANES)
        panel(w, x, y, rows, in, out, width, 2);
    else
        panel(w, x, y, rows, in, out, width, 1);
}

/* x (rows, in), contiguous, times the packed W -> y (rows, out). */
void llama_bf16_linear(const uint16_t *x, const uint16_t *packed, uint16_t *y, long rows, long in, long out,
                       int threads) {
    const long step = GROUPS * LANES;
/* Threads take panels as they become free: with fixed shares, all would wait for a core that another program
 * uses too. */
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
    for (long first = 0; first < out; first += step)
        any_panel(packed + first * in, x, y + first, rows, in, out, out - first < step ? out - first : step);
}

/* ---- between the matrix products: norms and rotary positions ---- */

/* y = bfloat16(x / rms(x)) * weight, rounded as the PyTorch code in norms.py does; n is a multiple of 16. */
TARGET static void norm(const uint16_t *x, const uint16_t *weight, uint16_t *y, long n, float eps) {
    __m512 squares = _mm512_setzero_ps();
    for (long i = 0; i < n; i += LANES) {
        const __m512 v = widen(x + i);
        squares = _mm512_fmadd_ps(v, v, squares);
    }
    const __m512 mean = _mm512_set1_ps(_mm512_reduce_add_ps(squares) / (float)n + eps);
    const __m512 scale = _mm512_div_ps(_mm512_set1_ps(1), _mm512_sqrt_ps(mean));
    for (long i = 0; i < n; i += LANES)
        narrow(y + i, _mm512_mul_ps(rounded(_mm512_mul_ps(widen(x + i), scale)), widen(weight + i)));
}

void llama_bf16_rms_norm(const uint16_t *x, const uint16_t *weight, uint16_t *y, long rows, long n, float eps,
                         int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (rows > FEW)
    for (long r = 0; r < rows; r++) norm(x + r * n, weight, y + r * n, n, eps);
}

TARGET static void rotate(uint16_t *x, const float *table, long heads, long dim) {
    for (long h = 0; h < heads; h++, x += dim)
        for (long i = 0; i < dim; i += LANES) {
            const __m512 v = widen(x + i), t = _mm512_loadu_ps(table + i);
            const __m512 cosine = _mm512_moveldup_ps(t), sine = _mm512_movehdup_ps(t);
            const __m512 swapped = _mm512_permute_ps(v, 0xb1);
            /* even: a cos - b sin; odd: b cos + a sin */
            narrow(x + i, _mm512_fmaddsub_ps(v, cosine, _mm512_mul_ps(swapped, sine)));
        }
}

/* Turn the pairs (2j, 2j + 1) of each head (rows, heads, dim) in place; dim is a multiple of 16.
 * table: (cos, sin) for each pair of a row. */
void llama_bf16_rotate(uint16_t *x, const float *table, long rows, long heads, long dim, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (rows > FEW)
    for (long r = 0; r < rows; r++) rotate(x + r * heads * dim, table + r * dim, heads, dim);
}

/* ---- whole layers for up to 128 rows, in one parallel region; called by fused_call.py ---- */

typedef struct {
    const uint16_t *attention_norm, *wq, *wk, *wv, *wo, *ffn_norm, *w1, *w3, *w2; /* matrices are packed */
} layer_t;

/* Keys and values of a row's sequence, (kv_heads, capacity, dim). */
typedef struct {
    uint16_t *keys, *values;
} cache_t;

typedef struct {
    long rows, width, heads, kv_heads, dim, hidden, threads; /* width of the model, hidden of its FFN */
    float eps, scale;
    const float *table;              /* (rows, dim): cos and sin of each pair at the row's position */
    const long *capacity, *position; /* of each row */
    long room;                       /* floats of a thread's scores: a multiple of 16, above any position */
    /* Work space: */
    uint16_t *normed;                /* (threads, rows, width) if rows <= FEW, else (rows, width) */
    uint16_t *q, *k, *v, *attended, *gated, *out; /* out: (rows, width) */
    float *score;                    /* (threads, room) */
} step_t;

/* A barrier for waits of a few microseconds. Cheaper than OpenMP's, which soon sleeps. A thread that waits
 * for a peer which lost its core yields its own core instead of spinning on. */
typedef struct {
    int arrived, round, threads;
    long next; /* the first piece of work since the last barrier that no thread has taken */
} barrier_t;

/* The next piece of work between two barriers. Threads take pieces as they become free, as above. */
static long next_piece(barrier_t *b) { return __atomic_fetch_add(&b->next, 1, __ATOMIC_RELAXED); }

static void wait_all(barrier_t *b) {
    const int round = __atomic_load_n(&b->round, __ATOMIC_RELAXED);
    if (__atomic_add_fetch(&b->arrived, 1, __ATOMIC_ACQ_REL) == b->threads) {
        __atomic_store_n(&b->arrived, 0, __ATOMIC_RELAXED);
        __atomic_store_n(&b->next, 0, __ATOMIC_RELAXED);
        __atomic_store_n(&b->round, round + 1, __ATOMIC_RELEASE);
        return;
    }
    for (long spins = 0; __atomic_load_n(&b->round, __ATOMIC_ACQUIRE) == round; spins++)
        if (spins < SPINS)
            _mm_pause();
        else
            sched_yield();
}

INLINE long share(long count, long i, long n) { return count * i / n; }

/* Compute the norm of all rows -> where this thread reads it. */
TARGET static const uint16_t *normed(const step_t *s, const uint16_t *x, const uint16_t *weight, long thread,
                                     long threads, barrier_t *barrier) {
    if (s->rows <= FEW) { /* every thread computes all of it for itself, which is cheaper than a barrier */
        uint16_t *mine = s->normed + thread * s->rows * s->width;
        for (long r = 0; r < s->rows; r++) norm(x + r * s->width, weight, mine + r * s->width, s->width, s->eps);
        return mine;
    }
    for (long r = share(s->rows, thread, threads); r < share(s->rows, thread + 1, threads); r++)
        norm(x + r * s->width, weight, s->normed + r * s->width, s->width, s->eps);
    wait_all(barrier);
    return s->normed;
}

INLINE long panels(long out) { return (out + GROUPS * LANES - 1) / (GROUPS * LANES); }

/* Panel `index` of x W^T. */
TARGET static void one_panel(const uint16_t *x, const uint16_t *packed, uint16_t *y, long rows, long in, long out,
                             long index) {
    const long step = GROUPS * LANES, first = index * step;
    any_panel(packed + first * in, x, y + first, rows, in, out, out - first < step ? out - first : step);
}

/* Pieces of x W^T, added to `residual` (rows, out) if there is one, else stored in y. */
TARGET static void product(const step_t *s, const uint16_t *x, const uint16_t *packed, uint16_t *y,
                           uint16_t *residual, long in, long out, barrier_t *barrier) {
    const long count = panels(out), step = GROUPS * LANES;
    for (long i; (i = next_piece(barrier)) < count;) {
        one_panel(x, packed, y, s->rows, in, out, i);
        const long first = i * step, last = first + step < out ? first + step : out;
        if (residual)
            for (long r = 0; r < s->rows; r++)
                for (long c = r * out + first; c < r * out + last; c += LANES)
                    narrow(residual + c, _mm512_add_ps(widen(residual + c), widen(y + c)));
    }
}

/* Attention of each row to its sequence -> s->attended. Queries of one sequence that share a key head (rows
 * of a draft or a chunk, heads of a group) run together, each in a lane, where there are enough of them. */
TARGET static void attend_rows(const step_t *s, const cache_t *caches, long thread, barrier_t *barrier) {
    const long query = s->heads * s->dim, group = s->heads / s->kv_heads;
    long item = 0, mine = next_piece(barrier);
    for (long first = 0, rows; first < s->rows; first += rows) {
        for (rows = 1; first + rows < s->rows && caches[first + rows].keys == caches[first].keys;) rows++;
        const long all = rows * group, start = s->position[first];
        for (long h = 0; h < s->kv_heads; h++) {
            const long at = h * s->capacity[first] * s->dim;
            const uint16_t *keys = caches[first].keys + at, *values = caches[first].values + at;
            const uint16_t *q = s->q + first * query + h * group * s->dim;
            uint16_t *attended = s->attended + first * query + h * group * s->dim;
            if (all < LANES_PAY || s->dim > DEEP) {
                for (long i = 0; i < all; i++, item++)
                    if (item == mine) {
                        const long to = i / group * query + i % group * s->dim;
                        llama_attend_query(q + to, keys, values, attended + to, s->score + thread * s->room,
                                           start + i / group + 1, s->dim, s->scale);
                        mine = next_piece(barrier);
                    }
            } else {
                const long tile = llama_tile_size(all, s->kv_heads, s->threads);
                for (long i = 0; i < all; i += tile, item++)
                    if (item == mine) {
                        llama_attend_tile(q, keys, values, attended, i, all - i < tile ? all - i : tile, group, query,
                                          s->dim, start, s->scale);
                        mine = next_piece(barrier);
                    }
            }
        }
    }
}

TARGET static void attention(const step_t *s, const layer_t *w, const cache_t *caches, uint16_t *x, int add,
                             long thread, long threads, barrier_t *barrier) {
    const long query = s->heads * s->dim, key = s->kv_heads * s->dim, group = s->heads / s->kv_heads;
    const uint16_t *in = normed(s, x, w->attention_norm, thread, threads, barrier);
    const long nq = panels(query), nk = panels(key), all = nq + 2 * nk;
    for (long i; (i = next_piece(barrier)) < all;)
        if (i < nq)
            one_panel(in, w->wq, s->q, s->rows, s->width, query, i);
        else if (i < nq + nk)
            one_panel(in, w->wk, s->k, s->rows, s->width, key, i - nq);
        else
            one_panel(in, w->wv, s->v, s->rows, s->width, key, i - nq - nk);
    wait_all(barrier);
    const long stores = s->rows * s->kv_heads;
    for (long i; (i = next_piece(barrier)) < stores;) {
        const long r = i / s->kv_heads, h = i % s->kv_heads;
        const long at = (h * s->capacity[r] + s->position[r]) * s->dim;
        const float *table = s->table + r * s->dim;
        rotate(s->q + r * query + h * group * s->dim, table, group, s->dim);
        rotate(s->k + r * key + h * s->dim, table, 1, s->dim);
        memcpy(caches[r].keys + at, s->k + r * key + h * s->dim, s->dim * sizeof(uint16_t));
        memcpy(caches[r].values + at, s->v + r * key + h * s->dim, s->dim * sizeof(uint16_t));
    }
    wait_all(barrier);
    /* Rows of one sequence see each other's keys, so all are stored before any is read. */
    attend_rows(s, caches, thread, barrier);
    wait_all(barrier);
    product(s, s->attended, w->wo, s->out, add ? x : 0, query, s->width, barrier);
}

TARGET static void feed_forward(const step_t *s, const layer_t *w, uint16_t *x, int add, long thread, long threads,
                                barrier_t *barrier) {
    const uint16_t *in = normed(s, x, w->ffn_norm, thread, threads, barrier);
    const long step = GROUPS * LANES, count = panels(s->hidden);
    uint16_t up[s->rows * step];
    for (long i; (i = next_piece(barrier)) < count;) {
        const long first = i * step, width = s->hidden - first < step ? s->hidden - first : step;
        one_panel(in, w->w1, s->gated, s->rows, s->width, s->hidden, i);
        any_panel(w->w3 + first * s->width, in, up, s->rows, s->width, step, width);
        for (long r = 0; r < s->rows; r++)
            for (long c = 0; c < width; c += LANES) {
                uint16_t *gate = s->gated + r * s->hidden + first + c;
                const __m512 g = widen(gate), one = _mm512_set1_ps(1);
                /* silu(g) = g / (1 + e^-g), written with e^-|g|: `exponential` takes x <= 0. */
                const __m512 negated = _mm512_sub_ps(_mm512_setzero_ps(), _mm512_abs_ps(g));
                const __m512 e = exponential(_mm512_max_ps(_mm512_set1_ps(-100), negated)); /* keeps NaN */
                const __mmask16 negative = _mm512_cmp_ps_mask(g, _mm512_setzero_ps(), _CMP_LT_OQ);
                const __m512 top = _mm512_mask_mov_ps(one, negative, e);
                const __m512 silu = _mm512_div_ps(_mm512_mul_ps(g, top), _mm512_add_ps(one, e));
                narrow(gate, _mm512_mul_ps(rounded(silu), widen(up + r * step + c)));
            }
    }
    wait_all(barrier);
    product(s, s->gated, w->w2, s->out, add ? x : 0, s->hidden, s->width, barrier);
}

/* Take rows x (rows, width) through layers. `part` 0: whole layers, in place. 1, 2: the attention or the
 * feed-forward of one layer without its residual, into s->out, for ranks to sum. caches: (layers, rows). */
TARGET void llama_bf16_layers(const step_t *s, const layer_t *layer, const cache_t *caches, uint16_t *x, long layers,
                              long part) {
    barrier_t shared = {0, 0, 1, 0}, *barrier = &shared;
#pragma omp parallel num_threads(s->threads)
    {
        const long thread = omp_get_thread_num(), threads = omp_get_num_threads();
#pragma omp single
        barrier->threads = (int)threads; /* all wait here until it is set */
        for (long i = 0; i < layers; i++) {
            if (part != 2) attention(s, layer + i, caches + i * s->rows, x, part == 0, thread, threads, barrier);
            if (part == 0) wait_all(barrier);
            if (part != 1) feed_forward(s, layer + i, x, part == 0, thread, threads, barrier);
            if (part == 0) wait_all(barrier);
        }
    }
}
