/* RMS norm and rotary positions, rounded as the PyTorch code in norms.py does. */

#include "norms.h"

#include <math.h>

#include "matrix.h"

INLINE void norm(int dtype, const void *x, const void *weight, void *y, long n, float eps) {
    vf squares[VECTORS] = {0};
    for (long i = 0; i < n; i += GROUP)
        UNROLL for (int v = 0; v < VECTORS; v++) {
            const vf a = get(dtype, x, i + v * LANES);
            squares[v] = fma_of(a, a, squares[v]);
        }
    const vf scale = broadcast(1 / sqrtf(total_of(squares) / (float)n + eps));
    for (long i = 0; i < n; i += LANES)
        put(dtype, y, i, rounded(dtype, get(dtype, x, i) * scale) * get(dtype, weight, i));
}

/* y = x / rms(x), rounded to the dtype, times weight; n is a multiple of 16. */
void norm_row(int dtype, const void *x, const void *weight, void *y, long n, float eps) {
    FOR_DTYPE(dtype, norm, x, weight, y, n, eps);
}

INLINE void rotate(int dtype, void *x, const float *table, long heads, long dim) {
    const vf sign = choose((lane_numbers() & 1) == 1, broadcast(1), broadcast(-1));
    for (long h = 0; h < heads; h++)
        for (long i = 0; i < dim; i += LANES) {
            const vf a = get(dtype, x, h * dim + i), t = load(table + i);
            const vf cosine = SHUFFLE(t, EVEN), sine = SHUFFLE(t, ODD), other = SHUFFLE(a, SWAPPED);
            /* even: a cos - b sin; odd: b cos + a sin */
            put(dtype, x, h * dim + i, fma_of(a, cosine, other * sine * sign));
        }
}

/* Turn the pairs (2j, 2j + 1) of each head (heads, dim) in place; dim is a multiple of 16. table: (cos, sin) for
 * each pair. */
void rotate_row(int dtype, void *x, const float *table, long heads, long dim) {
    FOR_DTYPE(dtype, rotate, x, table, heads, dim);
}

/* ---- the operators ---- */

/* FEW: up to so many rows, starting threads costs more time than they save. */
enum { FEW = 8 };

typedef struct {
    const char *x, *weight;
    char *y;
    long rows, n;
    float eps;
    int dtype;
} norm_t;

static void norm_share(void *what, team_t *team, long thread) {
    const norm_t *p = what;
    for (long r = share(p->rows, thread, team->threads); r < share(p->rows, thread + 1, team->threads); r++)
        norm_row(p->dtype, at(p->x, r * p->n, p->dtype), p->weight, at(p->y, r * p->n, p->dtype), p->n, p->eps);
}

/* The norm of each row of x (rows, n) -> y; all of the dtype, n a multiple of 16. */
EXPORT void llama_rms_norm(const void *x, const void *weight, void *y, long rows, long n, float eps, long dtype,
                           long threads) {
    norm_t p = {x, weight, y, rows, n, eps, (int)dtype};
    run_team(norm_share, &p, rows > FEW ? threads : 1);
}

typedef struct {
    char *x;
    const float *table;
    long rows, heads, dim;
    int dtype;
} rotate_t;

static void rotate_share(void *what, team_t *team, long thread) {
    const rotate_t *p = what;
    for (long r = share(p->rows, thread, team->threads); r < share(p->rows, thread + 1, team->threads); r++)
        rotate_row(p->dtype, at(p->x, r * p->heads * p->dim, p->dtype), p->table + r * p->dim, p->heads, p->dim);
}

/* Turn x (rows, heads, dim) in place by table (rows, dim); dim is a multiple of 16. */
EXPORT void llama_rotate(void *x, const float *table, long rows, long heads, long dim, long dtype, long threads) {
    rotate_t p = {x, table, rows, heads, dim, (int)dtype};
    run_team(rotate_share, &p, rows > FEW ? threads : 1);
}
