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

/* Sums over a piece of an image, for VL channels: of x - shift and of its square; the shift keeps them small. */
static void sum_piece(const struct group_norm *g, const float *x, const float *shift, i64 first, i64 end,
                      double *sums) {
  for (i64 c = 0; c < 2 * g->channels; c++) sums[c] = 0.0;
  for (i64 c = 0; c < g->channels; c += VL) {
    vec level = load(shift + c);
    for (i64 start = first; start < end; start += RUN) {
      vec one = {0}, two = {0};
      for (i64 p = start; p < smaller_of(start + RUN, end); p++) {
        vec d = load(x + p * g->channels + c) - level;
        one += d;
        two += d * d;
      }
      for (int i = 0; i < VL; i++) sums[c + i] += one[i], sums[g->channels + c + i] += two[i];
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

static inline float sum_of(vec x) {
  float sum = 0.0f;
  for (int i = 0; i < VL; i++) sum += x[i];
  return sum;
}

static void layer_norm_part(void *arguments, struct team *team, int part) {
  const struct layer_norm *l = arguments;
  i64 first, end;
  share(l->rows, team->parts, part, &first, &end);
  for (i64 row = first; row < end; row++) {
    const float *x = l->x + row * l->width;
    vec sum = {0}, square = {0};
    for (i64 c = 0; c < l->width; c += VL) sum += load(x + c);
    float mean = sum_of(sum) / l->width;
    for (i64 c = 0; c < l->width; c += VL) square += (load(x + c) - mean) * (load(x + c) - mean);
    float inverse = 1.0f / __builtin_sqrtf(sum_of(square) / l->width + l->eps);
    for (i64 c = 0; c < l->width; c += VL)
      store(l->y + row * l->width + c, (load(x + c) - mean) * inverse * load(l->weight + c) + load(l->bias + c));
  }
}
