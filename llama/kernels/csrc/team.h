/* Threads that work on one thing together. */

#ifndef LLAMA_TEAM_H
#define LLAMA_TEAM_H

/* A barrier, and the work that is left since the last one. */
typedef struct {
    int arrived, round;
    long next; /* the first piece of work that no thread has taken */
} shared_t;

/* What each thread has of its team. */
typedef struct {
    shared_t *shared;
    int threads;
} team_t;

typedef void (*work_t)(void *what, team_t *team, long thread);

/* Run work(what, team, thread) in so many threads; fewer where there are not so many. */
void run_team(work_t work, void *what, long threads);

/* The next piece of work between two barriers. Threads take pieces as they become free: with fixed shares, all
 * would wait for a core that another program uses too. */
static inline long next_piece(team_t *team) { return __atomic_fetch_add(&team->shared->next, 1, __ATOMIC_RELAXED); }

/* Wait until every thread is here. Then pieces are counted from 0 again. */
void wait_all(team_t *team);

/* Where the i-th of n shares begins. */
static inline long share(long count, long i, long n) { return count * i / n; }

#endif
