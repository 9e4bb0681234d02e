/* Kernels for processors: matrix products, Winograd convolutions, attention, norms. Float32, NHWC; no dependency.

   Built by native.py with the compiler at hand, for the processor at hand, and called through ctypes. */
#include "simd.h"
#include "team.h"
#include "multiply.h"
#include "pack.h"
#include "linear.h"
#include "winograd.h"
#include "attention.h"
#include "norm.h"

typedef void kernel(void *, struct team *, int);

static kernel *const kernels[] = {linear_part, winograd_part, attention_part, group_norm_part, layer_norm_part,
                                  pack_rows_part, pack_winograd_part};

/* Where torch computes with GNU OpenMP its threads serve here too: two pools would spin against each other. */
static void (*parallel)(void (*)(void *), void *, unsigned, unsigned);
static int (*thread_number)(void);
static int (*threads_in_team)(void);

EXPORT void avila_use_openmp(void *gomp_parallel, void *omp_get_thread_num, void *omp_get_num_threads) {
  parallel = gomp_parallel;
  thread_number = omp_get_thread_num;
  threads_in_team = omp_get_num_threads;
}

struct job {
  kernel *run;
  void *arguments;
  struct team team;
};

static void take_part(void *p) {
  struct job *job = p;
  /* OpenMP may give fewer threads than were asked for, and every one of them knows how many they are. */
  __atomic_store_n(&job->team.parts, threads_in_team(), __ATOMIC_RELAXED);
  job->run(job->arguments, &job->team, thread_number());
}

EXPORT void avila_run(int which, void *arguments, int threads) {
  struct job job = {kernels[which], arguments, {1, 0, 0}};
  if (threads > 1 && parallel)
    parallel(take_part, &job, threads, 0);
  else
    job.run(arguments, &job.team, 0);
}

/* One part of a team whose threads the caller makes. */
EXPORT void avila_run_part(int which, void *arguments, struct team *team, int part) {
  kernels[which](arguments, team, part);
}

EXPORT int avila_vector_length(void) { return VL; }
