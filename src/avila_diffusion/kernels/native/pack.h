/* Weights as the kernels read them. */

/* (columns, k) -> panels of PANEL columns, each (k, PANEL); with a gate, (2 * columns, k), values and then gates, ->
   panels of VL values and their VL gates. Zeros past the last column. */
struct pack_rows {
  i64 columns, k;
  const float *from;
  float *to;
  int gate;
};

static void pack_rows_part(void *arguments, struct team *team, int part) {
  const struct pack_rows *p = arguments;
  i64 width = p->gate ? VL : PANEL, panels = (p->columns + width - 1) / width, first, end;
  share(panels, team->parts, part, &first, &end);
  for (i64 panel = first; panel < end; panel++) {
    const float *rows[PANEL];
    for (i64 j = 0; j < PANEL; j++) {
      i64 column = panel * width + j % width, half = j / width;
      rows[j] = column < p->columns ? p->from + (half * p->columns + column) * p->k : 0;
    }
    float *to = p->to + panel * p->k * PANEL;
    for (i64 start = 0; start < p->k; start += 16) { /* a cache line of each row at a time */
      i64 stop = smaller_of(start + 16, p->k);
      for (i64 j = 0; j < PANEL; j++)
        for (i64 i = start; i < stop; i++) to[i * PANEL + j] = rows[j] ? rows[j][i] : 0.0f;
    }
  }
}

/* A 3x3 kernel (out, in, 3, 3), or a 2x2 one of a doubled map, -> its values at the points, (points, panels, in, PANEL).
   In float64, rounded once: these are made once and used often. */
struct pack_winograd {
  i64 out, in;
  const float *from;
  float *to;
  int kind; /* as in struct winograd; 5 takes (out, in, 2, 2) */
};

typedef double dvec __attribute__((vector_size(VL * 8)));

static inline void points_4(const dvec *g, int s, dvec *u, int to) {
  const double a = 0.70710678118654752440, b = 1.41421356237309504880;
  dvec even = (g[0] + 0.5 * g[2 * s]) * (-1.0 / 1.5), odd = (a / -1.5) * g[s];
  dvec even2 = (g[0] + 2.0 * g[2 * s]) * (1.0 / 6.0), odd2 = (b / 6.0) * g[s];
  u[0] = g[0];
  u[to] = even + odd;
  u[2 * to] = even - odd;
  u[3 * to] = even2 + odd2;
  u[4 * to] = even2 - odd2;
  u[5 * to] = g[2 * s];
}

static inline void points_2(const dvec *g, int s, dvec *u, int to) {
  u[0] = g[0];
  u[to] = 0.5 * (g[0] + g[s] + g[2 * s]);
  u[2 * to] = 0.5 * (g[0] - g[s] + g[2 * s]);
  u[3 * to] = g[2 * s];
}

static inline void points_5(const dvec *g, int s, dvec *u, int to) {
  const double a = A5, b = B5, na = 2 * a * (a * a - b * b), nb = 2 * b * (b * b - a * a);
  u[0] = (g[0] + a * g[s]) / na;
  u[to] = (a * g[s] - g[0]) / na;
  u[2 * to] = (g[0] + b * g[s]) / nb;
  u[3 * to] = (b * g[s] - g[0]) / nb;
  u[4 * to] = g[s];
}

#define POINTS(NAME, TAPS, N, ONE)                                                     \
  static void NAME(const dvec *g, float *to, i64 far) {                               \
    dvec half[N * TAPS], row[N];                                                       \
    UNROLL for (int j = 0; j < TAPS; j++) ONE(g + j, TAPS, half + j, TAPS);            \
    UNROLL for (int i = 0; i < N; i++) {                                               \
      ONE(half + i * TAPS, 1, row, 1);                                                 \
      UNROLL for (int j = 0; j < N; j++)                                               \
        for (int l = 0; l < VL; l++) to[(i * N + j) * far + l] = (float)row[j][l];     \
    }                                                                                  \
  }

POINTS(points_4x4, 3, 6, points_4)
POINTS(points_2x2, 3, 4, points_2)
POINTS(points_5x5, 2, 5, points_5)

static void pack_winograd_part(void *arguments, struct team *team, int part) {
  const struct pack_winograd *p = arguments;
  i64 taps = p->kind == 5 ? 4 : 9, panels = (p->out + PANEL - 1) / PANEL, far = panels * p->in * PANEL, first, end;
  share(panels, team->parts, part, &first, &end);
  for (i64 panel = first; panel < end; panel++)
    for (i64 i = 0; i < p->in; i++)
      for (i64 half = 0; half < 2; half++) {
        dvec g[9] = {{0}};
        i64 column = panel * PANEL + half * VL;
        for (i64 l = 0; l < VL && column + l < p->out; l++) {
          const float *w = p->from + ((column + l) * p->in + i) * taps;
          for (i64 t = 0; t < taps; t++) g[t][l] = w[t];
        }
        float *to = p->to + (panel * p->in + i) * PANEL + half * VL;
        if (p->kind == 4) points_4x4(g, to, far);
        else if (p->kind == 2) points_2x2(g, to, far);
        else points_5x5(g, to, far);
      }
}
