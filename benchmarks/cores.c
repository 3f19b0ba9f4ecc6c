/* One thread pinned to each of `count` cores. All multiply and add at once, hand a number around, and multiply and add
   again (a core may be moved meanwhile). Writes the seconds that one passing took, and the seconds of the slowest
   multiply-adds; returns 0, or 1 where threads cannot be had. Compiled and called by cores.py. */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <time.h>

#define MOST 256
#define CHAINS 12

typedef float vec __attribute__((vector_size(64)));

typedef struct {
  _Alignas(128) atomic_long ball;
  atomic_int given_up;
  long passes, rounds;
  int count;
} Ring;

typedef struct {
  Ring* ring;
  int core;
  long next; /* the number that it waits for */
  double passing, adding;
  float sum;
} Runner;

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec + 1e-9 * t.tv_nsec;
}

/* Hands the number on `passes` times; 0 once another has given up. */
static int pass(Runner* me, long passes) {
  Ring* ring = me->ring;
  for (long i = 0; i < passes; ++i, me->next += ring->count) {
    while (atomic_load_explicit(&ring->ball, memory_order_acquire) != me->next)
      if (atomic_load_explicit(&ring->given_up, memory_order_relaxed)) return 0;
    atomic_fetch_add_explicit(&ring->ball, 1, memory_order_release);
  }
  return 1;
}

static void add(Runner* me) {
  vec sums[CHAINS], factor = (vec){0} + 0.999f;
  for (int c = 0; c < CHAINS; ++c) sums[c] = factor + (float)c;
  const double start = now();
  for (long round = 0; round < me->ring->rounds; ++round) {
#pragma GCC unroll 12
    for (int c = 0; c < CHAINS; ++c) sums[c] = sums[c] * factor + factor;
  }
  const double took = now() - start;
  if (took > me->adding) me->adding = took;
  for (int c = 0; c < CHAINS; ++c) me->sum += sums[c][0];
}

static void* run(void* argument) {
  Runner* me = argument;
  cpu_set_t core;
  CPU_ZERO(&core);
  CPU_SET(me->core, &core);
  sched_setaffinity(0, sizeof core, &core);
  if (!pass(me, 2)) return NULL; /* now all are there */
  add(me);
  if (!pass(me, 2)) return NULL;
  const double start = now();
  if (!pass(me, me->ring->passes)) return NULL;
  me->passing = (now() - start) / (me->ring->passes * me->ring->count);
  add(me);
  return NULL;
}

int probe_cores(const int* cores, int count, long passes, long rounds, double* passing, double* adding) {
  Ring ring = {0, 0, passes, rounds, count};
  Runner runners[MOST];
  pthread_t threads[MOST];
  if (count > MOST) return 1;
  for (int i = 0; i < count; ++i) {
    runners[i] = (Runner){&ring, cores[i], i, 0, 0, 0};
    if (pthread_create(&threads[i], NULL, run, &runners[i])) {
      ring.given_up = 1;
      while (--i >= 0) pthread_join(threads[i], NULL);
      return 1;
    }
  }
  *passing = *adding = 0;
  for (int i = 0; i < count; ++i) {
    pthread_join(threads[i], NULL);
    if (runners[i].passing > *passing) *passing = runners[i].passing;
    if (runners[i].adding > *adding) *adding = runners[i].adding;
  }
  return 0;
}
