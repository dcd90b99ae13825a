/* Rows of logits: whether they are finite, the draw of an id, and log-probabilities. sampling.py has the same in
 * PyTorch, and explains it. Blocks are summed in float and added up in double, as there. */

#include <float.h>
#include <limits.h>
#include <math.h>
#include <stdlib.h>

#include "matrix.h"

/* BLOCK: weights summed in float. OCTAVE_BITS: weights are sorted into buckets by the leading bits of the
 * float, all but these: 64 buckets between two powers of two. Bucket 0 is that of 1, the greatest weight.
 * FEW_FOUND: so few candidates are sorted without buckets. */
enum { BLOCK = 64, OCTAVE_BITS = 17, BUCKETS = (0x3f800000 >> OCTAVE_BITS) + 1, FEW_FOUND = 64 };
/* STRETCH: logits whose greatest one is compared with that of the others, so that it is looked for in one stretch. */
enum { STRETCH = 1024 };

typedef struct {
    float weight;
    int32_t id;
} candidate_t;

/* Parameters of one row, as SamplingParams.numbers has them. */
typedef struct {
    double temperature, top_p, top_k, min_p, uniform;
} draw_t;

/* A thread's work space. */
typedef struct {
    double *sums;         /* of each block of weights */
    float *weights;       /* e^((x - greatest x) / temperature) */
    candidate_t *found;   /* ids that may be kept, ascending; one more than there can be */
    candidate_t *sorted;
    double *masses;       /* of each bucket, and how many are in it */
    int32_t *counts;
} space_t;

INLINE long blocks_of(long n) { return (n + BLOCK - 1) / BLOCK; }

/* Bytes of a thread's work space, for a vocabulary of n. */
EXPORT long llama_rows_space(long n) {
    const long bytes = blocks_of(n) * (8 + BLOCK * 4) + (2 * n + 1) * sizeof(candidate_t) + BUCKETS * (8 + 4);
    return (bytes + 63) / 64 * 64;
}

static space_t laid_out(char *at, long n) {
    space_t s;
    s.sums = (double *)at, at += blocks_of(n) * 8;
    s.masses = (double *)at, at += BUCKETS * 8;
    s.found = (candidate_t *)at, at += (n + 1) * sizeof(candidate_t);
    s.sorted = (candidate_t *)at, at += n * sizeof(candidate_t);
    s.weights = (float *)at, at += blocks_of(n) * BLOCK * 4;
    s.counts = (int32_t *)at;
    return s;
}

/* Of a row: the greatest logit, the first id that has it, and how many are not finite. */
typedef struct {
    float top;
    long id, bad;
} found_t;

static found_t greatest(const float *x, long n) {
    found_t found = {-INFINITY, 0, 0};
    vf any = {0}; /* a number times 0 is 0, and a NaN where it is not finite */
    for (long start = 0; start < n; start += STRETCH) {
        const long end = start + STRETCH < n ? start + STRETCH : n;
        vf top[4] = {broadcast(-INFINITY), broadcast(-INFINITY), broadcast(-INFINITY), broadcast(-INFINITY)};
        vf zero[4] = {0};
        long i = start;
        for (; i + 4 * LANES <= end; i += 4 * LANES)
            UNROLL for (int v = 0; v < 4; v++) {
                const vf logits = load(x + i + v * LANES);
                top[v] = larger(top[v], logits), zero[v] += logits * 0.0f;
            }
        for (; i < end; i += LANES) {
            top[0] = larger(top[0], get_some(F32, x, i, end - i, -INFINITY));
            zero[0] += get_some(F32, x, i, end - i, 0) * 0.0f;
        }
        any += (zero[0] + zero[1]) + (zero[2] + zero[3]);
        const float here = largest_of(larger(larger(top[0], top[1]), larger(top[2], top[3])));
        if (here > found.top) found.top = here, found.id = start;
    }
    while (found.id < n - 1 && x[found.id] != found.top) found.id++;
    for (int i = 0; i < LANES; i++) found.bad += any[i] != 0;
    if (found.bad) {
        found.bad = 0;
        for (long i = 0; i < n; i++) found.bad += !isfinite(x[i]);
    }
    return found;
}

/* Compute the weights e^((x - top) scale), padded with zeros to a multiple of BLOCK -> their sum. */
static double weigh(const float *x, long n, float top, float scale, float *weights, double *sums) {
    double total = 0;
    for (long block = 0; block < n; block += BLOCK) {
        vf sum[VECTORS] = {0};
        for (long i = block; i < block + BLOCK; i += GROUP)
            UNROLL for (int v = 0; v < VECTORS; v++) {
                const long first = i + v * LANES, left = n - first;
                const vf logit = left > 0 ? get_some(F32, x, first, left, -INFINITY) : broadcast(-INFINITY);
                const vf weight = exponential((logit - top) * scale);
                store(weights + first, weight);
                sum[v] += weight;
            }
        sums[block / BLOCK] = total_of(sum);
        total += sums[block / BLOCK];
    }
    return total;
}

/* The first id up to which weights add up to more than `uniform` of the total, else the last with any. */
static long inverted(const space_t *s, long n, double total, double uniform) {
    const double target = uniform * total;
    const long blocks = blocks_of(n);
    double before = 0;
    long b = 0, last = 0;
    for (; b < blocks && before + s->sums[b] <= target; b++) before += s->sums[b];
    const int beyond = b == blocks; /* by rounding */
    if (beyond)
        while (b > 0 && !(s->sums[--b] > 0)) continue;
    for (long i = b * BLOCK; i < (b + 1) * BLOCK; i++) {
        if (s->weights[i] > 0) last = i;
        before += s->weights[i];
        if (!beyond && before > target) break;
    }
    return last;
}

/* Collect the ids whose weight is at least `least` into `found`, in ascending order -> how many. Weights are padded
 * to a multiple of BLOCK. */
static long collect(const float *weights, long n, float least, candidate_t *found) {
    long count = 0;
    for (long block = 0; block < n; block += BLOCK) {
        vf top = load(weights + block);
        for (long i = block + LANES; i < block + BLOCK; i += LANES) top = larger(top, load(weights + i));
        if (largest_of(top) < least) continue;
        const long end = block + BLOCK < n ? block + BLOCK : n;
        for (long i = block; i < end; i++) {
            found[count] = (candidate_t){weights[i], (int32_t)i}; /* the next one overwrites what is not kept */
            count += weights[i] >= least;
        }
    }
    return count;
}

static int by_weight(const void *a, const void *b) {
    const candidate_t *one = a, *other = b;
    if (one->weight != other->weight) return one->weight < other->weight ? 1 : -1;
    return one->id < other->id ? -1 : 1;
}

INLINE long bucket(float weight) {
    uint32_t bits;
    memcpy(&bits, &weight, 4);
    return BUCKETS - 1 - (long)(bits >> OCTAVE_BITS);
}

/* The least weight of a bucket. */
INLINE float edge(long bucket) {
    const uint32_t bits = (uint32_t)(BUCKETS - 1 - bucket) << OCTAVE_BITS;
    float weight;
    memcpy(&weight, &bits, 4);
    return weight;
}

/* Where the kept ids end: the best `kept` of them, down to `last`, have the mass `mass`. */
typedef struct {
    long kept;
    double mass;
    candidate_t last;
} border_t;

/* Take candidates (those of a bucket, or all) from the best down -> whether the border lies among them. */
static int walk(border_t *border, candidate_t *sorted, long count, const draw_t *p, double most) {
    qsort(sorted, count, sizeof(*sorted), by_weight);
    for (long i = 0; i < count; i++) {
        const int within = border->kept < p->top_k && border->mass <= most && sorted[i].weight >= p->min_p;
        if (border->kept && !within) return 1;
        border->kept++, border->mass += sorted[i].weight, border->last = sorted[i];
    }
    return 0;
}

/* The border among `count` candidates. Only the bucket that it lies in is sorted. */
static candidate_t bordered(const space_t *s, long count, float least, const draw_t *p, double most) {
    border_t border = {0, 0, {1, 0}};
    if (count <= FEW_FOUND) {
        memcpy(s->sorted, s->found, count * sizeof(candidate_t));
        walk(&border, s->sorted, count, p, most);
        return border.last;
    }
    const long used = bucket(least) + 1;
    memset(s->masses, 0, used * sizeof(*s->masses));
    memset(s->counts, 0, used * sizeof(*s->counts));
    for (long i = 0; i < count; i++) {
        const long b = bucket(s->found[i].weight);
        s->counts[b]++, s->masses[b] += s->found[i].weight;
    }
    for (long b = 0; b < used; b++) {
        if (!s->counts[b]) continue;
        const long kept = border.kept + s->counts[b];
        const double mass = border.mass + s->masses[b];
        if (kept <= p->top_k && mass <= most && edge(b) >= p->min_p) { /* keep the whole bucket, unsorted */
            border = (border_t){kept, mass, {edge(b), INT_MAX}};
            continue;
        }
        long among = 0;
        for (long i = 0; i < count; i++)
            if (bucket(s->found[i].weight) == b) s->sorted[among++] = s->found[i];
        if (walk(&border, s->sorted, among, p, most)) break;
    }
    return border.last;
}

/* The draw within top-k, top-p and min-p. */
static long limited(const space_t *s, long n, double total, const draw_t *p) {
    /* Weights below `never` add up to at most what top-p leaves out; few of the best k are below `rare`. */
    const double never = fmax((1 - p->top_p) * total / n, p->min_p) * 0.999, rare = 1e-3;
    float least = (float)(p->top_k < n && p->top_p == 1 && rare > never ? rare : never);
    long count = collect(s->weights, n, least, s->found);
    if (count < p->top_k && least > never) count = collect(s->weights, n, least = (float)never, s->found);
    const candidate_t last = bordered(s, count, least, p, p->top_p * total);
    double mass = 0, sum = 0;
    long kept = 0, id = 0;
    for (long i = 0; i < count; i++) {
        const candidate_t c = s->found[i];
        if (c.weight > last.weight || (c.weight == last.weight && c.id <= last.id))
            s->found[kept++] = c, mass += c.weight;
    }
    for (long i = 0; i < kept; i++) {
        if (s->found[i].weight > 0) id = s->found[i].id;
        sum += s->found[i].weight;
        if (sum > p->uniform * mass) break;
    }
    return id;
}

/* ---- the operators ---- */

/* What there is to decide: see the functions below. */
typedef struct {
    const float *logits, *drawn;
    const draw_t *params;
    int64_t *ids;
    float *logs;
    int64_t *bad;
    char *space;
    long n, rows;
} logits_t;

/* The id of a row without a NaN, at least one logit of which is finite. */
static long draw(const float *x, long n, const draw_t *p, found_t best, const space_t *s) {
    if (p->temperature == 0) return best.id;
    /* A scale of 0 would make NaN of -inf, and an infinite one of 0. */
    const float scale = (float)fmax(fmin(1 / p->temperature, FLT_MAX), FLT_MIN);
    const double total = weigh(x, n, best.top, scale, s->weights, s->sums);
    const int any = p->top_k >= n && p->top_p == 1 && p->min_p == 0;
    return any ? inverted(s, n, total, p->uniform) : limited(s, n, total, p);
}

static float log_probability(const float *x, long n, long id, float top, const space_t *s) {
    return (float)((double)(x[id] - top) - log(weigh(x, n, top, 1, s->weights, s->sums)));
}

static void decide_share(void *what, team_t *team, long thread) {
    const logits_t *l = what;
    const space_t s = laid_out(l->space + thread * llama_rows_space(l->n), l->n);
    for (long r; (r = next_piece(team, l->rows)) < l->rows;) {
        const float *x = l->logits + r * l->n, *drawn = l->drawn + r * l->n;
        const found_t best = greatest(x, l->n);
        l->ids[r] = 0, l->logs[r] = 0, l->bad[r] = best.bad;
        if (best.bad) continue;
        l->ids[r] = draw(drawn, l->n, l->params + r, drawn == x ? best : greatest(drawn, l->n), &s);
        l->logs[r] = log_probability(x, l->n, l->ids[r], best.top, &s);
    }
}

/* Of each row of logits (rows, n): how many are not finite and, if none, an id and its log softmax. The ids are drawn
 * from rows of the same shape, which may be the same; a logit there is finite or -inf, at least one finite in each.
 * space: threads x llama_rows_space(n) bytes. */
EXPORT void llama_rows_decide(const float *logits, const float *drawn, const draw_t *params, int64_t *ids,
                              float *logs, int64_t *bad, char *space, long rows, long n, long threads) {
    logits_t l = {logits, drawn, params, ids, logs, bad, space, n, rows};
    run_team(decide_share, &l, threads < rows ? threads : rows);
}

static void logs_share(void *what, team_t *team, long thread) {
    const logits_t *l = what;
    const space_t s = laid_out(l->space + thread * llama_rows_space(l->n), l->n);
    for (long r; (r = next_piece(team, l->rows)) < l->rows;) {
        const float *x = l->logits + r * l->n;
        l->logs[r] = log_probability(x, l->n, l->ids[r], greatest(x, l->n).top, &s);
    }
}

/* log softmax of each row of finite logits (rows, n) at its id. */
EXPORT void llama_rows_logs(const float *logits, int64_t *ids, float *logs, char *space, long rows, long n,
                            long threads) {
    logits_t l = {logits, 0, 0, ids, logs, 0, space, n, rows};
    run_team(logs_share, &l, threads < rows ? threads : rows);
}
