/* Group and layer normalisation. */
struct group_norm {
  i64 batch, pixels, channels, groups;
  const float *x, *weight, *bias; /* x (batch, pixels, channels) */
  float eps;
  int silu; /* y silu(y) afterwards */
  float *y;
  double *sums; /* batch * PIECES * 2 * channels */
};

#define PIECES 32 /* of an image whose sums are made apart: more than threads, and the same whatever their number */
#define RUN 64    /* pixels summed in float32 before they are added in float64 */
#define FEW 8     /* numbers in one chain of sums: short sums of short sums, as with products */

/* Sums over a piece of an image: of x - shift and of its square. A run's are of x less the run's own level, the mean of
   one in FEW of its pixels, which keeps them small whatever the shift is; they are moved to the shift in float64. */
static void sum_piece(const struct group_norm *g, const float *x, const float *shift, i64 first, i64 end,
                      double *sums) {
  for (i64 c = 0; c < 2 * g->channels; c++) sums[c] = 0.0;
  for (i64 start = first; start < end; start += RUN) {
    i64 stop = smaller_of(start + RUN, end);
    double n = stop - start;
    for (i64 c = 0; c < g->channels; c += VL) {
      vec from = load(shift + c), level = {0}, one = {0}, two = {0};
      for (i64 p = start; p < stop; p += FEW) level += load(x + p * g->channels + c) - from;
      level = from + level * (1.0f / ((stop - start + FEW - 1) / FEW));
      for (i64 p = start; p < stop; p += FEW) {
        vec sum = {0}, square = {0};
        for (i64 q = p; q < smaller_of(p + FEW, stop); q++) {
          vec d = load(x + q * g->channels + c) - level;
          sum += d;
          square += d * d;
        }
        one += sum;
        two += square;
      }
      float levels[VL], simple[VL], squares[VL];
      store(levels, level), store(simple, one), store(squares, two);
      double *ones = sums + c, *twos = ones + g->channels;
      for (int i = 0; i < VL; i++) {
        double off = (double)levels[i] - shift[c + i];
        ones[i] += n * off + simple[i];
        twos[i] += squares[i] + off * (2.0 * simple[i] + n * off);
      }
    }
  }
}

/* Pixels less their level, times scale, plus bias; x and y may be one. */
static void normalise_pixels(const float *x, float *y, i64 pixels, i64 channels, const float *level, const float *scale,
                             const float *bias, int silu) {
  for (i64 p = 0; p < pixels; p++)
    for (i64 c = 0; c < channels; c += VL) {
      vec value = (load(x + p * channels + c) - load(level + c)) * load(scale + c) + load(bias + c);
      store(y + p * channels + c, silu ? silu_of(value) : value);
    }
}

static void normalise_image(const struct group_norm *g, i64 image, i64 first, i64 end, float *scale, float *level) {
  /* level: the mean that is taken off before the scale goes on. Folded into the bias it would cost digits where the mean is
     large beside the spread. */
  const float *x = g->x + image * g->pixels * g->channels;
  i64 width = g->channels / g->groups;
  for (i64 group = 0; group < g->groups; group++) {
    double mean = 0.0, spread = 0.0, n = g->pixels;
    double means[MOST_CHANNELS];
    for (i64 c = group * width; c < (group + 1) * width; c++) {
      double one = 0.0, two = 0.0;
      for (i64 piece = 0; piece < PIECES; piece++) {
        const double *sums = g->sums + (image * PIECES + piece) * 2 * g->channels;
        one += sums[c], two += sums[g->channels + c];
      }
      means[c - group * width] = x[c] + one / n;
      spread += two - one * one / n;
      mean += means[c - group * width] / width;
    }
    for (i64 c = 0; c < width; c++) spread += n * (means[c] - mean) * (means[c] - mean);
    double inverse = 1.0 / __builtin_sqrt(spread / (n * width) + g->eps);
    for (i64 c = group * width; c < (group + 1) * width; c++) {
      scale[c] = (float)(g->weight[c] * inverse);
      level[c] = (float)mean;
    }
  }
  i64 from = (image * g->pixels + first) * g->channels;
  normalise_pixels(g->x + from, g->y + from, end - first, g->channels, level, scale, g->bias, g->silu);
}

/* The sums alone, of which x, batch, pixels, channels and sums are needed: for a map that comes in bands. */
static void channel_sums_part(void *arguments, struct team *team, int part) {
  const struct group_norm *g = arguments;
  i64 first, end, a, b;
  share(g->batch * PIECES, team->parts, part, &first, &end);
  for (i64 job = first; job < end; job++) {
    const float *x = g->x + job / PIECES * g->pixels * g->channels;
    share(g->pixels, PIECES, job % PIECES, &a, &b);
    sum_piece(g, x, x, a, b, g->sums + job * 2 * g->channels);
  }
}

static void group_norm_part(void *arguments, struct team *team, int part) {
  const struct group_norm *g = arguments;
  i64 first, end;
  channel_sums_part(arguments, team, part);
  barrier(team);
  float scale[MOST_CHANNELS], level[MOST_CHANNELS];
  share(g->pixels, team->parts, part, &first, &end);
  for (i64 image = 0; image < g->batch; image++) normalise_image(g, image, first, end, scale, level);
}

/* What group_norm does once the sums are known. */
struct normalise {
  i64 pixels, channels;
  const float *x, *level, *scale, *bias; /* x (pixels, channels), the others (channels) */
  int silu;
  float *y; /* may be x */
};

static void normalise_part(void *arguments, struct team *team, int part) {
  const struct normalise *n = arguments;
  i64 first, end;
  share(n->pixels, team->parts, part, &first, &end);
  i64 from = first * n->channels;
  normalise_pixels(n->x + from, n->y + from, end - first, n->channels, n->level, n->scale, n->bias, n->silu);
}

struct layer_norm {
  i64 rows, width;
  const float *x, *weight, *bias;
  float eps;
  float *y;
};

/* Of a row less a first mean: the mean, and that of the squares. */
static inline void sum_row(const float *x, i64 width, vec mean, double *one, double *two) {
  vec sums = {0}, squares = {0};
  for (i64 start = 0; start < width; start += FEW * VL) {
    vec sum = {0}, square = {0};
    for (i64 c = start; c < smaller_of(start + FEW * VL, width); c += VL) {
      vec d = load(x + c) - mean;
      sum += d;
      square += d * d;
    }
    sums += sum;
    squares += square;
  }
  *one = sum_of(sums) / width;
  *two = sum_of(squares) / width;
}

static void layer_norm_part(void *arguments, struct team *team, int part) {
  const struct layer_norm *l = arguments;
  i64 first, end, n = l->width;
  share(l->rows, team->parts, part, &first, &end);
  for (i64 row = first; row < end; row++) {
    const float *x = l->x + row * n;
    vec sum = {0};
    for (i64 c = 0; c < n; c += VL) sum += load(x + c);
    vec mean = fill(sum_of(sum) / n);
    double one, two;
    sum_row(x, n, mean, &one, &two);
    vec off = fill(one); /* what the first mean was rounded by */
    vec inverse = fill(1.0 / __builtin_sqrt(two - one * one + l->eps));
    for (i64 c = 0; c < n; c += VL)
      store(l->y + row * n + c, (load(x + c) - mean - off) * inverse * load(l->weight + c) + load(l->bias + c));
  }
}
