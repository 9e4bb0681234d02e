/* Numbers far above the others of a patch, where tiles are of 4x4.

   F(4x4) makes an output of all 36 points, and each point of many pixels: what of a pixel does not belong to an output cancels
   there but for rounding. A number of 1e4 among numbers of 1 so spoils the digits of outputs whose 3x3 pixels do not hold it,
   and one that is not finite makes them so. (With F(2x2) nothing has to cancel: its outputs are made of their own pixels.)

   A convolution is linear: such numbers are left out of the patch, and what they add is added pixel by pixel. Whether a tile is
   looked at closely is decided by the energy at a few points, which costs next to nothing; all that is decided follows from
   the tile's own numbers. */

#define COLD __attribute__((noinline, cold)) /* lest the loops that it is called from are compiled for its sake */

static inline vec size_of_each(vec x) { return (vec)((ivec)x & 0x7fffffff); }

/* Of the points (0, 1), (1, 0), (1, 1), (1, 5) and (5, 1): every pixel but the corners, which harm no other, is in one. A sum of
   squares, so that it grows as what such a number spoils does beside what the sum over channels rounds by. */
#define NOTE_ENERGY                                   \
  if (i == 0 || i == 5) noted += row[1] * row[1];     \
  if (i == 1) noted += row[0] * row[0] + row[1] * row[1] + row[5] * row[5]

#define USUAL 8192.0f  /* energy for each channel, by the square of a typical number's size; normal numbers have 500 */
#define SAMPLED 16     /* channels that tell a typical size */
#define FAR_ABOVE 64.0f /* times a pixel's mean size */
#define MOST_LEFT_OUT 8 /* one number of so many at most: adding them one by one is slow */

/* Numbers in order; the one in the middle of them. */
static float middle(float *numbers, int count) {
  for (int i = 1; i < count; i++) {
    float number = numbers[i];
    int j = i;
    for (; j > 0 && numbers[j - 1] > number; j--) numbers[j] = numbers[j - 1];
    numbers[j] = number;
  }
  return numbers[(count - 1) / 2];
}

/* Whether nothing in a patch can stand out much. By two pixels of each of its rows, a few channels of them, and the middle row. */
static int is_usual(const float *const *at, i64 in, float energy) {
  float sizes[6];
  int rows = 0;
  i64 channels = smaller_of(SAMPLED, in);
  for (int i = 0; i < 6; i++) {
    vec sum = {0};
    if (at[i * 6 + 1] == zeros) continue; /* past the border */
    for (i64 c = 0; c < channels; c += VL) sum += size_of_each(load(at[i * 6 + 1] + c)) + size_of_each(load(at[i * 6 + 4] + c));
    sizes[rows++] = sum_of(sum);
  }
  float size = middle(sizes, rows) / (2 * channels);
  return energy <= USUAL * in * size * size; /* not so where one is no number */
}

/* The size beyond which a number is an outlier: far above the mean of the middle pixel. Infinite where there are none, or too
   many. */
static COLD float limit_of(const float *const *at, i64 in) {
  float means[36];
  int pixels = 0;
  for (int p = 0; p < 36; p++) {
    if (at[p] == zeros) continue;
    vec sum = {0};
    for (i64 c = 0; c < in; c += VL) sum += size_of_each(load(at[p] + c));
    float mean = sum_of(sum) / in;
    means[pixels++] = mean < UNLIMITED ? mean : UNLIMITED; /* no number has no place in an order */
  }
  float limit = FAR_ABOVE * middle(means, pixels);
  ivec beyond = {0};
  for (int p = 0; p < 36; p++)
    for (i64 c = 0; c < in; c += VL) beyond -= ~(size_of_each(load(at[p] + c)) <= limit);
  i64 count = 0;
  for (int i = 0; i < VL; i++) count += beyond[i];
  return count > 0 && count * MOST_LEFT_OUT <= 36 * in ? limit : UNLIMITED;
}

#define WITHIN(X) (vec)((ivec)(X) & (size_of_each(X) <= limit))

/* Three taps of the values at points 0, +-1/sqrt 2 and infinity: points_4 of pack.h, backwards. */
static inline void taps_4(const vec *u, int s, vec *g, int to) {
  g[0] = u[0];
  g[to] = (u[s] - u[2 * s]) * -1.06066017177982129f; /* -1.5 / sqrt 2 */
  g[2 * to] = u[5 * s];
}

/* What channel c of the pixel (i, j) of a patch adds to its tile, the pixels from (top, left) of y on: x times the weights. */
static COLD void add_number(const struct winograd *w, i64 image, i64 top, i64 left, int i, int j, i64 c, float x) {
  i64 panels = (w->out + PANEL - 1) / PANEL, far = panels * w->in * PANEL;
  i64 rows = smaller_of(4, w->height - top), columns = smaller_of(4, w->width - left);
  for (i64 o = 0; o < w->out; o += VL) {
    const float *u = w->weight + (o / PANEL * w->in + c) * PANEL + o % PANEL;
    vec point[6], half[18], g[9];
    UNROLL for (int q = 0; q < 6; q++) {
      UNROLL for (int p = 0; p < 6; p++) point[p] = load(u + (p * 6 + q) * far);
      taps_4(point, 1, half + q, 6);
    }
    UNROLL for (int a = 0; a < 3; a++) taps_4(half + a * 6, 1, g + a * 3, 1);
    for (int a = 0; a < 3; a++)
      for (int b = 0; b < 3; b++) {
        i64 row = i - a, column = j - b;
        if (row < 0 || row >= rows || column < 0 || column >= columns) continue;
        float *y = w->y + ((image * w->height + top + row) * w->width + left + column) * w->out + o;
        store(y, load(y) + x * g[a * 3 + b]);
      }
  }
}

/* What was left out of the patch of a tile, whose pixels are put. */
static COLD void add_outliers(const struct winograd *w, i64 image, i64 top, i64 left, float limit) {
  const float *at[36];
  find_patch(w, image, top, left, at);
  for (int p = 0; p < 36; p++)
    for (i64 c = 0; c < w->in; c++) {
      float x = at[p][c];
      if (!(__builtin_fabsf(x) <= limit)) add_number(w, image, top, left, p / 6, p % 6, c, x);
    }
}
