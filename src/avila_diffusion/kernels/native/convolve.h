/* A convolution by the tiles of winograd.h, block by block: patches to points, products, points to pixels. */

#define AS_IT_IS(X) X
PATCH(patch_2x2, 4, patch_2, AS_IT_IS, )
PATCH(patch_4x4, 6, patch_4, AS_IT_IS, NOTE_ENERGY)
PATCH(patch_within, 6, patch_4, WITHIN, )

/* A tile's patch -> its points; gives the limit beyond which numbers were left out. */
static float turn_patch(const struct winograd *w, const float *const *at, float *v, i64 far) {
  if (w->kind == 2) {
    patch_2x2(at, w->in, 0, v, far);
    return UNLIMITED;
  }
  float energy = patch_4x4(at, w->in, 0, v, far);
  if (is_usual(at, w->in, energy)) return UNLIMITED;
  float limit = limit_of(at, w->in);
  if (limit < UNLIMITED) patch_within(at, w->in, limit, v, far);
  return limit;
}

static void winograd_part(void *arguments, struct team *team, int part) {
  const struct winograd *w = arguments;
  int size = w->kind, side = size + 2;
  i64 points = side * side, panels = (w->out + PANEL - 1) / PANEL, columns = panels * PANEL;
  i64 down = (w->height + size - 1) / size, across = (w->width + size - 1) / size, tiles = w->batch * down * across;
  /* A line between the points' planes: planes a multiple of 4096 bytes apart would fight for the same cache lines. */
  i64 far_v = w->block * w->in + 16, far_m = w->block * columns + 16;
  float *v = w->scratch, *m = v + points * far_v, *limits = m + points * far_m;
  for (i64 start = 0; start < tiles; start += w->block) {
    i64 count = smaller_of(w->block, tiles - start), first, end;
    share(count, team->parts, part, &first, &end);
    for (i64 t = first; t < end; t++) {
      i64 tile = start + t;
      const float *at[36];
      find_patch(w, tile / (down * across), tile / across % down * size, tile % across * size, at);
      limits[t] = turn_patch(w, at, v + t * w->in, far_v);
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
      i64 tile = start + t, image = tile / (down * across), top = tile / across % down * size, left = tile % across * size;
      put_pixels(w, image, top, left, m + t * columns, far_m);
      if (limits[t] < UNLIMITED) add_outliers(w, image, top, left, limits[t]);
    }
  }
}
