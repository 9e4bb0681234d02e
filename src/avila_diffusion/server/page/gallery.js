/** The gallery: finished pictures, newest first, loaded as they come into view. */

import { pictureUrl } from "./api.js";
import { byId, el } from "./dom.js";
import { number, t } from "./i18n.js";
import { changes, endedJobs, hasMore, liveJobs, loadMore } from "./jobs.js";
import { openViewer } from "./viewer.js";

/** @type {Map<string, HTMLElement>} */
const tiles = new Map();
let at = "";

/** All finished pictures that are known, also of jobs that go on, newest job first. @returns {{key: string, job: any, result: any}[]} */
export function pictures() {
  const jobs = [...liveJobs(), ...endedJobs()].sort((one, other) => other.number - one.number);
  return jobs.flatMap((job) =>
    job.results.map((/** @type {any} */ result) => ({ key: `${job.id} ${result.index}`, job, result })));
}

/** @param {{key: string, job: any, result: any}} item */
function tile({ key, job, result }) {
  const words = t("picture.alt", { prompt: job.request.prompt || t("prompt.none") });
  const image = el("img", { loading: "lazy", decoding: "async", src: pictureUrl(job, result.index), alt: words,
    width: result.width, height: result.height });
  const press = el("button", { type: "button", class: "tile", tabindex: -1, data: { key },
    on: { click: () => openViewer(job.id, result.index), focus: () => rove(key) } }, image);
  return el("li", {}, press);
}

/** One picture is in the tab order; arrow keys go to the others. @param {string} key */
function rove(key) {
  at = key;
  for (const [other, node] of tiles) node.querySelector("button")?.setAttribute("tabindex", other === key ? "0" : "-1");
}

function show() {
  const all = pictures();
  const grid = byId("gallery-grid");
  const keys = new Set(all.map(({ key }) => key));
  for (const [key, node] of tiles) {
    if (keys.has(key)) continue;
    const focused = node.contains(document.activeElement);
    const next = node.nextElementSibling ?? node.previousElementSibling;
    node.remove();
    tiles.delete(key);
    if (focused) next?.querySelector("button")?.focus();
  }
  all.forEach((item, index) => {
    let node = tiles.get(item.key);
    if (!node) tiles.set(item.key, (node = tile(item)));
    if (grid.children[index] !== node) grid.insertBefore(node, grid.children[index] ?? null);
  });
  if (all.length && !grid.contains(document.activeElement)) rove(all[0].key);
  byId("gallery-empty").hidden = all.length > 0;
  byId("gallery-more").hidden = !hasMore();
  byId("gallery-count").textContent = all.length ? number(all.length) + (hasMore() ? "+" : "") : "";
}

/** How many tiles stand in a row now. */
function columns() {
  return getComputedStyle(byId("gallery-grid")).gridTemplateColumns.split(" ").length;
}

/** @param {KeyboardEvent} event */
function keys(event) {
  const nodes = [...tiles.keys()].length ? [...byId("gallery-grid").querySelectorAll("button")] : [];
  const now = nodes.indexOf(/** @type {any} */ (document.activeElement));
  /** @type {Record<string, number>} */
  const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns(), ArrowDown: columns(), Home: -now, End: nodes.length - 1 - now };
  if (now < 0 || !(event.key in steps) || event.ctrlKey || event.altKey || event.metaKey) return;
  event.preventDefault();
  nodes[now + steps[event.key]]?.focus();
}

/** Wires the gallery to the jobs. */
export function wireGallery() {
  changes.addEventListener("gallery", show);
  changes.addEventListener("ended", show);
  document.addEventListener("language", () => {
    byId("gallery-grid").replaceChildren();
    tiles.clear();
    show();
  });
  byId("gallery-grid").addEventListener("keydown", keys);
  const more = byId("gallery-more");
  let loading = false;
  const load = async () => {
    if (loading) return;
    loading = true;
    await loadMore().catch(() => undefined); // the banner says that the server is away
    loading = false;
  };
  more.addEventListener("click", load);
  new IntersectionObserver((entries) => entries.some((entry) => entry.isIntersecting) && load(), { rootMargin: "400px" }).observe(more);
}
