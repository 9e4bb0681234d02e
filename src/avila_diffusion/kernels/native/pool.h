/* Threads of our own, for where torch's cannot be had. They sleep between calls, and one call has them at a time: whoever
   comes meanwhile computes alone, which gives the same bits. */
typedef void kernel(void *, struct team *, int);

struct job {
  kernel *run;
  void *arguments;
  struct team team;
};

#if defined(_WIN32)
typedef SRWLOCK lock_t;
typedef CONDITION_VARIABLE signal_t;
#define LOCK_INIT SRWLOCK_INIT
#define SIGNAL_INIT CONDITION_VARIABLE_INIT
static void lock(lock_t *l) { AcquireSRWLockExclusive(l); }
static void unlock(lock_t *l) { ReleaseSRWLockExclusive(l); }
static void await(signal_t *s, lock_t *l) { SleepConditionVariableSRW(s, l, INFINITE, 0); }
static void call_all(signal_t *s) { WakeAllConditionVariable(s); }
#else
#include <pthread.h>
typedef pthread_mutex_t lock_t;
typedef pthread_cond_t signal_t;
#define LOCK_INIT PTHREAD_MUTEX_INITIALIZER
#define SIGNAL_INIT PTHREAD_COND_INITIALIZER
static void lock(lock_t *l) { pthread_mutex_lock(l); }
static void unlock(lock_t *l) { pthread_mutex_unlock(l); }
static void await(signal_t *s, lock_t *l) { pthread_cond_wait(s, l); }
static void call_all(signal_t *s) { pthread_cond_broadcast(s); }
#endif

#define MOST_THREADS 256

static struct pool {
  lock_t lock;
  signal_t called, finished;
  int made, busy, at_work;    /* made: threads, beside those who call */
  char wanted[MOST_THREADS]; /* by the number of the part */
  struct job *job;
} pool = {.lock = LOCK_INIT, .called = SIGNAL_INIT, .finished = SIGNAL_INIT};

static void serve(i64 part) {
  lock(&pool.lock);
  for (;;) {
    while (!pool.wanted[part]) await(&pool.called, &pool.lock);
    pool.wanted[part] = 0;
    struct job *job = pool.job;
    unlock(&pool.lock);
    job->run(job->arguments, &job->team, (int)part);
    lock(&pool.lock);
    if (--pool.at_work == 0) call_all(&pool.finished);
  }
}

#if defined(_WIN32)
static DWORD WINAPI begin(void *part) {
  serve((i64)(intptr_t)part);
  return 0;
}
static int start(i64 part) {
  HANDLE made = CreateThread(0, 0, begin, (void *)(intptr_t)part, 0, 0);
  return made && CloseHandle(made);
}
#else
static void *begin(void *part) {
  serve((i64)(intptr_t)part);
  return 0;
}
/* A forked child has none of the threads, and perhaps a lock that nobody will open. */
static void forget(void) { pool = (struct pool){.lock = LOCK_INIT, .called = SIGNAL_INIT, .finished = SIGNAL_INIT}; }
static int start(i64 part) {
  static int told;
  pthread_t made;
  if (!told) told = pthread_atfork(0, 0, forget) == 0;
  if (!told || pthread_create(&made, 0, begin, (void *)(intptr_t)part)) return 0;
  return !pthread_detach(made);
}
#endif

static void run_in_pool(struct job *job, int threads) {
  int parts = threads < MOST_THREADS ? threads : MOST_THREADS;
  lock(&pool.lock);
  if (pool.busy) parts = 1;
  while (pool.made < parts - 1 && start(pool.made + 1)) pool.made++;
  if (parts > pool.made + 1) parts = pool.made + 1; /* the system gave no more threads */
  job->team.parts = parts;
  if (parts == 1) {
    unlock(&pool.lock);
    job->run(job->arguments, &job->team, 0);
    return;
  }
  pool.busy = 1;
  pool.job = job;
  pool.at_work = parts - 1;
  memset(pool.wanted + 1, 1, parts - 1);
  call_all(&pool.called);
  unlock(&pool.lock);
  job->run(job->arguments, &job->team, 0);
  lock(&pool.lock);
  while (pool.at_work) await(&pool.finished, &pool.lock);
  pool.busy = 0;
  unlock(&pool.lock);
}
