/* The laws of csrc/ at one level, for CPUs that this machine has to emulate and for vectors that none has: compiled
 * with the sources and run by test_levels.py. Prints a number for the results of each dtype, which must be the same
 * on all levels, but for bfloat16 where there are instructions for pairs. */

#include "attention.h"
#include "layers.h"
#include "norms.h"
#include "one_number.h"

void llama_pack(const matrix_t *, const void *, long, long, long, long, long, long);
long llama_linear_space(const matrix_t *, long, long);
void llama_linear(const matrix_t *, const void *, void *, void *, long, long, long);
void llama_attend(const void *, const void *, const void *, void *, void *, void *, float *, long, long, long, long, long,
                  long, long, float, long, long);

static uint64_t hash;

static void remember(const void *p, long bytes) {
    for (long i = 0; i < bytes; i++) hash = (hash ^ ((const unsigned char *)p)[i]) * 1099511628211u;
}

static double number(const void *p, long i, int dtype) {
    if (dtype == F32) return ((const float *)p)[i];
    const uint16_t h = ((const uint16_t *)p)[i];
    return dtype == F16 ? half_of(h) : float_of((uint32_t)h << 16);
}

static void *numbers(long count, int dtype) {
    char *p = aligned_alloc(64, (count * size_of(dtype) + 127) / 64 * 64);
    for (long i = 0; i < count; i++) {
        vf v = broadcast(uniform());
        char one[4 * LANES];
        dtype == F32 ? store(one, v) : dtype == F16 ? narrow_f16(one, v) : narrow_bf16(one, v);
        memcpy(p + i * size_of(dtype), one, size_of(dtype));
    }
    return p;
}

static double precision(int dtype) { return dtype == F32 ? 0x1p-18 : dtype == F16 ? 0x1p-10 : 0x1p-8; }

static void check_linear(int format, int dtype, long out, long in, long rows) {
    const long size = ((out + 15) / 16 * 16) * ((in + 1) / 2 * 2) * 4;
    void *w = numbers(out * in, format), *x = numbers(rows * in, dtype), *packed = aligned_alloc(64, size);
    void *y = malloc(rows * out * 4), *alone = malloc(out * 4), *threads = malloc(rows * out * 4);
    const matrix_t m = {format, out, in, in, 0, packed, 0, 0, 0};
    llama_pack(&m, w, in, 0, 0, out, in, 2);
    void *space = malloc(llama_linear_space(&m, rows, dtype) + 1);
    llama_linear(&m, x, y, space, rows, dtype, 1);
    for (long r = 0; r < rows; r++)
        for (long o = 0; o < out; o++) {
            double exact = 0, sum = 0;
            for (long k = 0; k < in; k++) {
                const double product = number(w, o * in + k, format) * number(x, r * in + k, dtype);
                exact += product, sum += fabs(product);
            }
            check(fabs(number(y, r * out + o, dtype) - exact) <= precision(dtype) * sum, "y = x W^T");
        }
    const long last = rows - 1;
    llama_linear(&m, at(x, last * in, dtype), alone, space, 1, dtype, 1);
    check(!memcmp(alone, at(y, last * out, dtype), out * size_of(dtype)), "a row alone = the same row among others");
    llama_linear(&m, x, threads, space, rows, dtype, 3);
    check(!memcmp(threads, y, rows * out * size_of(dtype)), "1 = 3 threads");
    remember(y, rows * out * size_of(dtype));
    free(w), free(x), free(packed), free(y), free(alone), free(threads), free(space);
}

static void check_norm_and_rotation(int dtype, long n) {
    void *x = numbers(n, dtype), *weight = numbers(n, dtype), *y = malloc(n * 4);
    float *table = numbers(n, F32);
    norm_row(dtype, x, weight, y, n, 1e-5f);
    double squares = 0;
    for (long i = 0; i < n; i++) squares += number(x, i, dtype) * number(x, i, dtype);
    for (long i = 0; i < n; i++) {
        const double exact = number(x, i, dtype) / sqrt(squares / n + 1e-5) * number(weight, i, dtype);
        check(fabs(number(y, i, dtype) - exact) <= 2 * precision(dtype) * fabs(exact), "the norm");
    }
    remember(y, n * size_of(dtype));
    memcpy(y, x, n * size_of(dtype));
    rotate_row(dtype, y, table, 1, n);
    for (long i = 0; i < n; i += 2) {
        const double a = number(x, i, dtype), b = number(x, i + 1, dtype), c = table[i], s = table[i + 1];
        const double most = (fabs(a) + fabs(b)) * precision(dtype);
        check(fabs(number(y, i, dtype) - (a * c - b * s)) <= most, "the rotation of even numbers");
        check(fabs(number(y, i + 1, dtype) - (b * c + a * s)) <= most, "the rotation of odd numbers");
    }
    remember(y, n * size_of(dtype));
    free(x), free(weight), free(y), free(table);
}

static void check_attention(int dtype, long heads, long kv_heads, long dim, long count, long start) {
    const long length = start + count, capacity = length + 3, query = heads * dim, key = kv_heads * dim;
    void *q = numbers(count * query, dtype), *k = numbers(count * key, dtype), *v = numbers(count * key, dtype);
    void *keys = numbers(kv_heads * capacity * dim, dtype), *values = numbers(kv_heads * capacity * dim, dtype);
    void *y = malloc(count * query * 4), *threads = malloc(count * query * 4);
    float *score = malloc(3 * (length + 16) * 4);
    llama_attend(q, k, v, keys, values, threads, score, length + 16, count, heads, kv_heads, dim, capacity, start, 0.125f,
                 dtype, 3);
    llama_attend(q, k, v, keys, values, y, score, length + 16, count, heads, kv_heads, dim, capacity, start, 0.125f, dtype,
                 1);
    check(!memcmp(y, threads, count * query * size_of(dtype)), "attention on 1 = 3 threads");
    for (long t = 0; t < count; t++)
        for (long h = 0; h < heads; h++) {
            double weights[512], top = -1e300, total = 0;
            const long cache = h / (heads / kv_heads) * capacity * dim;
            for (long s = 0; s <= start + t; s++) {
                weights[s] = 0;
                for (long i = 0; i < dim; i++)
                    weights[s] += number(q, (t * heads + h) * dim + i, dtype) * number(keys, cache + s * dim + i, dtype) / 8;
                top = fmax(top, weights[s]);
            }
            for (long s = 0; s <= start + t; s++) total += weights[s] = exp(weights[s] - top);
            for (long i = 0; i < dim; i++) {
                double exact = 0;
                for (long s = 0; s <= start + t; s++) exact += weights[s] / total * number(values, cache + s * dim + i, dtype);
                const double got = number(y, (t * heads + h) * dim + i, dtype);
                check(fabs(got - exact) <= 2 * precision(dtype), "attention");
            }
        }
    remember(y, count * query * size_of(dtype));
    free(q), free(k), free(v), free(keys), free(values), free(y), free(threads), free(score);
}

/* ---- whole layers ---- */

enum { LAYERS = 2, WIDTH = 64, HEADS = 4, DIM = 32, HIDDEN = 70, CAPACITY = 90, MOST = 14 };

/* Random weights; of the matrices of a layer each has a format of its own where `mixed`. */
static matrix_t random_matrix(long out, long in, int format) {
    void *w = numbers(out * in, format);
    const matrix_t m = {format, out, in, in, 0, aligned_alloc(64, (out + 15) / 16 * 64 * (in + 1)), 0, 0, 0};
    llama_pack(&m, w, in, 0, 0, out, in, 1);
    free(w);
    return m;
}

static layer_t random_layer(int dtype, int mixed) {
    const int other = mixed ? (dtype + 1) % 3 : dtype, third = mixed ? (dtype + 2) % 3 : dtype;
    const long query = HEADS * DIM, key = HEADS / 2 * DIM;
    return (layer_t){
        numbers(WIDTH, dtype),
        numbers(WIDTH, dtype),
        random_matrix(query, WIDTH, dtype),
        random_matrix(key, WIDTH, other),
        random_matrix(key, WIDTH, third),
        random_matrix(WIDTH, query, other),
        random_matrix(HIDDEN, WIDTH, dtype),
        random_matrix(HIDDEN, WIDTH, third),
        random_matrix(WIDTH, HIDDEN, other),
    };
}

/* Rows of a step, of two sequences that had `before` positions each: `first` rows of one, then `second` of the other.
 * What the caches hold before is the same in every call. -> the rows behind the layers, to be freed. */
static char *step(int dtype, const layer_t *layers, const void *x, long first, long second, long skip, int threads,
                  int parts) {
    const long rows = first + second - skip, before = 60, cache = HEADS / 2 * CAPACITY * DIM;
    char *keys[2], *values[2], *y = malloc(MOST * WIDTH * 4), *out = malloc(MOST * WIDTH * 4);
    cache_t caches[LAYERS * MOST];
    long position[MOST], capacity[MOST];
    state = 11;
    float *table = numbers(MOST * DIM, F32);
    for (int i = 0; i < 2; i++) keys[i] = numbers(LAYERS * cache, dtype), values[i] = numbers(LAYERS * cache, dtype);
    for (long r = 0; r < rows; r++) {
        const int which = r + skip >= first;
        position[r] = before + r + skip - (which ? first : 0), capacity[r] = CAPACITY;
        for (long l = 0; l < LAYERS; l++)
            caches[l * rows + r] = (cache_t){at(keys[which], l * cache, dtype), at(values[which], l * cache, dtype)};
    }
    memcpy(y, at(x, skip * WIDTH, dtype), rows * WIDTH * size_of(dtype));
    const long formed = llama_layers_formed(layers, LAYERS, dtype);
    step_t s = {rows,       WIDTH, HEADS, HEADS / 2, DIM, HIDDEN,     dtype, threads, formed, 1e-5f,
                0.17677669f, table + skip * DIM, capacity, position,  CAPACITY, y, out,   0};
    s.space = aligned_alloc(64, llama_layers_space(&s));
    if (!parts) llama_layers(&s, layers, caches, LAYERS, 0);
    for (long i = 0; i < 2 * LAYERS && parts; i++) {
        llama_layers(&s, layers + i / 2, caches + i / 2 * rows, 1, i % 2 + 1);
        for (long j = 0; j < rows * WIDTH; j += LANES) {
            const vf a = dtype == F32 ? get(F32, y, j) : dtype == F16 ? get(F16, y, j) : get(BF16, y, j);
            const vf b = dtype == F32 ? get(F32, out, j) : dtype == F16 ? get(F16, out, j) : get(BF16, out, j);
            FOR_DTYPE(dtype, put, y, j, a + b);
        }
    }
    free(table), free(s.space), free(out), free(keys[0]), free(keys[1]), free(values[0]), free(values[1]);
    return y;
}

static void check_layers(int dtype, int mixed, long first, long second) {
    layer_t layers[LAYERS];
    for (int l = 0; l < LAYERS; l++) layers[l] = random_layer(dtype, mixed);
    void *x = numbers(MOST * WIDTH, dtype);
    const long bytes = (first + second) * WIDTH * size_of(dtype), alone = first * WIDTH * size_of(dtype);
    char *all = step(dtype, layers, x, first, second, 0, 1, 0), *threads = step(dtype, layers, x, first, second, 0, 3, 0);
    char *one = step(dtype, layers, x, first, 0, 0, 1, 0), *other = step(dtype, layers, x, first, second, first, 1, 0);
    char *parts = step(dtype, layers, x, first, second, 0, 1, 1);
    check(!memcmp(all, threads, bytes), "layers on 1 = 3 threads");
    check(!memcmp(all, one, alone) && !memcmp(all + alone, other, bytes - alone), "a sequence alone = among others");
    check(!memcmp(all, parts, bytes), "a step = the sum of its parts");
    remember(all, bytes);
    free(all), free(threads), free(one), free(other), free(parts);
}

int main(void) {
    for (int dtype = F32; dtype <= BF16; dtype++) {
        state = 7;
        for (long rows = 1; rows <= 14; rows++) check_linear(dtype, dtype, 16 * rows + rows % 3, 30 + rows, rows);
        check_linear(dtype, dtype, 1, 1, 1);
        check_linear(dtype, dtype, 70, 2100, 7);
        check_linear(dtype, dtype, 20, 64, 140);
        check_linear((dtype + 1) % 3, dtype == BF16 ? F16 : dtype, 70, 45, 9);
        for (long n = 16; n <= 64; n += 16) check_norm_and_rotation(dtype, n);
        check_attention(dtype, 4, 2, 64, 1, 70);
        check_attention(dtype, 2, 2, 96, 2, 33);
        check_attention(dtype, 4, 1, 32, 1, 130);
        check_attention(dtype, 3, 1, 64, 19, 61);
        check_layers(dtype, 0, 1, 1);
        check_layers(dtype, 0, 2, 5);
        check_layers(dtype, 0, 9, 4);
        /* Not of bfloat16: which of its matrices are multiplied by pairs depends on the level. */
        check_layers(dtype == BF16 ? F16 : dtype, 1, 3, 9);
        printf("%016llx\n", (unsigned long long)hash);
        hash = 0;
    }
    return 0;
}
