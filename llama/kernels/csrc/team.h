/* Threads that work on one thing together. */

#ifndef LLAMA_TEAM_H
#define LLAMA_TEAM_H

/* How many pieces of a thread's share are taken, in rounds of work with an even and an odd number. A cache line each. */
typedef struct {
    long taken[2];
    char rest[64 - 2 * sizeof(long)];
} share_t;

/* A barrier, and the work that is left since the last one. */
typedef struct {
    int arrived, round;
    share_t *shares;
} shared_t;

/* What each thread has of its team. `round` counts the barriers; `passed` are the shares in which nothing is left. */
typedef struct {
    shared_t *shared;
    int threads, thread, round, passed;
} team_t;

typedef void (*work_t)(void *what, team_t *team, long thread);

/* Run work(what, team, thread) in so many threads; fewer where there are not so many. */
void run_team(work_t work, void *what, long threads);

/* Where the i-th of n shares begins. */
static inline long share(long count, long i, long n) { return count * i / n; }

/* The next of `count` pieces of work between two barriers; `count`, if none is left. A thread takes its share from front
 * to back, since neighbouring pieces of a matrix are one stream of memory: with pieces in turn, two threads read
 * 4-bit weights at 0.65 of the speed. Then it helps the others: with fixed shares alone, all would wait for a core that
 * another program uses too. */
static inline long next_piece(team_t *team, long count) {
    for (; team->passed < team->threads; team->passed++) {
        const int whose = (team->thread + team->passed) % team->threads;
        long *taken = &team->shared->shares[whose].taken[team->round % 2];
        const long piece = share(count, whose, team->threads) + __atomic_fetch_add(taken, 1, __ATOMIC_RELAXED);
        if (piece < share(count, whose + 1, team->threads)) return piece;
    }
    return count;
}

/* Wait until every thread is here. Then pieces are counted from 0 again. */
void wait_all(team_t *team);

#endif
