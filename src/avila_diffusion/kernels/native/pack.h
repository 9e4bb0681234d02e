/* Weights, as files hold them -> as the kernels read them. */

/* Forms of a number in a file. */
enum form { FLOAT32, FLOAT16, BFLOAT16 };

typedef uint16_t half_vec __attribute__((vector_size(VL * 2), aligned(2), may_alias));

static inline i64 size_of(int form) { return form == FLOAT32 ? 4 : 2; }

static inline const void *number(const void *from, i64 index, int form) {
  return (const char *)from + index * size_of(form);
}

/* VL numbers of any form, exactly. */
static inline vec load_form(const void *from, int form) {
  if (form == FLOAT32) return load(from);
  ivec bits = __builtin_convertvector(*(const half_vec *)from, ivec);
  if (form == BFLOAT16) return (vec)(bits << 16);
  ivec size = bits & 0x7fff, sign = (bits & 0x8000) << 16;
  vec normal = (vec)((size << 13) + (112 << 23));
  vec small = (vec)((size << 13) + (113 << 23)) - 6.103515625e-05f; /* 2^-14: what has no leading one */
  vec endless = (vec)((size << 13) | 0x7f800000);
  vec value = choose(size < 0x400, small, choose(size >= 0x7c00, endless, normal));
  return (vec)((ivec)value | sign);
}

/* Numbers first ... first + count of VL rows (none: zeros) -> columns, each row's number in its lane, `step` floats apart. */
static inline void turn(const void *const *rows, i64 first, i64 count, int form, float *to, i64 step) {
  vec block[VL];
  i64 i = first, end = first + count;
  for (; i + VL <= end; i += VL, to += VL * step) {
    UNROLL for (int l = 0; l < VL; l++) block[l] = rows[l] ? load_form(number(rows[l], i, form), form) : (vec){0};
    transpose(block);
    UNROLL for (int l = 0; l < VL; l++) store(to + l * step, block[l]);
  }
  if (i == end) return;
  for (int l = 0; l < VL; l++) { /* the last few, so that nothing behind a row's end is read */
    char tail[VL * 4] = {0};
    if (rows[l]) memcpy(tail, number(rows[l], i, form), (end - i) * size_of(form));
    block[l] = load_form(tail, form);
  }
  transpose(block);
  for (int l = 0; l < end - i; l++) store(to + l * step, block[l]);
}

/* A matrix (columns, k) in panels of PANEL columns, each (k, PANEL); with a gate, (2 * columns, k), values and then gates,
   in panels of VL values and their VL gates. Zeros past the last column. */
struct matrix {
  i64 columns, k;
  const void *from;
  int form, gate;
};

/* Rows p ... p + k of a panel. */
static void pack_panel(const struct matrix *m, i64 panel, i64 p, i64 k, float *to) {
  for (i64 half = 0; half < 2; half++) {
    const void *rows[VL];
    for (i64 l = 0; l < VL; l++) {
      i64 column = m->gate ? panel * VL + l : panel * PANEL + half * VL + l;
      i64 row = m->gate ? half * m->columns + column : column;
      rows[l] = column < m->columns ? number(m->from, row * m->k, m->form) : 0;
    }
    turn(rows, p, k, m->form, to + half * VL, PANEL);
  }
}

static inline i64 panels_of(i64 columns, int gate) { return (columns + (gate ? VL : PANEL) - 1) / (gate ? VL : PANEL); }

struct pack_rows {
  struct matrix matrix;
  float *to;
};

static void pack_rows_part(void *arguments, struct team *team, int part) {
  const struct pack_rows *p = arguments;
  i64 first, end, k = p->matrix.k;
  share(panels_of(p->matrix.columns, p->matrix.gate), team->parts, part, &first, &end);
  for (i64 panel = first; panel < end; panel++) pack_panel(&p->matrix, panel, 0, k, p->to + panel * k * PANEL);
}

/* A 3x3 kernel (out, in, 3, 3) -> its values at the points, (points, panels, in, PANEL), for F(4x4) or F(2x2).
   In float64, rounded once. */
struct pack_winograd {
  i64 out, in;
  const void *from;
  float *to;
  int form, kind;
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

/* VL kernels g (9, VL) -> to[point][...], points `far` floats apart. */
#define POINTS(NAME, N, ONE)                                                          \
  static void NAME(const float *g, float *to, i64 far) {                              \
    dvec half[N * 3], column[3], row[N];                                              \
    UNROLL for (int j = 0; j < 3; j++) {                                              \
      UNROLL for (int i = 0; i < 3; i++)                                              \
        column[i] = __builtin_convertvector(load(g + (i * 3 + j) * VL), dvec);        \
      ONE(column, 1, half + j, 3);                                                    \
    }                                                                                 \
    UNROLL for (int i = 0; i < N; i++) {                                              \
      ONE(half + i * 3, 1, row, 1);                                                   \
      UNROLL for (int j = 0; j < N; j++)                                              \
        store(to + (i * N + j) * far, __builtin_convertvector(row[j], vec));          \
    }                                                                                 \
  }

POINTS(points_4x4, 6, points_4)
POINTS(points_2x2, 4, points_2)

#define TURNED 16 /* channels whose kernels are turned at a time */

/* Channels first ... first + count of a panel -> to[point][channel - first][PANEL], points `far` floats apart. */
static void pack_points(const struct pack_winograd *p, i64 panel, i64 first, i64 count, float *to, i64 far) {
  float g[TURNED * 9 * VL];
  for (i64 half = 0; half < 2; half++) {
    const void *rows[VL];
    for (i64 l = 0; l < VL; l++) {
      i64 column = panel * PANEL + half * VL + l;
      rows[l] = column < p->out ? number(p->from, column * p->in * 9, p->form) : 0;
    }
    for (i64 i = 0; i < count; i += TURNED) {
      i64 several = smaller_of(TURNED, count - i);
      turn(rows, (first + i) * 9, several * 9, p->form, g, VL);
      for (i64 j = 0; j < several; j++) {
        float *at = to + (i + j) * PANEL + half * VL;
        if (p->kind == 4) points_4x4(g + j * 9 * VL, at, far);
        else points_2x2(g + j * 9 * VL, at, far);
      }
    }
  }
}

static void pack_winograd_part(void *arguments, struct team *team, int part) {
  const struct pack_winograd *p = arguments;
  i64 panels = panels_of(p->out, 0), far = panels * p->in * PANEL, first, end;
  share(panels, team->parts, part, &first, &end);
  for (i64 panel = first; panel < end; panel++) pack_points(p, panel, 0, p->in, p->to + panel * p->in * PANEL, far);
}
