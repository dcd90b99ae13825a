/* The Transformer's layers for a step of few rows, all in one call; fused_call.py calls it. Products, norms, rotary
 * positions and attention are those of the other files, and round where the modules of model.py do. Matrices may be
 * in different formats. */

#include "layers.h"

#include "cached.h"
#include "norms.h"

/* FEW: up to so many rows, every thread computes their norm, and the form that the tiles take, for itself, which is
 * cheaper than a barrier. */
enum { FEW = 8 };

/* A step under way. Rows are of its dtype; `formed` is what the tiles read of them. */
typedef struct {
    const step_t *s;
    const layer_t *layers;
    void *store;
    long count, part;
    heads_t heads;
    char *normed, *q, *k, *v, *attended, *gated, *formed;
    float *score;
} work_layers_t;

/* ---- work space ---- */

/* Products with the same rows: at most so many. */
enum { TOGETHER = 3 };

/* The first of `m` whose form of the rows the i-th takes too: itself, if none before it does, and -1 if it takes them
 * as they are. */
INLINE int formed_by(const matrix_t *const *m, int i, int dtype) {
    if (is_form(m[i], dtype)) return -1;
    int first = 0;
    while (!same_form(m[first], m[i], dtype)) first++;
    return first;
}

INLINE long copies(const step_t *s) { return s->rows <= FEW ? s->threads : 1; }

/* Bytes of a row in all forms that these matrices take, beside what it is. */
static long forms_row(const matrix_t *const *m, int n, int dtype) {
    long bytes = 0;
    for (int i = 0; i < n; i++) bytes += formed_by(m, i, dtype) == i ? form_row(m[i], dtype) : 0;
    return bytes;
}

/* Bytes of a row in all forms that are there at a time, in any of these layers: `formed` of their steps. */
EXPORT long llama_layers_formed(const layer_t *layers, long count, long dtype) {
    long most = 0;
    for (const layer_t *l = layers; l < layers + count; l++) {
        const matrix_t *m[] = {&l->wq, &l->wk, &l->wv, &l->wo, &l->w1, &l->w3, &l->w2};
        const long some[] = {forms_row(m, 3, (int)dtype), forms_row(m + 3, 1, (int)dtype),
                             forms_row(m + 4, 2, (int)dtype), forms_row(m + 6, 1, (int)dtype)};
        for (int i = 0; i < 4; i++) most = some[i] > most ? some[i] : most;
    }
    return most;
}

static char *take(char **at, long bytes) {
    char *from = *at;
    *at += (bytes + 63) / 64 * 64;
    return from;
}

/* Lay out the work space from `at` on -> its end. */
static char *lay_out(work_layers_t *w, char *at) {
    const step_t *s = w->s;
    const long row = s->rows * size_of((int)s->dtype);
    w->normed = take(&at, copies(s) * row * s->width);
    w->q = take(&at, row * s->heads * s->dim);
    w->k = take(&at, row * s->kv_heads * s->dim);
    w->v = take(&at, row * s->kv_heads * s->dim);
    w->attended = take(&at, row * s->heads * s->dim);
    w->gated = take(&at, row * s->hidden);
    w->formed = take(&at, copies(s) * s->rows * s->formed);
    w->score = (float *)take(&at, s->threads * s->room * 4);
    return at;
}

/* Bytes of work space for steps of this shape. */
EXPORT long llama_layers_space(const step_t *s) {
    work_layers_t w = {.s = s};
    return (long)(uintptr_t)lay_out(&w, 0);
}

/* ---- inputs of products ---- */

/* Rows as each of the matrices takes them that are multiplied by them. */
typedef struct {
    rows_t of[TOGETHER];
} input_t;

/* The input of `n` matrices: x as it is, or in the form that a matrix takes; one form for those that take the same. */
static input_t input_of(const work_layers_t *w, const char *x, const matrix_t *const *m, int n, long thread,
                        team_t *team) {
    const step_t *s = w->s;
    const int dtype = (int)s->dtype, few = s->rows <= FEW;
    const long first = few ? 0 : share(s->rows, thread, team->threads);
    const long last = few ? s->rows : share(s->rows, thread + 1, team->threads);
    char *to = w->formed + (few ? thread * s->rows * s->formed : 0);
    input_t input;
    int formed = 0;
    for (int i = 0; i < n; i++) {
        const int by = formed_by(m, i, dtype);
        if (by < 0)
            input.of[i] = (rows_t){x, m[i]->columns * size_of(dtype)};
        else if (by < i)
            input.of[i] = input.of[by];
        else {
            const long row = form_row(m[i], dtype);
            to_form(m[i], dtype, x, s->rows, first, last, to);
            input.of[i] = (rows_t){to, row};
            to += s->rows * row;
            formed = 1;
        }
    }
    if (formed && !few) wait_all(team);
    return input;
}

/* The norm of all rows of x -> where this thread reads it. */
static const char *normed(const work_layers_t *w, const void *weight, long thread, team_t *team) {
    const step_t *s = w->s;
    const int dtype = (int)s->dtype, few = s->rows <= FEW;
    char *to = w->normed + (few ? thread * s->rows * s->width * size_of(dtype) : 0);
    const long first = few ? 0 : share(s->rows, thread, team->threads);
    const long last = few ? s->rows : share(s->rows, thread + 1, team->threads);
    for (long r = first; r < last; r++)
        norm_row(dtype, at(s->x, r * s->width, dtype), weight, at(to, r * s->width, dtype), s->width, s->eps);
    if (!few) wait_all(team);
    return to;
}

static void sums_of(const work_layers_t *w, rows_t x, const matrix_t *m, long panel, float *sums) {
    panel_sums(m, x, w->s->rows, (int)w->s->dtype, panel, sums);
}

/* ---- what becomes of a panel's sums ---- */

INLINE void add_panel(int dtype, const float *sums, char *x, long rows, long out, long width) {
    for (long r = 0; r < rows; r++)
        for (long i = 0; i < width; i += LANES) {
            const vf before = get_some(dtype, x, r * out + i, width - i, 0);
            put_some(dtype, x, r * out + i, before + rounded(dtype, load(sums + r * PANEL + i)), width - i);
        }
}

/* silu(gate) up: g / (1 + e^-g) is written with e^-|g|, since `exponential` takes x <= 0. */
INLINE void gate_panel(int dtype, const float *gates, const float *ups, char *y, long rows, long out, long width) {
    for (long r = 0; r < rows; r++)
        for (long i = 0; i < width; i += LANES) {
            const vf g = rounded(dtype, load(gates + r * PANEL + i)), up = rounded(dtype, load(ups + r * PANEL + i));
            const vf e = exponential(choose(g < 0, g, -g)), one = broadcast(1);
            const vf silu = g * choose(g < 0, e, one) / (one + e);
            put_some(dtype, y, r * out + i, rounded(dtype, silu) * up, width - i);
        }
}

/* x W^T -> added to the rows of the step, or stored in out. */
static void finish(const work_layers_t *w, const char *x, const matrix_t *m, long thread, team_t *team, float *sums) {
    const step_t *s = w->s;
    const int dtype = (int)s->dtype;
    const input_t input = input_of(w, x, &m, 1, thread, team);
    for (long panel; (panel = next_piece(team, panels_of(m))) < panels_of(m);) {
        sums_of(w, input.of[0], m, panel, sums);
        char *y = at(w->part ? s->out : s->x, panel * PANEL, dtype);
        if (w->part)
            FOR_DTYPE(dtype, put_panel, sums, y, s->rows, m->out, width_of(m, panel));
        else
            FOR_DTYPE(dtype, add_panel, sums, y, s->rows, m->out, width_of(m, panel));
    }
}

/* ---- a layer ---- */

/* The keys of layer i, or its values: two of as many rows of each layer, one behind the other. */
static void *stored(const work_layers_t *w, long i, int values) {
    const heads_t *h = &w->heads;
    return cached(w->store, (2 * i + values) * h->kv_heads * h->positions * h->dim, h->cache);
}

/* Turn queries and keys, and store keys and values. */
static void turn_and_store(const work_layers_t *w, void *keys, void *values, team_t *team) {
    const step_t *s = w->s;
    const heads_t *h = &w->heads;
    const long group = h->heads / h->kv_heads, query = h->heads * h->dim, key = h->kv_heads * h->dim;
    for (long i; (i = next_piece(team, s->rows * h->kv_heads)) < s->rows * h->kv_heads;) {
        const long r = i / h->kv_heads, head = i % h->kv_heads;
        const float *table = s->rotary + r * h->dim;
        char *k = at(w->k, r * key, h->dtype), *v = at(w->v, r * key, h->dtype);
        rotate_row(h->dtype, at(w->q, r * query + head * group * h->dim, h->dtype), table, group, h->dim);
        rotate_row(h->dtype, at(k, head * h->dim, h->dtype), table, 1, h->dim);
        store_token(h, k, v, keys, values, s->parts.slots[r], head);
    }
}

static void attention(const work_layers_t *w, long layer, long thread, team_t *team, float *sums) {
    const step_t *s = w->s;
    const layer_t *l = w->layers + layer;
    void *keys = stored(w, layer, 0), *values = stored(w, layer, 1);
    const int dtype = (int)s->dtype;
    const matrix_t *m[] = {&l->wq, &l->wk, &l->wv};
    char *to[] = {w->q, w->k, w->v};
    const input_t input = input_of(w, normed(w, l->attention_norm, thread, team), m, 3, thread, team);
    const long all = panels_of(m[0]) + panels_of(m[1]) + panels_of(m[2]);
    for (long i; (i = next_piece(team, all)) < all;) {
        int which = 0;
        long panel = i;
        while (panel >= panels_of(m[which])) panel -= panels_of(m[which++]);
        sums_of(w, input.of[which], m[which], panel, sums);
        char *y = at(to[which], panel * PANEL, dtype);
        FOR_DTYPE(dtype, put_panel, sums, y, s->rows, m[which]->out, width_of(m[which], panel));
    }
    wait_all(team);
    turn_and_store(w, keys, values, team);
    /* Rows of one sequence see each other's keys, so all are stored before any is read. */
    wait_all(team);
    attend_parts(&w->heads, &s->parts, w->q, keys, values, w->attended, team, w->score + thread * s->room);
    wait_all(team);
    finish(w, w->attended, &l->wo, thread, team, sums);
}

static void feed_forward(const work_layers_t *w, const layer_t *l, long thread, team_t *team, float *sums) {
    const step_t *s = w->s;
    const int dtype = (int)s->dtype;
    const matrix_t *m[] = {&l->w1, &l->w3};
    float *ups = sums + CHUNK * PANEL;
    const input_t input = input_of(w, normed(w, l->ffn_norm, thread, team), m, 2, thread, team);
    for (long panel; (panel = next_piece(team, panels_of(m[0]))) < panels_of(m[0]);) {
        sums_of(w, input.of[0], m[0], panel, sums);
        sums_of(w, input.of[1], m[1], panel, ups);
        char *y = at(w->gated, panel * PANEL, dtype);
        FOR_DTYPE(dtype, gate_panel, sums, ups, y, s->rows, s->hidden, width_of(m[0], panel));
    }
    wait_all(team);
    finish(w, w->gated, &l->w2, thread, team, sums);
}

static void layers_share(void *what, team_t *team, long thread) {
    const work_layers_t *w = what;
    float sums[2 * CHUNK * PANEL];
    for (long i = 0; i < w->count; i++) {
        if (w->part != 2) attention(w, i, thread, team, sums);
        if (w->part == 0) wait_all(team);
        if (w->part != 1) feed_forward(w, w->layers + i, thread, team, sums);
        if (w->part == 0) wait_all(team);
    }
}

/* Take s->x, up to CHUNK rows, through `count` layers. part 0: whole layers, in place. 1, 2: the attention or the
 * feed-forward of one layer without its residual, into s->out, for ranks to sum. store: keys and values of these layers,
 * (count, 2, kv_heads, positions, dim). The width is a multiple of 16, hidden even, dim a multiple of 32. */
EXPORT void llama_layers(const step_t *s, const layer_t *layers, void *store, long count, long part) {
    work_layers_t w = {.s = s, .layers = layers, .store = store, .count = count, .part = part};
    w.heads = (heads_t){s->heads, s->kv_heads, s->dim, s->positions, s->scale, (int)s->dtype, (int)s->cache,
                        (int)s->shift};
    lay_out(&w, s->space);
    run_team(layers_share, &w, s->threads);
}
