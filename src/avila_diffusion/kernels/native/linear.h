/* y = x W^T + b, with what follows it: + another tensor, or a gate.

   The weights come packed (pack.h), and are kept so, or as the file has them; then each part packs what it needs as it goes,
   into a cache's worth of scratch. The sums are the same. With a gate, y = value * gelu(gate). */
struct linear {
  i64 rows;
  struct matrix matrix; /* columns: of y */
  const float *packed;  /* or none: from the matrix itself */
  const float *x;
  i64 ldx;
  const float *bias; /* packed as the columns of the panels are, or none */
  const float *add;  /* of y's shape, or none */
  i64 ld_add;
  float *y;
  i64 ldy;
  float *scratch;   /* for each part */
  i64 scratch_size; /* in floats: k * PANEL at least */
};

#define LONGEST 1024   /* of k in one piece, where sums can wait in y */
#define MOST_ROWS 48   /* rows of x at a time: a multiple of ROWS_2 */

/* The last touch of a finished tile: from `c` (rows, PANEL) to y. */
static void finish(const struct linear *l, i64 row, i64 rows, i64 panel, const float *c, i64 ldc) {
  int gate = l->matrix.gate;
  i64 width = gate ? VL : PANEL, first = panel * width, count = smaller_of(width, l->matrix.columns - first);
  const float *bias = l->bias ? l->bias + panel * PANEL : 0;
  for (i64 i = 0; i < rows; i++) {
    float tile[PANEL], *to = l->y + (row + i) * l->ldy + first;
    const float *plus = l->add ? l->add + (row + i) * l->ld_add + first : 0;
    vec u = load(c + i * ldc), v = load(c + i * ldc + VL);
    if (bias) {
      u += load(bias);
      v += load(bias + VL);
    }
    if (gate) u *= gelu_of(v);
    if (count == width) {
      store(to, plus ? u + load(plus) : u);
      if (!gate) store(to + VL, plus ? v + load(plus + VL) : v);
      continue;
    }
    store(tile, u);
    store(tile + VL, v);
    for (i64 j = 0; j < count; j++) to[j] = plus ? tile[j] + plus[j] : tile[j];
  }
}

/* Rows first_row ... end_row of y, in the columns of `count` panels. k is cut where the sums can wait in y. */
static void multiply_panels(const struct linear *l, i64 first_row, i64 end_row, i64 panel, i64 count, i64 step_k,
                            float *scratch) {
  i64 k_all = l->matrix.k;
  int whole = step_k < k_all || (!l->matrix.gate && (panel + count) * PANEL <= l->matrix.columns);
  float tiles[MOST_ROWS * PANEL] __attribute__((aligned(64)));
  for (i64 p = 0; p < k_all; p += step_k) {
    i64 k = smaller_of(step_k, k_all - p);
    int last = p + k == k_all;
    if (!l->packed)
      for (i64 i = 0; i < count; i++) pack_panel(&l->matrix, panel + i, p, k, scratch + i * k * PANEL);
    for (i64 row = first_row; row < end_row; row += MOST_ROWS) {
      i64 rows = smaller_of(MOST_ROWS, end_row - row);
      for (i64 i = 0; i < count; i++) {
        const float *w = l->packed ? l->packed + ((panel + i) * k_all + p) * PANEL : scratch + i * k * PANEL;
        float *y = whole ? l->y + row * l->ldy + (panel + i) * PANEL : tiles;
        i64 ldy = whole ? l->ldy : PANEL;
        multiply(rows, 2, k, l->x + row * l->ldx + p, l->ldx, w, y, ldy, p > 0);
        if (last && (!whole || l->bias || l->add)) finish(l, row, rows, panel + i, y, ldy);
      }
    }
  }
}

static void linear_part(void *arguments, struct team *team, int part) {
  const struct linear *l = arguments;
  const struct matrix *m = &l->matrix;
  i64 panels = panels_of(m->columns, m->gate);
  i64 first_row = 0, end_row = l->rows, first_panel = 0, end_panel = panels;
  /* Rows are dealt out in pieces of a micro-kernel's height; where there are too few, panels are. */
  i64 pieces = (l->rows + ROWS_2 - 1) / ROWS_2;
  if (pieces >= 16 * team->parts) {
    share(pieces, team->parts, part, &first_row, &end_row);
    first_row *= ROWS_2;
    end_row = smaller_of(end_row * ROWS_2, l->rows);
  } else {
    share(panels, team->parts, part, &first_panel, &end_panel);
  }
  i64 cuts = m->gate ? 1 : (m->k + LONGEST - 1) / LONGEST, step_k = (m->k + cuts - 1) / cuts;
  i64 group = larger_of(l->scratch_size / (step_k * PANEL), 1);
  for (i64 panel = first_panel, count; panel < end_panel; panel += count) {
    /* A panel that y has not all the columns of has no room for sums to wait: it goes alone, with all of k at once. */
    int ragged = !m->gate && (panel + 1) * PANEL > m->columns;
    count = smaller_of(group, end_panel - panel);
    if (!m->gate && !ragged && (panel + count) * PANEL > m->columns) count--;
    multiply_panels(l, first_row, end_row, panel, count, ragged ? m->k : step_k, l->scratch + part * l->scratch_size);
  }
}
