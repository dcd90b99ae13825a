/* A step through the layers. layers.c documents the functions. */

#ifndef LLAMA_LAYERS_H
#define LLAMA_LAYERS_H

#include "attention.h"
#include "matrix.h"

/* One layer; the norms' weights are of the step's dtype. As _Layer in fused_call.py. */
typedef struct {
    const void *attention_norm, *ffn_norm;
    matrix_t wq, wk, wv, wo, w1, w3, w2;
} layer_t;

/* As _Step in fused_call.py. */
typedef struct {
    long rows, width, heads, kv_heads, dim, hidden; /* width of the model, hidden of its feed-forward */
    long dtype, cache, threads; /* cache: the format of keys and values, see cached.h */
    long formed;                /* bytes: llama_layers_formed of the layers and the dtype */
    float eps, scale;
    const float *rotary;   /* (rows, dim): cos and sin of each pair at the row's position */
    parts_t parts;         /* the sequences, which have these rows */
    long positions, shift; /* of all blocks; a block has 1 << shift of them */
    long room;             /* floats of a thread's scores: above any position */
    char *x, *out, *space; /* x: rows (rows, width); out: as x, for parts; llama_layers_space bytes */
} step_t;

long llama_layers_formed(const layer_t *layers, long count, long dtype);
long llama_layers_space(const step_t *s);
void llama_layers(const step_t *s, const layer_t *layers, void *store, long count, long part);

#endif
