// What the machine itself needs for a round trip: two processes on one core, which yield while they wait, and a third on another core
// that hands one word to and fro between them. Prints the nanoseconds of a round trip, the median of a few runs.
//
//   hand-over ENGINE_CPU PROGRAMS_CPU
#define _GNU_SOURCE
#include <err.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { ROUND_TRIPS = 50000, RUNS = 5 };
// Each on a cache line of its own: what one has said, and what the other is told.
struct words {
  _Alignas(64) _Atomic int asked;
  _Alignas(64) _Atomic int told;
  _Alignas(64) _Atomic int answered;
  _Alignas(64) _Atomic int heard;
};

static void pin(int cpu) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(cpu, &set);
  if (sched_setaffinity(0, sizeof set, &set) != 0) err(2, "CPU %d", cpu);
}
static void wait_for(_Atomic int *word, int value) {
  while (atomic_load(word) < value) sched_yield();
}
static void answer(struct words *words) {
  for (int i = 1; i <= ROUND_TRIPS; i++) {
    wait_for(&words->told, i);
    atomic_store(&words->answered, i);
  }
}
static void carry(struct words *words) {
  for (int told = 0, heard = 0; heard < ROUND_TRIPS;) {
    int now = atomic_load(&words->asked);
    if (now > told) atomic_store(&words->told, told = now);
    now = atomic_load(&words->answered);
    if (now > heard) atomic_store(&words->heard, heard = now);
  }
}
static double nanoseconds(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}
static int by_value(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

int main(int count, char **arguments) {
  if (count != 3) errx(2, "usage: hand-over ENGINE_CPU PROGRAMS_CPU");
  int engine = atoi(arguments[1]), programs = atoi(arguments[2]);
  double runs[RUNS];
  pin(programs);
  for (int run = 0; run < RUNS; run++) {
    struct words *words = mmap(NULL, sizeof *words, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (words == MAP_FAILED) err(2, "mmap");
    void (*parts[])(struct words *) = {answer, carry};
    for (int i = 0; i < 2; i++) {
      pid_t child = fork();
      if (child < 0) err(2, "fork");
      if (child > 0) continue;
      prctl(PR_SET_PDEATHSIG, SIGKILL);
      if (i == 1) pin(engine);
      parts[i](words);
      _exit(0);
    }
    double start = nanoseconds();
    for (int i = 1; i <= ROUND_TRIPS; i++) {
      atomic_store(&words->asked, i);
      wait_for(&words->heard, i);
    }
    runs[run] = (nanoseconds() - start) / ROUND_TRIPS;
    while (wait(NULL) > 0) {}
    munmap(words, sizeof *words);
  }
  qsort(runs, RUNS, sizeof *runs, by_value);
  printf("%.0f\n", runs[RUNS / 2]);
  return 0;
}
