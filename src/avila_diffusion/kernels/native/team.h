/* Several threads on one kernel. A kernel is a function of (arguments, team, part); parts never share what they write,
   and what is computed for an output does not depend on how many parts there are. */

#if defined(_WIN32)
#include <windows.h>
static void rest(void) { SwitchToThread(); }
#else
#include <sched.h>
static void rest(void) { sched_yield(); }
#endif

#if defined(_WIN32)
#define EXPORT __declspec(dllexport)
#else
#define EXPORT __attribute__((visibility("default")))
#endif

struct team {
  int parts;
  int arrived;
  int phase;
};

/* Wait until every part has come here. */
static void barrier(struct team *team) {
  if (team->parts == 1) return;
  int phase = __atomic_load_n(&team->phase, __ATOMIC_ACQUIRE);
  if (__atomic_add_fetch(&team->arrived, 1, __ATOMIC_ACQ_REL) == team->parts) {
    __atomic_store_n(&team->arrived, 0, __ATOMIC_RELAXED);
    __atomic_store_n(&team->phase, phase + 1, __ATOMIC_RELEASE);
    return;
  }
  for (int spins = 0; __atomic_load_n(&team->phase, __ATOMIC_ACQUIRE) == phase; spins++)
    if (spins > 2000) rest();
}

/* The share of `part` in 0 ... count: from *first up to *end. */
static void share(i64 count, int parts, int part, i64 *first, i64 *end) {
  *first = count * part / parts;
  *end = count * (part + 1) / parts;
}
