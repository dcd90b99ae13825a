/* Collectives of ranks on one machine, through shared memory. Runs on any CPU.
 *
 * A decoded token takes two sums over the ranks for each layer, of a few kilobytes: sending them through a
 * socket takes longer than adding them. Each rank writes its data into its slot, raises its number, waits
 * until the others have raised theirs, and reads their slots in rank order, so that all ranks get the same
 * sum. Each rank uses two slots in turn: it writes a slot again only after every other rank has raised the
 * number that follows the one it read the slot for.
 *
 * With its slot each rank writes three words: the kind of the collective, its size, and the step of the
 * engine. Ranks whose words differ would add things that do not belong together, so all of them fail instead.
 */

#include "abi.h"
#include "relax.h"

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* SPINS, YIELDS: of a wait, before it sleeps. PATIENCE: milliseconds until the caller may handle signals. */
enum { HEADER = 1024, WORDS = 3, SPINS = 2000, YIELDS = 200, PATIENCE = 100, AGAIN = -1, DIFFER = -2 };

/* Number and words share a cache line. Behind this, up to HEADER, shared_memory.py keeps the reason why a
 * rank gave up. */
typedef struct {
    uint64_t number;          /* of the last collective that this rank has written its slot for */
    uint64_t words[2][WORDS]; /* of it and of the one before, as the slots */
    int64_t pid;
    uint8_t gave_up; /* whether it left a step; written and read by shared_memory.py only */
} rank_t;

static rank_t *rank_at(char *base, long rank) { return (rank_t *)(base + rank * HEADER); }

static char *slot_at(char *base, long size, long slot, long rank, uint64_t number) {
    return base + size * HEADER + (2 * rank + (long)(number & 1)) * slot;
}

/* Bytes that `size` ranks need for slots of `slot` bytes. */
EXPORT long llama_ranks_bytes(long size, long slot) { return size * (HEADER + 2 * slot); }

EXPORT void llama_ranks_enter(char *base, long rank) { rank_at(base, rank)->pid = (int64_t)getpid(); }

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e3 + t.tv_nsec / 1e6;
}

/* 0 when all have raised `number`, AGAIN after PATIENCE, DIFFER if any rank's words are not those of `rank`,
 * or 1 + the rank of a process that is gone. */
static int wait_for(char *base, long rank, long size, uint64_t number) {
    double end = 0;
    long turns = 0;
    for (long r = 0; r < size; r++)
        while (__atomic_load_n(&rank_at(base, r)->number, __ATOMIC_ACQUIRE) < number) {
            turns++;
            if (turns < SPINS) {
                RELAX();
            } else if (turns < SPINS + YIELDS) {
                sched_yield();
            } else {
                const struct timespec nap = {0, turns < SPINS + YIELDS + 200 ? 50000 : 500000};
                nanosleep(&nap, 0);
                if (end == 0) end = now() + PATIENCE;
                if (now() >= end) {
                    const int64_t pid = rank_at(base, r)->pid;
                    return pid && kill((pid_t)pid, 0) && errno == ESRCH ? (int)r + 1 : AGAIN;
                }
            }
        }
    const uint64_t *own = rank_at(base, rank)->words[number & 1];
    for (long r = 0; r < size; r++)
        if (memcmp(rank_at(base, r)->words[number & 1], own, sizeof(uint64_t) * WORDS)) return DIFFER;
    return 0;
}

/* Write this rank's data for collective `number`, then raise its number. */
static void enter(char *base, long rank, long size, long slot, uint64_t number, const uint64_t *words, const void *x,
                  long bytes) {
    memcpy(slot_at(base, size, slot, rank, number), x, bytes);
    memcpy(rank_at(base, rank)->words[number & 1], words, sizeof(uint64_t) * WORDS);
    __atomic_store_n(&rank_at(base, rank)->number, number, __ATOMIC_RELEASE);
}

static float wide(uint16_t x) {
    const uint32_t bits = (uint32_t)x << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

/* Rounded to the nearest, ties to even; NaN stays NaN. */
static uint16_t narrow(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    if (x != x) return (uint16_t)(bits >> 16 | 64);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

/* x becomes the sum over the ranks; kind 0: float32, 1: bfloat16. what, step, extent: this rank's words.
 * write: whether this is the first try of this number. */
EXPORT int llama_ranks_sum(char *base, long rank, long size, long slot, uint64_t number, uint64_t what,
                           uint64_t step, uint64_t extent, void *x, long count, long kind, int write) {
    const long bytes = count * (kind ? 2 : 4);
    const uint64_t words[WORDS] = {what, step, extent};
    if (write) enter(base, rank, size, slot, number, words, x, bytes);
    const int code = wait_for(base, rank, size, number);
    if (code) return code;
    enum { BLOCK = 256 };
    for (long first = 0; first < count; first += BLOCK) {
        const long n = count - first < BLOCK ? count - first : BLOCK;
        float sum[BLOCK] = {0};
        for (long r = 0; r < size; r++) {
            const char *from = slot_at(base, size, slot, r, number);
            if (kind)
                for (long i = 0; i < n; i++) sum[i] += wide(((const uint16_t *)from)[first + i]);
            else
                for (long i = 0; i < n; i++) sum[i] += ((const float *)from)[first + i];
        }
        if (kind)
            for (long i = 0; i < n; i++) ((uint16_t *)x)[first + i] = narrow(sum[i]);
        else
            memcpy((float *)x + first, sum, n * 4);
    }
    return 0;
}

/* out (size, bytes) gets the `bytes` of every rank. */
EXPORT int llama_ranks_gather(char *base, long rank, long size, long slot, uint64_t number, uint64_t what,
                              uint64_t step, uint64_t extent, const void *x, void *out, long bytes, int write) {
    const uint64_t words[WORDS] = {what, step, extent};
    if (write) enter(base, rank, size, slot, number, words, x, bytes);
    const int code = wait_for(base, rank, size, number);
    if (code) return code;
    for (long r = 0; r < size; r++)
        memcpy((char *)out + r * bytes, slot_at(base, size, slot, r, number), bytes);
    return 0;
}
