/* Kernels for processors: matrix products, Winograd convolutions, attention, norms. Float32, NHWC; no dependency.

   Built by build.py with the compiler at hand, for the processor at hand, and called through ctypes. */
#if defined(__MINGW32__) && !defined(__clang__)
#error GCC for Windows keeps vectors on a stack that is not aligned for them (bug 54412): take Clang or ziglang
#endif
#include "simd.h"
#include "team.h"
#include "pool.h"
#include "multiply.h"
#include "pack.h"
#include "linear.h"
#include "winograd.h"
#include "outliers.h"
#include "convolve.h"
#include "attention.h"
#include "norm.h"

static kernel *const kernels[] = {linear_part, winograd_part, attention_part, group_norm_part, layer_norm_part,
                                  pack_rows_part, pack_winograd_part, channel_sums_part, normalise_part};

/* The threads that torch computes with serve here too: two pools would spin against each other. GNU's OpenMP is entered by
   GOMP_parallel, LLVM's and Intel's by __kmpc_fork_call (and on some systems by GNU's names as well). */
struct place { /* ident_t of LLVM's kmp.h */
  int32_t reserved_1, flags, reserved_2, reserved_3;
  const char *source;
};

static struct openmp {
  void (*gomp_parallel)(void (*)(void *), void *, unsigned, unsigned);
  void (*fork_call)(struct place *, int32_t, void (*)(int32_t *, int32_t *, void *), ...);
  void (*push_num_threads)(struct place *, int32_t, int32_t);
  int32_t (*global_thread_num)(struct place *);
  int (*thread_num)(void);
  int (*num_threads)(void);
} openmp;

/* functions: as in `struct openmp`; with neither way in, the pool is taken. */
EXPORT void avila_use_openmp(const struct openmp *functions) { openmp = *functions; }

static void take_part(void *p) {
  struct job *job = p;
  /* OpenMP may give fewer threads than were asked for. All of them write the same number, and none reads it before it has
     written it. */
  __atomic_store_n(&job->team.parts, openmp.num_threads(), __ATOMIC_RELAXED);
  job->run(job->arguments, &job->team, openmp.thread_num());
}

static void take_part_of_llvm(int32_t *global, int32_t *bound, void *p) {
  (void)global, (void)bound;
  take_part(p);
}

EXPORT void avila_run(int which, void *arguments, int threads) {
  struct job job = {kernels[which], arguments, {1, 0, 0}};
  if (threads <= 1) {
    job.run(arguments, &job.team, 0);
  } else if (openmp.gomp_parallel) {
    openmp.gomp_parallel(take_part, &job, threads, 0);
  } else if (openmp.fork_call) {
    static struct place here = {0, 2, 0, 0, ";native.c;avila_run;0;0;;"}; /* 2: called from compiled code */
    openmp.push_num_threads(&here, openmp.global_thread_num(&here), threads);
    openmp.fork_call(&here, 1, take_part_of_llvm, &job);
  } else {
    run_in_pool(&job, threads);
  }
}

EXPORT int avila_vector_length(void) { return VL; }

/* The compiler that made this; of its vectors see above. */
EXPORT const char *avila_compiler(void) {
#if defined(__clang__)
  return "clang " __clang_version__;
#elif defined(__GNUC__)
  return "gcc " __VERSION__;
#else
  return "a compiler of no name";
#endif
}
