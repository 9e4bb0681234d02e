/* y = x W^T + b, with what follows it: + another tensor, or a gate.

   The weights come packed (see native.py): panels of PANEL columns, each (k, PANEL), zeros past the last column. For a
   gate a panel is VL columns of values and the VL columns of their gates, and y = value * gelu(gate). */
struct linear {
  i64 rows, columns, k; /* columns of y */
  const float *x;
  i64 ldx;
  const float *weight, *bias; /* bias: packed as the columns of the panels are, or none */
  const float *add;           /* of y's shape, or none; may be y itself */
  i64 ld_add;
  float *y;
  i64 ldy;
  int gate;
};

/* What of A lies in the second-level cache while the panels of B pass by. */
#if VL == 16
#define LEFT_FLOATS (96 * 1024)
#else
#define LEFT_FLOATS (48 * 1024)
#endif
#define LONGEST 1024 /* of k in one piece, where sums can wait in y */

/* The last touch of a finished tile: from `c` (rows, PANEL) to y. */
static void finish(const struct linear *l, i64 row, i64 rows, i64 panel, const float *c, i64 ldc) {
  i64 width = l->gate ? VL : PANEL, first = panel * width, count = smaller_of(width, l->columns - first);
  const float *bias = l->bias ? l->bias + panel * PANEL : 0;
  for (i64 i = 0; i < rows; i++) {
    float tile[PANEL], *to = l->y + (row + i) * l->ldy + first;
    const float *plus = l->add ? l->add + (row + i) * l->ld_add + first : 0;
    vec u = load(c + i * ldc), v = load(c + i * ldc + VL);
    if (bias) {
      u += load(bias);
      v += load(bias + VL);
    }
    if (l->gate) u *= gelu_of(v);
    if (count == width) {
      store(to, plus ? u + load(plus) : u);
      if (!l->gate) store(to + VL, plus ? v + load(plus + VL) : v);
      continue;
    }
    store(tile, u);
    store(tile + VL, v);
    for (i64 j = 0; j < count; j++) to[j] = plus ? tile[j] + plus[j] : tile[j];
  }
}

#define MOST_ROWS 768 /* rows of A at a time */

static void linear_part(void *arguments, struct team *team, int part) {
  const struct linear *l = arguments;
  i64 width = l->gate ? VL : PANEL, panels = (l->columns + width - 1) / width;
  i64 first_row = 0, end_row = l->rows, first_panel = 0, end_panel = panels;
  /* Rows are dealt out in pieces of a micro-kernel's height; where there are too few, columns are. */
  i64 pieces = (l->rows + ROWS_2 - 1) / ROWS_2;
  if (pieces >= 16 * team->parts) {
    share(pieces, team->parts, part, &first_row, &end_row);
    first_row *= ROWS_2;
    end_row = smaller_of(end_row * ROWS_2, l->rows);
  } else {
    share(panels, team->parts, part, &first_panel, &end_panel);
  }
  i64 cuts = l->k <= LONGEST || l->gate || l->add == l->y ? 1 : (l->k + LONGEST - 1) / LONGEST;
  i64 step_k = (l->k + cuts - 1) / cuts;
  i64 step = larger_of(LEFT_FLOATS / larger_of(step_k, 1) / ROWS_2, 1) * ROWS_2;
  step = smaller_of(step, MOST_ROWS);
  float tiles[MOST_ROWS * PANEL] __attribute__((aligned(64)));
  for (i64 row = first_row; row < end_row; row += step) {
    i64 rows = smaller_of(step, end_row - row);
    for (i64 p = 0; p < l->k; p += step_k) {
      i64 k = smaller_of(step_k, l->k - p);
      int last = p + step_k >= l->k;
      for (i64 panel = first_panel; panel < end_panel; panel++) {
        const float *x = l->x + row * l->ldx, *w = l->weight + panel * l->k * PANEL;
        int whole = !l->gate && l->add != l->y && (panel + 1) * PANEL <= l->columns;
        if (whole) {
          float *y = l->y + row * l->ldy + panel * PANEL;
          multiply(rows, 2, k, x + p, l->ldx, w + p * PANEL, y, l->ldy, p > 0);
          if (last && (l->bias || l->add)) finish(l, row, rows, panel, y, l->ldy);
        } else if (last) { /* these sums have no place to wait in: all of k at once */
          multiply(rows, 2, l->k, x, l->ldx, w, tiles, PANEL, 0);
          finish(l, row, rows, panel, tiles, PANEL);
        }
      }
    }
  }
}
