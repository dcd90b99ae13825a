/* Products of quantized weights against plain C, one number at a time, bit for bit; a part of check_level.c. */

#include "check_quantized.h"

#include "one_number.h"

void llama_pack_blocks(const matrix_t *, const void *, long, const void *, const void *, long, long, long);
long llama_linear_space(const matrix_t *, long, long);
void llama_linear(const matrix_t *, const void *, void *, void *, long, long, long);

/* What was packed: a byte for each code, in rows. `m` comes first, and is what the kernels see. */
typedef struct {
    matrix_t m;
    uint8_t *codes, *zeros;
    uint16_t *scales;
} plain_t;

enum { KEPT = 64 };
static plain_t kept[KEPT];
static int count;

static int parts_of(int format) { return format == K4 ? 2 : 1; }
static int bits_in(int format) { return format == INT8 || format == INT8Z ? 8 : 4; }

/* Scales are of all sizes, some of them subnormal, some 0. */
static uint16_t random_scale(void) { return draw() % 16 ? (uint16_t)(draw() % 0x3000) : 0; }

static int32_t *random_order(long in, long columns, int ordered) {
    int32_t *order = malloc(in * sizeof(*order));
    for (long k = 0; k < in; k++) order[k] = k < columns ? (int32_t)k : -1;
    for (long k = in - 1; k > 0 && ordered; k--) {
        const long other = draw() % (k + 1);
        const int32_t one = order[k];
        order[k] = order[other], order[other] = one;
    }
    return order;
}

matrix_t random_quantized(int format, long out, long columns, long group, int ordered) {
    const long in = (columns + 31) / 32 * 32, n = (in + group - 1) / group, rows = (out + 15) / 16 * 16;
    const long parts = parts_of(format), zeros = format == K4 ? in / 32 : n;
    plain_t p = {.codes = malloc(out * in), .zeros = malloc(out * zeros * parts), .scales = malloc(out * n * parts * 2)};
    for (long i = 0; i < out * in; i++) p.codes[i] = (uint8_t)(draw() & ((1 << bits_in(format)) - 1));
    for (long i = 0; i < out * n * parts; i++) p.scales[i] = random_scale();
    for (long i = 0; i < out * zeros * parts; i++) p.zeros[i] = (uint8_t)(draw() & (format == INT4Z ? 16 : 255));
    p.m = (matrix_t){format, out, in, columns, group, aligned_alloc(64, rows * in), malloc(rows * n * parts * 2), 0, 0};
    if (format >= INT8Z) p.m.zeros = malloc(rows * zeros * parts);
    if (ordered || columns < in) p.m.order = random_order(in, columns, ordered);
    /* In two parts, where there are two groups of outputs. */
    const long first = out > 16 ? 16 : out;
    llama_pack_blocks(&p.m, p.codes, in, p.scales, p.m.zeros ? p.zeros : 0, 0, first, 2);
    if (out > first)
        llama_pack_blocks(&p.m, p.codes + first * in, in, p.scales + first * n * parts,
                          p.m.zeros ? p.zeros + first * zeros * parts : 0, first, out - first, 2);
    check(count < KEPT, "room for another weight");
    kept[count++] = p;
    return p.m;
}

void free_quantized(const matrix_t *m) {
    const plain_t *p = kept + --count;
    check(p->m.codes == m->codes, "the last weight is freed first");
    free(p->codes), free(p->zeros), free(p->scales);
    free((void *)m->codes), free((void *)m->scales), free((void *)m->zeros), free((void *)m->order);
}

/* x (in), a block of it -> integers; the scale. */
static float to_integers(const float *x, int *q) {
    float most = 0, other = 0;
    for (int i = 0; i < 32; i++) {
        if (!isfinite(x[i])) other = NAN;
        most = fabsf(x[i]) > most ? fabsf(x[i]) : most;
        q[i] = 0;
    }
    if (other != 0 || !isfinite(127 / most)) return other;
    for (int i = 0; i < 32; i++) q[i] = (int)rintf(x[i] * (127 / most));
    return most / 127;
}

/* A row of x as integers in the order of the inputs, and of each block its scale and the sum of its integers. */
typedef struct {
    int *q, *total;
    float *scale;
} integers_t;

static integers_t integers_of(const matrix_t *m, const float *x) {
    const long blocks = m->in / 32;
    const integers_t row = {malloc(m->in * sizeof(int)), calloc(blocks, sizeof(int)), malloc(blocks * sizeof(float))};
    for (long b = 0; b < blocks; b++) {
        float some[32];
        for (int i = 0; i < 32; i++) {
            const long k = m->order ? m->order[b * 32 + i] : b * 32 + i;
            some[i] = k < 0 ? 0 : x[k];
        }
        row.scale[b] = to_integers(some, row.q + b * 32);
        for (int i = 0; i < 32; i++) row.total[b] += row.q[b * 32 + i];
    }
    return row;
}

/* One output of a row of x. */
static float product(const plain_t *p, const integers_t *x, long o) {
    const matrix_t *m = &p->m;
    const long n = (m->in + m->group - 1) / m->group, blocks = m->in / 32;
    float sum = 0;
    for (long b = 0; b < blocks; b++) {
        const float scale_x = x->scale[b];
        const int total = x->total[b];
        int dot = 0;
        for (int i = 0; i < 32; i++) dot += p->codes[o * m->in + b * 32 + i] * x->q[b * 32 + i];
        const long g = o * n + b * 32 / m->group;
        if (m->format == K4) {
            const uint8_t *zeros = p->zeros + (o * blocks + b) * 2;
            const float d = half_of(p->scales[2 * g]) * zeros[0], e = half_of(p->scales[2 * g + 1]) * zeros[1];
            sum = fmaf(d * scale_x, (float)dot, sum);
            sum = fmaf(-(e * scale_x), (float)total, sum);
        } else {
            const int zero = m->format == INT8 ? 128 : m->format == INT4 ? 8 : p->zeros[g];
            sum = fmaf(half_of(p->scales[g]) * scale_x, (float)(dot - zero * total), sum);
        }
    }
    return sum;
}

static uint64_t hash;

/* Rows of all kinds: some are 0, subnormal, huge or not finite in one place, in one block or in all. */
static float *random_rows(long rows, long columns) {
    float *x = malloc(rows * columns * sizeof(*x));
    for (long r = 0; r < rows; r++) {
        const uint32_t kind = draw() % 12, place = draw() % columns;
        for (long k = 0; k < columns; k++) {
            const float size = kind == 0 ? 0 : kind == 1 ? 1e-40f : kind == 2 ? 1e30f : kind == 3 && k < 40 ? 0 : 1;
            x[r * columns + k] = uniform() * size;
        }
        if (kind == 4) x[r * columns + place] = NAN;
        if (kind == 5) x[r * columns + place] = draw() % 2 ? INFINITY : -INFINITY;
        if (kind == 6) x[r * columns + place] = 1e-37f; /* among larger ones */
    }
    return x;
}

static void check_product(int format, long out, long columns, long group, int ordered, long rows) {
    const matrix_t m = random_quantized(format, out, columns, group, ordered);
    float *x = random_rows(rows, columns), *y = malloc(rows * out * 4), *threads = malloc(rows * out * 4);
    void *space = aligned_alloc(64, (llama_linear_space(&m, rows, F32) + 63) / 64 * 64);
    llama_linear(&m, x, y, space, rows, F32, 1);
    llama_linear(&m, x, threads, space, rows, F32, 3);
    check(!memcmp(y, threads, rows * out * 4), "1 = 3 threads, of quantized weights");
    for (long r = 0; r < rows; r++) {
        const integers_t row = integers_of(&m, x + r * columns);
        for (long o = 0; o < out; o++) {
            const float exact = product(kept + count - 1, &row, o), got = y[r * out + o];
            check(exact != exact ? got != got : bits_of(exact) == bits_of(got), "a product of integers, bit for bit");
            /* Which NaN it is may depend on the CPU. */
            hash = (hash ^ (exact != exact ? 0x7fc00000 : bits_of(got))) * 1099511628211u;
        }
        free(row.q), free(row.total), free(row.scale);
    }
    free(x), free(y), free(threads), free(space);
    free_quantized(&m);
}

uint64_t check_quantized(void) {
    hash = 0, state = 21;
    for (int format = INT8; format <= K4; format++) {
        const int fixed = format == INT8 || format == INT4;
        for (long rows = 1; rows <= 14; rows++) {
            /* One by one: the order in which arguments are drawn depends on the compiler. */
            const long group = 32 << draw() % 4, out = 1 + draw() % 90, columns = 32 * (1 + draw() % 12);
            check_product(format, out, columns, fixed ? 32 : group, 0, rows);
        }
        check_product(format, 16, 32, 32, 0, 1);
        check_product(format, 5, 352, fixed ? 32 : 96, 0, 3);
        check_product(format, 70, 300, fixed ? 32 : 256, 0, 7);
        check_product(format, 33, 200, fixed ? 32 : 64, 1, 9);
        check_product(format, 20, 320, fixed ? 32 : 128, 1, 140);
        check_product(format, 64, 448, fixed ? 32 : 448, 0, 25);
    }
    return hash;
}
