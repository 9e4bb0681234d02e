/* Matrix products of small pieces: the micro-kernels that everything else is made of.

   C (R, NV * VL) = A (R, k) B (k, NV * VL), or += with `add`. B is packed (row by row, aligned), A is read where it lies,
   row by row. Each element of C is one chain of fused multiply-adds along k, whatever R and NV are, so that the bits of a
   row do not depend on its neighbours. */
#if defined(__clang__) && VL == 8
/* Where 4 x 3 sums fill the registers but for four, Clang 20 moves them about from step to step and halves the rate. Named
   after each addition they stay where they are. (Narrower kernels are better off without.) */
#define STAY(SUM, NV) if (NV == 3) __asm__("" : "+x"(SUM))
#else
#define STAY(SUM, NV)
#endif

#define MICRO(NAME, R, NV)                                                                           \
  static void NAME(i64 k, const float *a, i64 lda, const float *b, float *c, i64 ldc, int add) { \
    vec acc[R][NV];                                                                                  \
    UNROLL for (int i = 0; i < R; i++) UNROLL for (int j = 0; j < NV; j++) acc[i][j] = (vec){0};     \
    for (i64 p = 0; p < k; p++) {                                                                   \
      vec row[NV];                                                                                   \
      UNROLL for (int j = 0; j < NV; j++) row[j] = *(const vec *)(b + (p * NV + j) * VL);            \
      UNROLL for (int i = 0; i < R; i++) {                                                           \
        vec x = fill(a[i * lda + p]);                                                                \
        UNROLL for (int j = 0; j < NV; j++) {                                                        \
          acc[i][j] += x * row[j];                                                                   \
          STAY(acc[i][j], NV);                                                                       \
        }                                                                                            \
      }                                                                                              \
    }                                                                                                \
    UNROLL for (int i = 0; i < R; i++) UNROLL for (int j = 0; j < NV; j++) {                         \
      float *to = c + i * ldc + j * VL;                                                              \
      store(to, add ? load(to) + acc[i][j] : acc[i][j]);                                             \
    }                                                                                                \
  }

MICRO(micro_1, ROWS_1, 1)
MICRO(micro_1_by_2, 2, 1)
MICRO(micro_1_by_1, 1, 1)
MICRO(micro_2, ROWS_2, 2)
MICRO(micro_2_by_3, 3, 2)
MICRO(micro_2_by_1, 1, 2)
MICRO(micro_3, ROWS_3, 3)
MICRO(micro_3_by_2, 2, 3)
MICRO(micro_3_by_1, 1, 3)

typedef void micro(i64, const float *, i64, const float *, float *, i64, int);

/* k in one chain of sums; longer ones are cut and the pieces added, which keeps the rounding errors of a long sum small. */
#ifndef CHAIN
#define CHAIN 64
#endif

static inline void multiply_rows(micro *f, int vectors, i64 k, const float *a, i64 lda, const float *b, float *c,
                                 i64 ldc, int add) {
  for (i64 p = 0; p < k; p += CHAIN)
    f(smaller_of(CHAIN, k - p), a + p, lda, b + p * vectors * VL, c, ldc, add || p > 0);
}

/* `rows` rows of a product that is `vectors` (1, 2 or 3) wide. */
static inline void multiply(i64 rows, int vectors, i64 k, const float *a, i64 lda, const float *b, float *c,
                            i64 ldc, int add) {
  static micro *const many[] = {0, micro_1, micro_2, micro_3};
  static micro *const few[] = {0, micro_1_by_2, micro_2_by_3, micro_3_by_2};
  static micro *const one[] = {0, micro_1_by_1, micro_2_by_1, micro_3_by_1};
  static const int height[] = {0, ROWS_1, ROWS_2, ROWS_3}, low[] = {0, 2, 3, 2};
  for (i64 i = 0; i < rows;) {
    i64 left = rows - i, step = left >= height[vectors] ? height[vectors] : left >= low[vectors] ? low[vectors] : 1;
    micro *f = step == height[vectors] ? many[vectors] : step == low[vectors] ? few[vectors] : one[vectors];
    multiply_rows(f, vectors, k, a + i * lda, lda, b, c + i * ldc, ldc, add);
    i += step;
  }
}
