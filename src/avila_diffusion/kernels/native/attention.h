/* softmax(Q K^T scale) V, block by block (Milakov & Gimelshein 2018; Dao et al. 2022): the scores of a few queries with a
   block of keys are made, exponentiated and used while they are in the cache; the matrix of all scores never exists.

   All of it stands on its side: a panel of PANEL queries lies along the lanes of two vectors. S^T = K Q^T has a row for each key,
   out^T += V^T P has one for each of the head's d numbers, so that no width has to be filled up to whole vectors, and the
   maxima and sums over keys are vectors too. */
struct attention {
  i64 batch, heads, d, queries, keys;
  const float *q, *k, *v; /* (batch, tokens, heads * d): rows ld_q ... apart */
  i64 ld_q, ld_k, ld_v;
  float *y; /* (batch, queries, heads * d) */
  float scale;
  float *scratch; /* batch * heads * (keys and values of a head, each up to whole vectors), then for each part PANEL * (KEYS + 3 d) */
};

#define KEYS 264 /* at a time: a multiple of ROWS_2; their scores with a panel of queries fit a first-level cache, or nearly */
#define SUMMED 16 /* weights in one chain of sums */

static inline i64 up_to(i64 x, i64 multiple) { return (x + multiple - 1) / multiple * multiple; }

/* C (R, 2 vectors) += A^T B: as a micro-kernel, but A is packed too, column after column. */
#define MICRO_OF_COLUMNS(NAME, R)                                                                     \
  static void NAME(i64 k, const float *a, const float *b, float *c) {                            \
    vec acc[R][2];                                                                                   \
    UNROLL for (int i = 0; i < R; i++) acc[i][0] = acc[i][1] = (vec){0};                             \
    for (i64 p = 0; p < k; p++, a += R, b += PANEL) {                                               \
      vec left = *(const vec *)b, right = *(const vec *)(b + VL);                                    \
      UNROLL for (int i = 0; i < R; i++) {                                                           \
        vec x = fill(a[i]);                                                                          \
        acc[i][0] += x * left;                                                                       \
        acc[i][1] += x * right;                                                                      \
      }                                                                                              \
    }                                                                                                \
    UNROLL for (int i = 0; i < R; i++) {                                                             \
      store(c + i * PANEL, load(c + i * PANEL) + acc[i][0]);                                         \
      store(c + i * PANEL + VL, load(c + i * PANEL + VL) + acc[i][1]);                               \
    }                                                                                                \
  }

MICRO_OF_COLUMNS(columns_many, ROWS_2)
MICRO_OF_COLUMNS(columns_4, 4)
MICRO_OF_COLUMNS(columns_1, 1)

/* Of d numbers of a head `left` are left: how many are taken together next. */
static inline i64 group_of(i64 left) { return left >= ROWS_2 ? ROWS_2 : left >= 4 ? 4 : 1; }

/* out^T (d, PANEL) += V^T P; V as pack_values leaves it, from a key on; P (count, PANEL). */
static void add_values(const struct attention *a, i64 key, i64 count, const float *v, const float *p, float *out) {
  for (i64 i = 0, step; i < a->d; i += step) {
    step = group_of(a->d - i);
    for (i64 j = 0; j < count; j += CHAIN)
      (step == ROWS_2 ? columns_many : step == 4 ? columns_4 : columns_1)(
          smaller_of(CHAIN, count - j), v + i * a->keys + (key + j) * step, p + j * PANEL, out + i * PANEL);
  }
}

/* Values -> groups of columns, each (keys, its width). */
static void pack_values(const struct attention *a, const float *v, float *to) {
  for (i64 i = 0, step; i < a->d; i += step) {
    step = group_of(a->d - i);
    for (i64 j = 0; j < a->keys; j++, to += step) memcpy(to, v + j * a->ld_v + i, step * sizeof(float));
  }
}

/* Keys -> (keys, d), one row behind the other. */
static void pack_keys(const struct attention *a, const float *k, float *to) {
  for (i64 i = 0; i < a->keys; i++) memcpy(to + i * a->d, k + i * a->ld_k, a->d * sizeof(float));
}

/* `rows` queries -> (d, PANEL), times scale * log2 e, so that a power of two is all the exponential there is; zeros in the
   lanes that are left. */
static void turn_queries(const struct attention *a, const float *q, i64 rows, float *to) {
  float scale = a->scale * 1.4426950408889634f;
  i64 whole = a->d / VL * VL;
  for (i64 lane = 0; lane < PANEL; lane += VL) {
    for (i64 i = 0; i < whole; i += VL) {
      vec tile[VL];
      for (int j = 0; j < VL; j++) tile[j] = lane + j < rows ? load(q + (lane + j) * a->ld_q + i) * scale : (vec){0};
      transpose(tile);
      for (int j = 0; j < VL; j++) store(to + (i + j) * PANEL + lane, tile[j]);
    }
    for (i64 i = whole; i < a->d; i++)
      for (int j = 0; j < VL; j++)
        to[i * PANEL + lane + j] = lane + j < rows ? q[(lane + j) * a->ld_q + i] * scale : 0.0f;
  }
}

/* out^T (d, PANEL) / sum -> `rows` rows of the result. */
static void turn_back(const struct attention *a, const float *out, vec total[2], i64 rows, float *y) {
  i64 ld = a->heads * a->d, whole = a->d / VL * VL;
  for (int half = 0; half < 2; half++) {
    vec share_of_one = 1.0f / total[half];
    float lanes[VL];
    store(lanes, share_of_one);
    for (i64 i = 0; i < whole; i += VL) {
      vec tile[VL];
      for (int j = 0; j < VL; j++) tile[j] = load(out + (i + j) * PANEL + half * VL) * share_of_one;
      transpose(tile);
      for (int j = 0; j < VL && half * VL + j < rows; j++) store(y + (half * VL + j) * ld + i, tile[j]);
    }
    for (int j = 0; j < VL && half * VL + j < rows; j++)
      for (i64 i = whole; i < a->d; i++) y[(half * VL + j) * ld + i] = out[i * PANEL + half * VL + j] * lanes[j];
  }
}

/* The highest scores so far, and the sums of the weights, which are relative to those. */
struct softmax {
  vec highest[2], total[2];
};

/* What a weight is relative to: where every score is -infinity the difference of two would be no number. */
static inline vec level_of(vec highest) { return larger(fill(-__FLT_MAX__), highest); }

/* Scores (count, PANEL) -> weights, which are counted. fade: what earlier sums are multiplied by. */
static void weigh(struct softmax *s, float *scores, i64 count, vec fade[2]) {
  vec top[2] = {s->highest[0], s->highest[1]}, level[2], sum[2] = {{0}, {0}};
  for (i64 j = 0; j < count; j++) {
    top[0] = larger(top[0], load(scores + j * PANEL));
    top[1] = larger(top[1], load(scores + j * PANEL + VL));
  }
  for (int half = 0; half < 2; half++) {
    level[half] = level_of(top[half]);
    fade[half] = exp2_of(level_of(s->highest[half]) - level[half]);
    s->highest[half] = top[half];
  }
  for (i64 from = 0; from < count; from += SUMMED) { /* as with products: short sums of short sums */
    vec few[2] = {{0}, {0}};
    for (i64 j = from; j < smaller_of(from + SUMMED, count); j++) {
      vec left = exp2_of(load(scores + j * PANEL) - level[0]), right = exp2_of(load(scores + j * PANEL + VL) - level[1]);
      store(scores + j * PANEL, left);
      store(scores + j * PANEL + VL, right);
      few[0] += left;
      few[1] += right;
    }
    sum[0] += few[0];
    sum[1] += few[1];
  }
  s->total[0] = s->total[0] * fade[0] + sum[0];
  s->total[1] = s->total[1] * fade[1] + sum[1];
}

static void attend_panel(const struct attention *a, const float *q, i64 rows, const float *keys, const float *values,
                         float *y, float *own) {
  i64 size = a->d * PANEL;
  float *turned = own, *out = turned + size, *more = out + size, *scores = more + size;
  struct softmax s = {{fill(-UNLIMITED), fill(-UNLIMITED)}, {{0}, {0}}};
  turn_queries(a, q, rows, turned);
  for (i64 key = 0; key < a->keys; key += KEYS) {
    i64 count = smaller_of(KEYS, a->keys - key);
    /* A block is summed apart and added once: a sum of all keys would round as often as there are chains in it. */
    float *block = key ? more : out;
    vec fade[2];
    memset(block, 0, size * sizeof(float));
    multiply(count, 2, a->d, keys + key * a->d, a->d, turned, scores, PANEL, 0);
    weigh(&s, scores, count, fade);
    add_values(a, key, count, values, scores, block);
    if (!key) continue;
    for (i64 i = 0; i < size; i += PANEL) {
      store(out + i, load(out + i) * fade[0] + load(more + i));
      store(out + i + VL, load(out + i + VL) * fade[1] + load(more + i + VL));
    }
  }
  for (int half = 0; half < 2; half++) s.total[half] += 0.0f * s.highest[half]; /* no number where all were -infinity */
  turn_back(a, out, s.total, rows, y);
}

static void attention_part(void *arguments, struct team *team, int part) {
  const struct attention *a = arguments;
  i64 size = up_to(a->keys * a->d, VL), heads = a->batch * a->heads, panels = (a->queries + PANEL - 1) / PANEL, first, end;
  float *values = a->scratch + heads * size, *own = values + heads * size + part * PANEL * (KEYS + 3 * a->d);
  share(2 * heads, team->parts, part, &first, &end);
  for (i64 job = first; job < end; job++) {
    i64 head = job / 2, image = head / a->heads, column = head % a->heads * a->d;
    if (job % 2) pack_values(a, a->v + image * a->keys * a->ld_v + column, values + head * size);
    else pack_keys(a, a->k + image * a->keys * a->ld_k + column, a->scratch + head * size);
  }
  barrier(team);
  share(heads * panels, team->parts, part, &first, &end);
  for (i64 job = first; job < end; job++) {
    i64 head = job / panels, image = head / a->heads, column = head % a->heads * a->d;
    i64 row = job % panels * PANEL, rows = smaller_of(PANEL, a->queries - row);
    attend_panel(a, a->q + (image * a->queries + row) * a->ld_q + column, rows, a->scratch + head * size,
                 values + head * size, a->y + (image * a->queries + row) * a->heads * a->d + column, own);
  }
}
