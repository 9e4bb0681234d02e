/* Several threads on one kernel. A kernel is a function of (arguments, team, part); parts never share what they write,
   and what is computed for an output does not depend on how many parts there are. */

#if defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#include <windows.h>
#undef far /* words of 16-bit days */
#undef near
static void yield(void) { SwitchToThread(); }
static void rest(void) { Sleep(1); }
#define EXPORT __declspec(dllexport)
#else
#include <sched.h>
#include <time.h>
static void yield(void) { sched_yield(); }
static void rest(void) { nanosleep(&(struct timespec){0, 50000}, 0); }
#define EXPORT __attribute__((visibility("default")))
#endif

struct team {
  int parts;
  int arrived;
  int phase;
};

static inline void pause_briefly(void) {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

#define PAUSES 1000 /* some tens of microseconds: parts of one size end together where each has a core */
#define YIELDS 500  /* then whoever waits for this core gets it; then it sleeps, since a part may take long */

/* Wait until every part has come here. The last to arrive opens the next phase; nobody can arrive there before. */
static void barrier(struct team *team) {
  if (team->parts == 1) return;
  int phase = __atomic_load_n(&team->phase, __ATOMIC_ACQUIRE);
  if (__atomic_add_fetch(&team->arrived, 1, __ATOMIC_ACQ_REL) == team->parts) {
    __atomic_store_n(&team->arrived, 0, __ATOMIC_RELAXED);
    __atomic_store_n(&team->phase, phase + 1, __ATOMIC_RELEASE);
    return;
  }
  for (int waits = 0; __atomic_load_n(&team->phase, __ATOMIC_ACQUIRE) == phase; waits++)
    if (waits < PAUSES) pause_briefly();
    else if (waits < PAUSES + YIELDS) yield();
    else rest(), waits--;
}

/* The share of `part` in 0 ... count: from *first up to *end. */
static void share(i64 count, int parts, int part, i64 *first, i64 *end) {
  *first = count * part / parts;
  *end = count * (part + 1) / parts;
}
