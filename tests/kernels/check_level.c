/* The laws of csrc/ at one level, for CPUs that this machine has to emulate and for vectors that none has: compiled
 * with the sources and run by test_levels.py. Prints a number for the results of each dtype, one for attention over int8
 * caches, and one for quantized weights. They must be the same on all levels, but for bfloat16 where there are
 * instructions for pairs. */

#include "attention.h"
#include "cached.h"
#include "check_quantized.h"
#include "layers.h"
#include "norms.h"
#include "one_number.h"

void llama_pack(const matrix_t *, const void *, long, long, long, long, long, long);
long llama_linear_space(const matrix_t *, long, long);
void llama_linear(const matrix_t *, const void *, void *, void *, long, long, long);
void llama_attend(const void *, const void *, const void *, void *, void *, void *, float *, long, long, long, long, long,
                  long, long, float, long, long, long);
long llama_unpack(const matrix_t *, const void *, long, long, long, long, long, long);

static uint64_t hash;

static void remember(const void *p, long bytes) {
    for (long i = 0; i < bytes; i++) hash = (hash ^ ((const unsigned char *)p)[i]) * 1099511628211u;
}

static double number(const void *p, long i, int dtype) {
    if (dtype == F32) return ((const float *)p)[i];
    const uint16_t h = ((const uint16_t *)p)[i];
    return dtype == F16 ? half_of(h) : float_of((uint32_t)h << 16);
}

/* All of them as doubles, to be freed: each is read many times. */
static double *doubles(const void *p, long count, int dtype) {
    double *all = malloc(count * sizeof(*all));
    for (long i = 0; i < count; i++) all[i] = number(p, i, dtype);
    return all;
}

static void *numbers(long count, int dtype) {
    char *p = aligned_alloc(64, (count * size_of(dtype) + 127) / 64 * 64);
    for (long i = 0; i < count; i += LANES) {
        float some[LANES] = {0};
        char narrow[4 * LANES];
        const long now = count - i < LANES ? count - i : LANES;
        for (long j = 0; j < now; j++) some[j] = uniform();
        const vf v = load(some);
        dtype == F32 ? store(narrow, v) : dtype == F16 ? narrow_f16(narrow, v) : narrow_bf16(narrow, v);
        memcpy(p + i * size_of(dtype), narrow, now * size_of(dtype));
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
    double *weights = doubles(w, out * in, format), *inputs = doubles(x, rows * in, dtype);
    for (long r = 0; r < rows; r++)
        for (long o = 0; o < out; o++) {
            double exact = 0, sum = 0;
            for (long k = 0; k < in; k++) {
                const double product = weights[o * in + k] * inputs[r * in + k];
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
    free(w), free(x), free(packed), free(y), free(alone), free(threads), free(space), free(weights), free(inputs);
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

/* A number of a cache. */
static double stored(const void *p, long i, int format) {
    if (format != INT8) return number(p, i, format);
    const unsigned char *block = (const unsigned char *)p + i / 32 * 34;
    return (double)float_of((uint32_t)(block[0] | block[1] << 8) << 16) * (signed char)block[2 + i % 32];
}

/* The scale of a block that holds these 32 numbers. */
static double scale_for(const void *p, long i, int dtype) {
    double top = 0;
    for (long j = i / 32 * 32; j < i / 32 * 32 + 32; j++) top = fmax(top, fabs(number(p, j, dtype)));
    return float_of((uint32_t)nearest_bf16((float)top / 127) << 16);
}

/* Random numbers as a cache has them; of blocks, any bytes, with scales up to 1/128. */
static void *cached_numbers(long count, int format) {
    if (format != INT8) return numbers(count, format);
    char *p = malloc(count / BLOCK_SIZE * BLOCK_BYTES + 64);
    for (long i = 0; i < count; i += BLOCK_SIZE) {
        const uint16_t scale = nearest_bf16(fabsf(uniform()) / 128);
        memcpy(cached(p, i, format), &scale, 2);
        for (int j = 0; j < BLOCK_SIZE; j++) cached(p, i, format)[2 + j] = (char)draw();
    }
    return p;
}

static void check_stored(int dtype, int format, const void *x, const void *rows, long count, long start, long capacity,
                         long kv_heads, long dim) {
    for (long t = 0; t < count; t++)
        for (long i = 0; i < kv_heads * dim; i++) {
            const long from = t * kv_heads * dim + i, to = (i / dim * capacity + start + t) * dim + i % dim;
            const double off = fabs(stored(rows, to, format) - number(x, from, dtype));
            check(off <= (format == dtype ? 0 : scale_for(x, from, dtype) * 0.5000001), "what is stored");
        }
}

static void check_attention(int dtype, int format, long heads, long kv_heads, long dim, long count, long start) {
    const long length = start + count, capacity = length + 3, query = heads * dim, key = kv_heads * dim;
    void *q = numbers(count * query, dtype), *k = numbers(count * key, dtype), *v = numbers(count * key, dtype);
    void *keys = cached_numbers(kv_heads * capacity * dim, format);
    void *values = cached_numbers(kv_heads * capacity * dim, format);
    void *y = malloc(count * query * 4), *threads = malloc(count * query * 4);
    float *score = malloc(3 * (length + 16) * 4);
    llama_attend(q, k, v, keys, values, threads, score, length + 16, count, heads, kv_heads, dim, capacity, start, 0.125f,
                 dtype, format, 3);
    llama_attend(q, k, v, keys, values, y, score, length + 16, count, heads, kv_heads, dim, capacity, start, 0.125f, dtype,
                 format, 1);
    check(!memcmp(y, threads, count * query * size_of(dtype)), "attention on 1 = 3 threads");
    check_stored(dtype, format, k, keys, count, start, capacity, kv_heads, dim);
    check_stored(dtype, format, v, values, count, start, capacity, kv_heads, dim);
    const long all = kv_heads * capacity * dim;
    double *queries = doubles(q, count * query, dtype), *read[2] = {malloc(all * 8), malloc(all * 8)};
    for (long i = 0; i < all; i++) read[0][i] = stored(keys, i, format), read[1][i] = stored(values, i, format);
    for (long t = 0; t < count; t++)
        for (long h = 0; h < heads; h++) {
            double weights[512], top = -1e300, total = 0;
            const long cache = h / (heads / kv_heads) * capacity * dim;
            for (long s = 0; s <= start + t; s++) {
                weights[s] = 0;
                for (long i = 0; i < dim; i++)
                    weights[s] += queries[(t * heads + h) * dim + i] * read[0][cache + s * dim + i] / 8;
                top = fmax(top, weights[s]);
            }
            for (long s = 0; s <= start + t; s++) total += weights[s] = exp(weights[s] - top);
            for (long i = 0; i < dim; i++) {
                double exact = 0;
                for (long s = 0; s <= start + t; s++) exact += weights[s] / total * read[1][cache + s * dim + i];
                const double got = number(y, (t * heads + h) * dim + i, dtype);
                check(fabs(got - exact) <= 2 * precision(dtype), "attention");
            }
        }
    remember(y, count * query * size_of(dtype));
    free(q), free(k), free(v), free(keys), free(values), free(y), free(threads), free(score);
    free(queries), free(read[0]), free(read[1]);
}

/* ---- whole layers ---- */

enum { LAYERS = 2, WIDTH = 64, HEADS = 4, DIM = 32, HIDDEN = 70, CAPACITY = 90, MOST = 14 };

/* Random weights. */
static matrix_t random_matrix(long out, long in, int format) {
    if (format >= INT8) return random_quantized(format, out, in, format == K4 ? 64 : 32, 0);
    void *w = numbers(out * in, format);
    const matrix_t m = {format, out, in, in, 0, aligned_alloc(64, (out + 15) / 16 * 64 * (in + 1)), 0, 0, 0};
    llama_pack(&m, w, in, 0, 0, out, in, 1);
    free(w);
    return m;
}

/* The format of a matrix of a layer: the dtype; other dtypes (MIXED); quantized formats and a plain one (QUANTIZED). */
enum { ALIKE, MIXED, QUANTIZED };
static int format_of(int kinds, int dtype, int which) {
    static const int others[] = {0, 1, 2, 1, 0, 2, 1}, quantized[] = {K4, INT8, F16, INT4, INT8Z, INT4Z, K4};
    return kinds == ALIKE ? dtype : kinds == MIXED ? (dtype + others[which]) % 3 : quantized[which];
}

static layer_t random_layer(int dtype, int kinds) {
    const long query = HEADS * DIM, key = HEADS / 2 * DIM;
    return (layer_t){
        numbers(WIDTH, dtype),
        numbers(WIDTH, dtype),
        random_matrix(query, WIDTH, format_of(kinds, dtype, 0)),
        random_matrix(key, WIDTH, format_of(kinds, dtype, 1)),
        random_matrix(key, WIDTH, format_of(kinds, dtype, 2)),
        random_matrix(WIDTH, query, format_of(kinds, dtype, 3)),
        random_matrix(HIDDEN, WIDTH, format_of(kinds, dtype, 4)),
        random_matrix(HIDDEN, WIDTH, format_of(kinds, dtype, 5)),
        random_matrix(WIDTH, HIDDEN, format_of(kinds, dtype, 6)),
    };
}

/* Rows of a step, of two sequences that had `before` positions each: `first` rows of one, then `second` of the other.
 * What the caches hold before is the same in every call. -> the rows behind the layers, to be freed. */
static char *step(int dtype, int format, const layer_t *layers, const void *x, long first, long second, long skip,
                  int threads, int parts) {
    const long rows = first + second - skip, before = 60, cache = HEADS / 2 * CAPACITY * DIM;
    char *keys[2], *values[2], *y = malloc(MOST * WIDTH * 4), *out = malloc(MOST * WIDTH * 4);
    cache_t caches[LAYERS * MOST];
    long position[MOST], capacity[MOST];
    state = 11;
    float *table = numbers(MOST * DIM, F32);
    for (int i = 0; i < 2; i++)
        keys[i] = cached_numbers(LAYERS * cache, format), values[i] = cached_numbers(LAYERS * cache, format);
    for (long r = 0; r < rows; r++) {
        const int which = r + skip >= first;
        position[r] = before + r + skip - (which ? first : 0), capacity[r] = CAPACITY;
        for (long l = 0; l < LAYERS; l++)
            caches[l * rows + r] =
                (cache_t){cached(keys[which], l * cache, format), cached(values[which], l * cache, format)};
    }
    memcpy(y, at(x, skip * WIDTH, dtype), rows * WIDTH * size_of(dtype));
    const long formed = llama_layers_formed(layers, LAYERS, dtype);
    step_t s = {rows,        WIDTH, HEADS, HEADS / 2, DIM, HIDDEN, dtype, format, threads, formed, 1e-5f,
                0.17677669f, table + skip * DIM, capacity, position, CAPACITY, y, out, 0};
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

static void check_layers(int dtype, int format, int kinds, long first, long second) {
    layer_t layers[LAYERS];
    for (int l = 0; l < LAYERS; l++) layers[l] = random_layer(dtype, kinds);
    void *x = numbers(MOST * WIDTH, dtype);
    const long bytes = (first + second) * WIDTH * size_of(dtype), alone = first * WIDTH * size_of(dtype);
    char *all = step(dtype, format, layers, x, first, second, 0, 1, 0);
    char *threads = step(dtype, format, layers, x, first, second, 0, 3, 0);
    char *one = step(dtype, format, layers, x, first, 0, 0, 1, 0);
    char *other = step(dtype, format, layers, x, first, second, first, 1, 0);
    char *parts = step(dtype, format, layers, x, first, second, 0, 1, 1);
    check(!memcmp(all, threads, bytes), "layers on 1 = 3 threads");
    check(!memcmp(all, one, alone) && !memcmp(all + alone, other, bytes - alone), "a sequence alone = among others");
    check(!memcmp(all, parts, bytes), "a step = the sum of its parts");
    remember(all, bytes);
    free(all), free(threads), free(one), free(other), free(parts);
}

/* Blocks of every type of GGUF -> the layout of matrix.h; from column 64 on, where that is within a block. */
static void check_unpack(void) {
    static const struct { int type, format; long length, bytes, halves[2]; } types[] = {
        {8, INT8, 32, 34, {0, 0}},  {2, INT4, 32, 18, {0, 0}},      {12, K4, 256, 144, {0, 2}},
        {3, INT8, 32, 20, {0, 2}},  {6, INT8, 32, 22, {0, 0}},      {7, INT8, 32, 24, {0, 2}},
        {10, INT8, 256, 84, {80, 82}}, {11, INT8, 256, 110, {108, 108}}, {13, INT8, 256, 176, {0, 2}},
        {14, INT8, 256, 210, {208, 208}},
    };
    enum { ROWS = 21, COLUMNS = 512 };
    for (unsigned i = 0; i < sizeof(types) / sizeof(*types); i++) {
        const long row = COLUMNS / types[i].length * types[i].bytes, skip = types[i].length > 64 ? 64 : 0;
        const long in = COLUMNS - skip, group = types[i].format == K4 ? 64 : 32;
        uint8_t *raw = malloc(ROWS * row);
        for (long k = 0; k < ROWS * row; k++) raw[k] = (uint8_t)draw();
        for (long k = 0; k < ROWS * row; k += types[i].bytes)
            for (int half = 0; half < 2; half++) /* a scale from 2^-9 to 2^-5, so a finite one */
                raw[k + types[i].halves[half] + 1] = 0x18 + raw[k + types[i].halves[half]] % 16;
        uint8_t *packed = aligned_alloc(64, 3 * 32 * COLUMNS);
        memset(packed, 0, 3 * 32 * COLUMNS);
        const matrix_t m = {types[i].format,         ROWS, in, in, group, packed, packed + 32 * COLUMNS,
                            packed + 2 * 32 * COLUMNS, 0};
        check(llama_unpack(&m, raw, row, types[i].type, skip, 0, ROWS, 2) == 1, "scales are finite");
        remember(packed, 3 * 32 * COLUMNS);
        raw[20 * row + types[i].halves[1] + 1] |= 0x7c;
        check(llama_unpack(&m, raw, row, types[i].type, skip, 0, ROWS, 2) == 0, "a scale is not finite");
        free(raw), free(packed);
    }
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
        check_attention(dtype, dtype, 4, 2, 64, 1, 70);
        check_attention(dtype, dtype, 2, 2, 96, 2, 33);
        check_attention(dtype, dtype, 4, 1, 32, 1, 130);
        check_attention(dtype, dtype, 3, 1, 64, 19, 61);
        check_layers(dtype, dtype, ALIKE, 1, 1);
        check_layers(dtype, dtype, ALIKE, 2, 5);
        check_layers(dtype, dtype, ALIKE, 9, 4);
        /* Not of bfloat16: which of its matrices are multiplied by pairs depends on the level. */
        check_layers(dtype == BF16 ? F16 : dtype, dtype == BF16 ? F16 : dtype, MIXED, 3, 9);
        check_layers(dtype, INT8, ALIKE, 1, 5);
        printf("%016llx\n", (unsigned long long)hash);
        hash = 0;
    }
    for (int dtype = F32; dtype <= BF16; dtype++) {
        check_attention(dtype, INT8, 4, 2, 64, 1, 70);
        check_attention(dtype, INT8, 2, 2, 96, 2, 33);
        check_attention(dtype, INT8, 4, 1, 32, 1, 130);
        check_attention(dtype, INT8, 3, 1, 64, 19, 61);
    }
    printf("%016llx\n", (unsigned long long)hash);
    hash = check_quantized();
    check_layers(F32, F32, QUANTIZED, 2, 5);
    check_layers(F16, F16, QUANTIZED, 9, 4);
    check_layers(F16, INT8, QUANTIZED, 2, 5);
    check_unpack();
    printf("%016llx\n", (unsigned long long)hash);
    return 0;
}
