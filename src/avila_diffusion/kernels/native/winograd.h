/* 3x3 convolutions by minimal filtering (Winograd 1980; Lavin & Gray 2016): fewer products for the same sums.

   An output tile of S x S pixels is seen through a patch of (S + 2) x (S + 2). Both patch and kernel are turned into values
   of polynomials at some points, multiplied point by point, summed over the channels, and turned back: (S + 2)^2 products
   where there were 9 S^2. The sum over channels at one point, for many tiles at once, is a matrix product.

   Three kinds:
   F(4x4): S = 4, points 0, +-1/sqrt 2, +-sqrt 2 and infinity, which keep the rounding errors small; 2.25 products a pixel.
   F(2x2): S = 2, points 0, +-1, infinity; 4 products a pixel, for maps too small for the other.
   Doubled: the convolution of a map upsampled to twice its size by nearest neighbour. Output pixels of even and odd rows
   and columns are four 2x2 convolutions of the small map (see upsample.py); they share the patch of 5x5 small pixels, from
   which each makes 4x4 pixels with 25 products: 1.56 products a pixel. Points +-a, +-b, infinity. So that both parities see
   the same patch, the odd ones lag one small pixel behind: a tile makes the pixels -1 ... 6 of its 8.

   The weights come transformed and packed (see native.py): (points, panels, in, PANEL); `out` is then columns in all, that
   is four times the channels where the map is doubled, phase after phase. */
struct winograd {
  i64 batch, height, width, in, out; /* height, width of x */
  const float *x;                     /* (batch, height, width, in) */
  const float *weight, *bias;         /* bias (out), or none */
  const float *shift;                 /* (batch, out) added to every pixel, or none */
  const float *add;                   /* of y's shape, or none */
  float *y;
  float *scratch; /* points * block * (in + columns) and a line more for each point, twice */
  i64 block;     /* tiles at a time */
  int kind;       /* 4: F(4x4), 2: F(2x2), 5: doubled */
};

#define A4 0.70710678118654752f
#define B4 1.41421356237309505f
#define A5 0.5f
#define B5 1.0f

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

static inline void patch_5(const vec *d, int s, vec *v, int to) { /* 5 pixels -> 5 points */
  vec even = d[3 * s] - B5 * B5 * d[s], odd = A5 * (d[2 * s] - B5 * B5 * d[0]);
  vec even2 = d[3 * s] - A5 * A5 * d[s], odd2 = B5 * (d[2 * s] - A5 * A5 * d[0]);
  v[0] = even + odd;
  v[to] = even - odd;
  v[2 * to] = even2 + odd2;
  v[3 * to] = even2 - odd2;
  v[4 * to] = d[4 * s] - (A5 * A5 + B5 * B5) * d[2 * s] + A5 * A5 * B5 * B5 * d[0];
}

static inline void pixels_5(const vec *m, int s, vec *y, int to) { /* 5 points -> 4 pixels */
  vec plus = m[0] + m[s], minus = A5 * (m[0] - m[s]);
  vec plus2 = m[2 * s] + m[3 * s], minus2 = B5 * (m[2 * s] - m[3 * s]);
  y[0] = plus + plus2;
  y[to] = minus + minus2;
  y[2 * to] = A5 * A5 * plus + B5 * B5 * plus2;
  y[3 * to] = A5 * A5 * minus + B5 * B5 * minus2 + m[4 * s];
}

#define MOST_CHANNELS 8192
static const float zeros[MOST_CHANNELS] __attribute__((aligned(64)));

/* Where the pixels of a patch lie; past the border, zeros. */
static void find_patch(const struct winograd *w, i64 image, i64 top, i64 left, int side, const float **at) {
  for (int i = 0; i < side; i++)
    for (int j = 0; j < side; j++) {
      i64 row = top + i, column = left + j;
      int inside = row >= 0 && row < w->height && column >= 0 && column < w->width;
      at[i * side + j] = inside ? w->x + ((image * w->height + row) * w->width + column) * w->in : zeros;
    }
}

/* One tile's patch, all channels -> v[point][...], points `far` floats apart. */
#define PATCH(NAME, N, ONE)                                                        \
  static void NAME(const float *const *at, i64 in, float *v, i64 far) {         \
    for (i64 c = 0; c < in; c += VL) {                                            \
      vec half[N * N], column[N];                                                  \
      UNROLL for (int j = 0; j < N; j++) {                                         \
        UNROLL for (int i = 0; i < N; i++) column[i] = load(at[i * N + j] + c);    \
        ONE(column, 1, half + j, N);                                               \
      }                                                                            \
      UNROLL for (int i = 0; i < N; i++) {                                         \
        vec row[N];                                                                \
        ONE(half + i * N, 1, row, 1);                                              \
        UNROLL for (int j = 0; j < N; j++) store(v + (i * N + j) * far + c, row[j]); \
      }                                                                            \
    }                                                                              \
  }

PATCH(patch_4x4, 6, patch_4)
PATCH(patch_2x2, 4, patch_2)
PATCH(patch_5x5, 5, patch_5)

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
PIXELS(pixels_5x5, 5, 4, pixels_5)

/* Where a tile's pixels go: from (top, left) of y, every `stride`-th row and column. */
struct place {
  i64 image, top, left, stride;
};

static void put_pixels(const struct winograd *w, const struct place *p, const float *m, i64 far, i64 channels,
                       i64 first) {
  int doubled = w->kind == 5, side = w->kind == 2 ? 2 : 4;
  i64 height = doubled ? 2 * w->height : w->height, width = doubled ? 2 * w->width : w->width;
  for (i64 c = 0; c < channels; c += VL) {
    vec y[16], level = {0};
    if (w->kind == 4) pixels_4x4(m + first + c, far, y);
    else if (w->kind == 2) pixels_2x2(m + first + c, far, y);
    else pixels_5x5(m + first + c, far, y);
    if (w->bias) level += load(w->bias + c);
    if (w->shift) level += load(w->shift + p->image * channels + c);
    for (int i = 0; i < side; i++) {
      i64 row = p->top + i * p->stride;
      if (row < 0 || row >= height) continue;
      for (int j = 0; j < side; j++) {
        i64 column = p->left + j * p->stride;
        if (column < 0 || column >= width) continue;
        i64 to = ((p->image * height + row) * width + column) * channels + c;
        vec value = y[i * side + j] + level;
        store(w->y + to, w->add ? value + load(w->add + to) : value);
      }
    }
  }
}

static void winograd_part(void *arguments, struct team *team, int part) {
  const struct winograd *w = arguments;
  int doubled = w->kind == 5, side = w->kind == 2 ? 4 : w->kind == 4 ? 6 : 5, size = w->kind == 2 ? 2 : 4;
  i64 points = side * side, panels = (w->out + PANEL - 1) / PANEL, columns = panels * PANEL;
  i64 down = doubled ? (2 * w->height + 8) / 8 : (w->height + size - 1) / size;
  i64 across = doubled ? (2 * w->width + 8) / 8 : (w->width + size - 1) / size;
  i64 tiles = w->batch * down * across;
  /* A line between the points' planes: planes a multiple of 4096 bytes apart would fight for the same cache lines. */
  i64 far_v = w->block * w->in + 16, far_m = w->block * columns + 16;
  float *v = w->scratch, *m = w->scratch + points * far_v;
  for (i64 start = 0; start < tiles; start += w->block) {
    i64 count = smaller_of(w->block, tiles - start), first, end;
    share(count, team->parts, part, &first, &end);
    for (i64 t = first; t < end; t++) {
      i64 tile = start + t, image = tile / (down * across);
      i64 top = tile / across % down * size - 1, left = tile % across * size - 1;
      const float *at[36];
      find_patch(w, image, top, left, side, at);
      if (w->kind == 4) patch_4x4(at, w->in, v + t * w->in, far_v);
      else if (w->kind == 2) patch_2x2(at, w->in, v + t * w->in, far_v);
      else patch_5x5(at, w->in, v + t * w->in, far_v);
    }
    barrier(team);
    i64 first_unit, end_unit;
    share(points * panels, team->parts, part, &first_unit, &end_unit);
    for (i64 unit = first_unit; unit < end_unit; unit++) {
      i64 point = unit / panels, panel = unit % panels;
      multiply(count, 2, w->in, v + point * far_v, w->in, w->weight + unit * w->in * PANEL,
               m + point * far_m + panel * PANEL, columns, 0);
    }
    barrier(team);
    for (i64 t = first; t < end; t++) {
      i64 tile = start + t, image = tile / (down * across);
      i64 row = tile / across % down, column = tile % across;
      i64 phases = doubled ? 4 : 1, channels = w->out / phases;
      for (i64 phase = 0; phase < phases; phase++) {
        struct place p = {image, row * size, column * size, 1};
        if (doubled) {
          /* even pixels 8 row + 2 i, odd ones 8 row - 1 + 2 i */
          p.top = 8 * row - phase / 2;
          p.left = 8 * column - phase % 2;
          p.stride = 2;
        }
        put_pixels(w, &p, m + t * columns, far_m, channels, phase * channels);
      }
    }
  }
}
