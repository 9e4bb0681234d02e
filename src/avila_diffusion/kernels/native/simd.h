/* Vectors of the widest kind the target has, by the compiler's vector extensions: any processor that it compiles for. */

#include <stdint.h>
#include <string.h>
#if defined(__AVX__)
#include <immintrin.h>
#endif

/* VL floats in a vector. ROWS_n: rows of a micro-kernel that is n vectors wide, so that the sums stay in registers:
   rows * n accumulators, n vectors of the right matrix and one broadcast of the left, of 32 or 16 registers. */
#if defined(__AVX512F__)
#define VL 16
#define ROWS_1 12
#define ROWS_2 12
#define ROWS_3 8
#elif defined(__AVX__)
#define VL 8
#define ROWS_1 8
#define ROWS_2 6
#define ROWS_3 4
#elif defined(__aarch64__)
#define VL 4
#define ROWS_1 12
#define ROWS_2 12
#define ROWS_3 8
#else
#define VL 4
#define ROWS_1 12
#define ROWS_2 6
#define ROWS_3 4
#endif

#define UNROLL _Pragma("GCC unroll 16")
#define PANEL (2 * VL) /* columns of a packed panel of weights */

typedef float vec __attribute__((vector_size(VL * 4)));
typedef float vec_anywhere __attribute__((vector_size(VL * 4), aligned(4), may_alias));
typedef int64_t i64; /* long has 32 bits on Windows */
typedef int32_t ivec __attribute__((vector_size(VL * 4)));
#define UNLIMITED __builtin_inff() /* Windows has an INFINITE, which is a whole number */

static inline vec load(const float *p) { return *(const vec_anywhere *)p; }
static inline void store(float *p, vec x) { *(vec_anywhere *)p = x; }
static inline vec fill(float x) { return x - (vec){0}; }

static inline vec choose(ivec mask, vec yes, vec no) { return (vec)((mask & (ivec)yes) | (~mask & (ivec)no)); }

/* Where a or b is not a number, b. GCC makes a maximum of no expression in its vectors, so it is named where it matters. */
#if defined(__AVX512F__)
static inline vec larger(vec a, vec b) { return (vec)_mm512_max_ps((__m512)a, (__m512)b); }
static inline vec lesser(vec a, vec b) { return (vec)_mm512_min_ps((__m512)a, (__m512)b); }
#elif defined(__AVX__)
static inline vec larger(vec a, vec b) { return (vec)_mm256_max_ps((__m256)a, (__m256)b); }
static inline vec lesser(vec a, vec b) { return (vec)_mm256_min_ps((__m256)a, (__m256)b); }
#else
static inline vec larger(vec a, vec b) { return choose(a > b, a, b); }
static inline vec lesser(vec a, vec b) { return choose(a < b, a, b); }
#endif

/* Lane l of the result is lane LANES[l] of a and b, b's counted from VL on. */
#if VL == 16
#define LANES(F, H) F(0, H), F(1, H), F(2, H), F(3, H), F(4, H), F(5, H), F(6, H), F(7, H), F(8, H), F(9, H), \
                    F(10, H), F(11, H), F(12, H), F(13, H), F(14, H), F(15, H)
#elif VL == 8
#define LANES(F, H) F(0, H), F(1, H), F(2, H), F(3, H), F(4, H), F(5, H), F(6, H), F(7, H)
#else
#define LANES(F, H) F(0, H), F(1, H), F(2, H), F(3, H)
#endif
#ifdef __clang__
#define SHUFFLE(A, B, F, H) __builtin_shufflevector(A, B, LANES(F, H))
#else
#define SHUFFLE(A, B, F, H) __builtin_shuffle(A, B, (ivec){LANES(F, H)})
#endif

/* Exchange the off-diagonal blocks of H x H of every block of 2H x 2H; for H = VL / 2 ... 1 that turns rows into columns. */
#define LOW(L, H) ((L) & (H) ? (L) - (H) + VL : (L))
#define HIGH(L, H) ((L) & (H) ? (L) + VL : (L) + (H))
#define EXCHANGE(R, H)                                                                   \
  UNROLL for (int i = 0; i < VL; i++) if (!(i & (H))) {                                  \
    vec low = SHUFFLE(R[i], R[i + (H)], LOW, H), high = SHUFFLE(R[i], R[i + (H)], HIGH, H); \
    R[i] = low;                                                                          \
    R[i + (H)] = high;                                                                   \
  }

static inline void transpose(vec *rows) {
#if VL == 16
  EXCHANGE(rows, 8)
#endif
#if VL >= 8
  EXCHANGE(rows, 4)
#endif
  EXCHANGE(rows, 2)
  EXCHANGE(rows, 1)
}

static inline double sum_of(vec x) {
  double sum = 0.0;
  for (int i = 0; i < VL; i++) sum += x[i];
  return sum;
}

static inline i64 smaller_of(i64 a, i64 b) { return a < b ? a : b; }
static inline i64 larger_of(i64 a, i64 b) { return a > b ? a : b; }

/* 2 to the x, x at most 126 and clamped to -126 below. x = n + f with f in -1/2 ... 1/2 by the rounding of a sum to an integer; the
   polynomial is a minimax fit of 2^f (relative error 7.5e-8, below one rounding); n goes into the exponent's bits. */
static inline vec exp2_of(vec x) {
  const float magic = 12582912.0f; /* 1.5 * 2^23: a float of this size has no fraction */
  x = larger(fill(-126.0f), x);
  vec t = x + magic;
  vec f = x - (t - magic);
  vec p = 0.001327647129073739f * f + 0.009675540961325169f;
  p = p * f + 0.05550713092088699f;
  p = p * f + 0.24022120237350464f;
  p = p * f + 0.6931469440460205f;
  p = p * f + 1.0f;
  return (vec)((ivec)p + ((ivec)t << 23));
}

static inline vec exp_of(vec x) { return exp2_of(lesser(fill(126.0f), x * 1.4426950408889634f)); }

static inline vec silu_of(vec x) { return x / (1.0f + exp_of(-x)); }

/* x Phi(x), Phi the normal distribution function. Phi(-a) = exp(-a^2 / 2) r(a) for a >= 0; r, a scaled complementary
   error function, is a polynomial in 1 / (1 + 0.3 a) (minimax fit on 0 ... 13, relative error 6e-8). */
static inline vec gelu_of(vec x) {
  vec a = choose(x < 0.0f, -x, x);
  vec u = 1.0f / (1.0f + 0.3f * a);
  vec r = 0.0382709875702858f * u - 0.16864344477653503f;
  r = r * u + 0.227577805519104f;
  r = r * u - 0.07526527345180511f;
  r = r * u + 0.14167550206184387f;
  r = r * u + 0.09505120664834976f;
  r = r * u + 0.12182585895061493f;
  r = r * u + 0.11950100213289261f;
  r = r * u + 6.3829256760072894e-06f;
  vec tail = r * exp_of(-0.5f * a * a);
  return x * choose(x < 0.0f, tail, 1.0f - tail);
}
