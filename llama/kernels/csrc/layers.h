/* A step through the layers. layers.c documents the functions. */

#ifndef LLAMA_LAYERS_H
#define LLAMA_LAYERS_H

#include "matrix.h"

/* One layer; the norms' weights are of the step's dtype. As _Layer in fused_call.py. */
typedef struct {
    const void *attention_norm, *ffn_norm;
    matrix_t wq, wk, wv, wo, w1, w3, w2;
} layer_t;

/* Keys and values of a row's sequence, (kv_heads, capacity, dim). */
typedef struct {
    void *keys, *values;
} cache_t;

/* As _Step in fused_call.py. */
typedef struct {
    long rows, width, heads, kv_heads, dim, hidden; /* width of the model, hidden of its feed-forward */
    long dtype, cache, threads; /* cache: the format of keys and values, see cached.h */
    long formed;                /* bytes: llama_layers_formed of the layers and the dtype */
    float eps, scale;
    const float *table;              /* (rows, dim): cos and sin of each pair at the row's position */
    const long *capacity, *position; /* of each row */
    long room;                       /* floats of a thread's scores: above any position */
    char *x, *out, *space;           /* x: rows (rows, width); out: as x, for parts; llama_layers_space bytes */
} step_t;

long llama_layers_formed(const layer_t *layers, long count, long dtype);
long llama_layers_space(const step_t *s);
void llama_layers(const step_t *s, const layer_t *layers, const cache_t *caches, long count, long part);

#endif
