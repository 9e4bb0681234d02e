/* 3x3 convolutions by minimal filtering (Winograd 1980; Lavin & Gray 2016): fewer products for the same sums.

   An output tile of S x S pixels is seen through a patch of (S + 2) x (S + 2). Both patch and kernel are turned into values
   of polynomials at some points, multiplied point by point, summed over the channels, and turned back: (S + 2)^2 products
   where there were 9 S^2. The sum over channels at one point, for many tiles at once, is a matrix product.

   Two kinds:
   F(4x4): S = 4, points 0, +-1/sqrt 2, +-sqrt 2 and infinity, which keep the rounding errors small; 2.25 products a pixel.
   F(2x2): S = 2, points 0, +-1, infinity; 4 products a pixel, for maps too small for the other.

   `wrap_x`, `wrap_y`: past a border of the map comes its other side, not zeros.

   `doubled`: the convolution of a map upsampled to twice its size by nearest neighbour, which is read from the small map and
   never made. (Four 2x2 convolutions of the small map, by F(4x4, 2x2) with a shared patch, need 1.56 products a pixel, but
   2.8 times the transformed weights; measured, they were no faster.)

   The weights come transformed and packed (see native.py): (points, panels, in, PANEL). */
struct winograd {
  i64 batch, height, width, in, out; /* y's height and width */
  i64 rows, top;                      /* of the map that is convolved: how many there are, and which y begins with */
  const float *x;                     /* (batch, rows, width, in); half as high and wide where doubled */
  const float *weight, *bias;         /* bias (out), or none */
  const float *shift;                 /* (batch, out) added to every pixel, or none */
  const float *add;                   /* of y's shape, or none */
  float *y;
  float *scratch; /* points * block * (in + columns) and a line more for each point, twice; then a limit for each tile */
  i64 block;     /* tiles at a time */
  int kind;       /* 4: F(4x4), 2: F(2x2) */
  int doubled;
  int wrap_x, wrap_y;
};

#define A4 0.70710678118654752f
#define B4 1.41421356237309505f

static inline void patch_4(const vec *d, int s, vec *v, int to) { /* 6 pixels -> 6 points */
  vec even = d[4 * s] - 2.0f * d[2 * s], odd = d[3 * s] - 2.0f * d[s];
  vec even2 = d[4 * s] - 0.5f * d[2 * s], odd2 = d[3 * s] - 0.5f * d[s];
  v[0] = d[0] - 2.5f * d[2 * s] + d[4 * s];
  v[to] = even + A4 * odd; /* a factor goes into a fused multiply-add: a rounding less */
  v[2 * to] = even - A4 * odd;
  v[3 * to] = even2 + B4 * odd2;
  v[4 * to] = even2 - B4 * odd2;
  v[5 * to] = d[s] - 2.5f * d[3 * s] + d[5 * s];
}

static inline void pixels_4(const vec *m, int s, vec *y, int to) { /* 6 points -> 4 pixels */
  vec plus = m[s] + m[2 * s], minus = m[s] - m[2 * s];
  vec plus2 = m[3 * s] + m[4 * s], minus2 = m[3 * s] - m[4 * s];
  y[0] = m[0] + plus + plus2;
  y[to] = B4 * (0.5f * minus + minus2); /* B4 = 2 A4 */
  y[2 * to] = 0.5f * plus + 2.0f * plus2;
  y[3 * to] = 2.0f * B4 * (0.125f * minus + minus2) + m[5 * s];
}

static inline void patch_2(const vec *d, int s, vec *v, int to) {
  v[0] = d[0] - d[2 * s];
  v[to] = d[s] + d[2 * s];
  v[2 * to] = d[2 * s] - d[s];
  v[3 * to] = d[3 * s] - d[s];
}

static inline void pixels_2(const vec *m, int s, vec *y, int to) {
  y[0] = m[0] + m[s] + m[2 * s];
  y[to] = m[s] - m[2 * s] + m[3 * s];
}

#define MOST_CHANNELS 8192
static const float zeros[MOST_CHANNELS] __attribute__((aligned(64)));

/* A row or column past the border of a map that wraps, as one within it. What a tile that hangs over the border sees beyond
   the first past it may still be outside: no pixel of y is made of that. */
static inline i64 wrapped(i64 place, i64 size) { return place < 0 ? place + size : place >= size ? place - size : place; }

/* Where the pixels of the patch lie that the tile from (top, left) of y on sees; past the border, zeros, or the other side. */
static void find_patch(const struct winograd *w, i64 image, i64 top, i64 left, const float **at) {
  int side = w->kind + 2;
  for (int i = 0; i < side; i++)
    for (int j = 0; j < side; j++) {
      i64 row = w->top + top + i - 1, column = left + j - 1, d = w->doubled;
      if (w->wrap_y) row = wrapped(row, w->rows);
      if (w->wrap_x) column = wrapped(column, w->width);
      int inside = row >= 0 && row < w->rows && column >= 0 && column < w->width;
      i64 pixel = (image * (w->rows >> d) + (row >> d)) * (w->width >> d) + (column >> d);
      at[i * side + j] = inside ? w->x + pixel * w->in : zeros;
    }
}

/* One tile's patch, all channels -> v[point][...], points `far` floats apart. PIXEL, NOTE: see outliers.h. */
#define PATCH(NAME, N, ONE, PIXEL, NOTE)                                           \
  static float NAME(const float *const *at, i64 in, float limit, float *v, i64 far) { \
    vec noted = {0};                                                               \
    for (i64 c = 0; c < in; c += VL) {                                            \
      vec half[N * N], column[N];                                                  \
      UNROLL for (int j = 0; j < N; j++) {                                         \
        UNROLL for (int i = 0; i < N; i++) column[i] = PIXEL(load(at[i * N + j] + c)); \
        ONE(column, 1, half + j, N);                                               \
      }                                                                            \
      UNROLL for (int i = 0; i < N; i++) {                                         \
        vec row[N];                                                                \
        ONE(half + i * N, 1, row, 1);                                              \
        NOTE;                                                                      \
        UNROLL for (int j = 0; j < N; j++) store(v + (i * N + j) * far + c, row[j]); \
      }                                                                            \
    }                                                                              \
    return sum_of(noted);                                                          \
  }

/* VL channels of one tile: points -> pixels (S, S). */
#define PIXELS(NAME, N, S, ONE)                                                       \
  static inline void NAME(const float *m, i64 far, vec *y) {                         \
    vec half[S * N], column[N];                                                       \
    UNROLL for (int j = 0; j < N; j++) {                                              \
      UNROLL for (int i = 0; i < N; i++) column[i] = load(m + (i * N + j) * far);     \
      ONE(column, 1, half + j, N);                                                    \
    }                                                                                 \
    UNROLL for (int i = 0; i < S; i++) ONE(half + i * N, 1, y + i * S, 1);            \
  }

PIXELS(pixels_4x4, 6, 4, pixels_4)
PIXELS(pixels_2x2, 4, 2, pixels_2)

/* The pixels of one tile, from the points in m, into y from (top, left) on. */
static inline __attribute__((always_inline)) void put_pixels(const struct winograd *w, i64 image, i64 top, i64 left, const float *m, i64 far) {
  int side = w->kind;
  i64 rows = smaller_of(side, w->height - top), columns = smaller_of(side, w->width - left);
  for (i64 c = 0; c < w->out; c += VL) {
    vec y[16], level = {0};
    if (w->kind == 4) pixels_4x4(m + c, far, y);
    else pixels_2x2(m + c, far, y);
    if (w->bias) level += load(w->bias + c);
    if (w->shift) level += load(w->shift + image * w->out + c);
    for (i64 i = 0; i < rows; i++)
      for (i64 j = 0; j < columns; j++) {
        i64 to = ((image * w->height + top + i) * w->width + left + j) * w->out + c;
        vec value = y[i * side + j] + level;
        store(w->y + to, w->add ? value + load(w->add + to) : value);
      }
  }
}
