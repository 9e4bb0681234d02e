/* softmax(Q K^T scale) V, block by block (Milakov & Gimelshein 2018; Dao et al. 2022): the scores of a few queries with a
   block of keys are made, exponentiated and used while they are in the cache; the matrix of all scores never exists.

   Keys and values are packed first: keys as panels of PANEL keys, each (d, PANEL), times scale * log2 e, so that a power of
   two is all the exponential there is; values as panels of one, two or three vectors of the head's width. */
struct attention {
  i64 batch, heads, d, queries, keys;
  const float *q, *k, *v; /* (batch, tokens, heads * d): rows ld_q ... apart */
  i64 ld_q, ld_k, ld_v;
  float *y; /* (batch, queries, heads * d) */
  float scale;
  float *scratch; /* batch * heads * (size of packed keys + of packed values), then for each part as below */
  i64 parts;     /* for how many parts there is scratch */
};

#define QUERIES 48 /* at a time: a multiple of ROWS_1, ROWS_2 and ROWS_3, or nearly */
#define KEYS 512

static inline i64 up_to(i64 x, i64 multiple) { return (x + multiple - 1) / multiple * multiple; }

static void pack_keys(const struct attention *a, const float *k, float *to) {
  float scale = a->scale * 1.4426950408889634f;
  for (i64 panel = 0; panel * PANEL < a->keys; panel++, to += a->d * PANEL) {
    i64 count = smaller_of(PANEL, a->keys - panel * PANEL);
    for (i64 j = 0; j < PANEL; j++) {
      const float *row = k + (panel * PANEL + j) * a->ld_k;
      for (i64 i = 0; i < a->d; i++) to[i * PANEL + j] = j < count ? row[i] * scale : 0.0f;
    }
  }
}

/* Vectors of the next panel of values where `left` vectors are left: as few panels as can be, none of one if possible. */
static inline int panel_width(i64 left) { return left == 1 ? 1 : left == 2 || left == 4 ? 2 : 3; }

static void pack_values(const struct attention *a, const float *v, float *to) {
  i64 vectors = (a->d + VL - 1) / VL;
  for (i64 done = 0; done < vectors;) {
    i64 width = panel_width(vectors - done) * VL, first = done * VL, count = smaller_of(width, a->d - first);
    for (i64 i = 0; i < a->keys; i++, to += width) {
      memcpy(to, v + i * a->ld_v + first, count * sizeof(float));
      for (i64 j = count; j < width; j++) to[j] = 0.0f;
    }
    done += width / VL;
  }
}

/* Scores (rows, up to KEYS) -> weights relative to the running maximum of each row. */
static void exponentiate(i64 rows, i64 count, float *scores, float *highest, float *sum, float *out, i64 width) {
  i64 whole = up_to(count, VL);
  for (i64 i = 0; i < rows; i++) {
    float *s = scores + i * KEYS, lanes[VL];
    for (i64 j = count; j < whole; j++) s[j] = -1e30f;
    vec top = load(s);
    for (i64 j = VL; j < whole; j += VL) top = larger(top, load(s + j));
    store(lanes, top);
    float most = highest[i];
    for (int j = 0; j < VL; j++) most = lanes[j] > most ? lanes[j] : most;
    vec total = {0};
    for (i64 j = 0; j < whole; j += VL) {
      vec e = exp2_of(load(s + j) - most);
      store(s + j, e);
      total += e;
    }
    for (i64 j = count; j < whole; j++) s[j] = 0.0f; /* they weigh 2^-126 */
    float fade = 1.0f, part = 0.0f;
    if (most != highest[i]) {
      store(lanes, exp2_of(fill(highest[i] - most)));
      fade = lanes[0];
      for (i64 j = 0; j < width; j += VL) store(out + i * width + j, load(out + i * width + j) * fade);
    }
    store(lanes, total);
    for (int j = 0; j < VL; j++) part += lanes[j];
    sum[i] = sum[i] * fade + part;
    highest[i] = most;
  }
}

static void attend_block(const struct attention *a, const float *q, i64 rows, const float *keys, const float *values,
                         float *y, float *scores, float *out) {
  float highest[QUERIES], sum[QUERIES];
  i64 vectors = (a->d + VL - 1) / VL, width = vectors * VL;
  for (i64 i = 0; i < rows; i++) highest[i] = -1e30f, sum[i] = 0.0f;
  memset(out, 0, rows * width * sizeof(float));
  for (i64 key = 0; key < a->keys; key += KEYS) {
    i64 count = smaller_of(KEYS, a->keys - key);
    for (i64 j = 0; j < count; j += PANEL)
      multiply(rows, 2, a->d, q, a->ld_q, keys + (key + j) * a->d, scores + j, KEYS, 0);
    exponentiate(rows, count, scores, highest, sum, out, width);
    const float *panel = values;
    for (i64 done = 0; done < vectors;) {
      int n = panel_width(vectors - done);
      multiply(rows, n, count, scores, KEYS, panel + key * n * VL, out + done * VL, width, 1);
      panel += a->keys * n * VL;
      done += n;
    }
  }
  for (i64 i = 0; i < rows; i++) {
    float share_of_one = 1.0f / sum[i], *to = y + i * a->heads * a->d;
    for (i64 j = 0; j < a->d; j++) to[j] = out[i * width + j] * share_of_one;
  }
}

static void attention_part(void *arguments, struct team *team, int part) {
  const struct attention *a = arguments;
  i64 vectors = (a->d + VL - 1) / VL, size_k = up_to(a->keys, PANEL) * a->d, size_v = a->keys * vectors * VL;
  i64 heads = a->batch * a->heads, blocks = (a->queries + QUERIES - 1) / QUERIES, first, end;
  float *values = a->scratch + heads * size_k, *own = values + heads * size_v;
  own += part * (QUERIES * KEYS + QUERIES * vectors * VL);
  share(2 * heads, team->parts, part, &first, &end);
  for (i64 job = first; job < end; job++) {
    i64 head = job / 2, image = head / a->heads, column = head % a->heads * a->d;
    if (job % 2) pack_values(a, a->v + image * a->keys * a->ld_v + column, values + head * size_v);
    else pack_keys(a, a->k + image * a->keys * a->ld_k + column, a->scratch + head * size_k);
  }
  barrier(team);
  share(heads * blocks, team->parts, part, &first, &end);
  for (i64 job = first; job < end; job++) {
    i64 head = job / blocks, image = head / a->heads, column = head % a->heads * a->d;
    i64 row = job % blocks * QUERIES, rows = smaller_of(QUERIES, a->queries - row);
    attend_block(a, a->q + (image * a->queries + row) * a->ld_q + column, rows, a->scratch + head * size_k,
                 values + head * size_v, a->y + (image * a->queries + row) * a->heads * a->d + column, own,
                 own + QUERIES * KEYS);
  }
}
