/* Threads of the OpenMP runtime that torch has loaded, so that there is one pool of threads in the process. Its
 * two functions are called by name, as the compiler would for `#pragma omp parallel`: GNU's and LLVM's runtime
 * both have them, and this file needs neither a compiler with OpenMP nor its header. Without a runtime there is
 * one thread. */

#define _GNU_SOURCE /* RTLD_DEFAULT */
#include "team.h"

#include <dlfcn.h>
#include <sched.h>
#include <stdint.h>
#include <string.h>

#include "relax.h"

/* About 100 microseconds. */
enum { SPINS = 20000 };

typedef void (*parallel_t)(void (*)(void *), void *, unsigned, unsigned);
typedef int (*number_t)(void);

typedef struct {
    work_t work;
    void *what;
    shared_t shared;
} run_t;

static parallel_t parallel;
static number_t number, count;

/* When this library is opened: torch is there by then. */
__attribute__((constructor)) static void find_runtime(void) {
    parallel = (parallel_t)dlsym(RTLD_DEFAULT, "GOMP_parallel");
    number = (number_t)dlsym(RTLD_DEFAULT, "omp_get_thread_num");
    count = (number_t)dlsym(RTLD_DEFAULT, "omp_get_num_threads");
}

static void one_thread(void *argument) {
    run_t *run = argument;
    team_t team = {&run->shared, count(), number(), 0, 0};
    run->work(run->what, &team, number());
}

void run_team(work_t work, void *what, long threads) {
    if (threads < 1 || !parallel || !number || !count) threads = 1;
    share_t memory[threads + 1];
    share_t *shares = (share_t *)(((uintptr_t)memory + sizeof(share_t) - 1) / sizeof(share_t) * sizeof(share_t));
    memset(shares, 0, threads * sizeof(share_t));
    run_t run = {work, what, {0, 0, shares}};
    team_t alone = {&run.shared, 1, 0, 0, 0};
    if (threads > 1)
        parallel(one_thread, &run, (unsigned)threads, 0);
    else
        work(what, &alone, 0);
}

/* For waits of a few microseconds, cheaper than OpenMP's, which soon sleeps. A thread that waits for a peer
 * which lost its core yields its own core instead of spinning on. */
void wait_all(team_t *team) {
    shared_t *s = team->shared;
    const int round = team->round++;
    team->passed = 0;
    /* Of the round to come. The last that used it was the one before this, which every thread has left. */
    s->shares[team->thread].taken[team->round % 2] = 0;
    if (team->threads == 1) return;
    if (__atomic_add_fetch(&s->arrived, 1, __ATOMIC_ACQ_REL) == team->threads) {
        __atomic_store_n(&s->arrived, 0, __ATOMIC_RELAXED);
        __atomic_store_n(&s->round, round + 1, __ATOMIC_RELEASE);
        return;
    }
    for (long spins = 0; __atomic_load_n(&s->round, __ATOMIC_ACQUIRE) == round; spins++)
        if (spins < SPINS)
            RELAX();
        else
            sched_yield();
}
