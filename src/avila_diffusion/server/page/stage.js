/** The stage: the picture that is being made, or the last that was. */

import { pictureUrl } from "./api.js";
import { announce, byId, button, el } from "./dom.js";
import { counted, t } from "./i18n.js";
import { changes, endedJobs, isOurs, jobOf, liveJobs } from "./jobs.js";
import { jobButtons, progressWords } from "./queue.js";
import { actions } from "./reuse.js";
import { openViewer } from "./viewer.js";

/** @type {{id: string, index: number} | null} a picture of several that was pressed in the strip */
let picked = null;
let buttonsOf = "";
let spoken = -1;

/** The job that the stage shows: what runs, ours first; else what waits of ours; else the last with a picture. */
function current() {
  const live = liveJobs();
  const rank = (/** @type {any} */ job) => (job.state === "running" ? 0 : 2) + (isOurs(job) ? 0 : 1);
  const [first] = live.filter((job) => job.state === "running" || isOurs(job)).sort((one, other) => rank(one) - rank(other));
  return first ?? endedJobs().find((job) => job.results.length) ?? null;
}

/** Shows what there is to show. */
export function showStage() {
  const job = current();
  const busy = Boolean(job) && !job.finished && !["done", "failed", "cancelled"].includes(job.state);
  byId("stage").dataset.state = job ? (busy ? "busy" : "done") : "empty";
  byId("stage-empty").hidden = Boolean(job);
  byId("frame").hidden = !job;
  byId("stage-foot").hidden = !job;
  document.title = busy && job.state === "running" ? `${Math.floor(job.progress.fraction * 100)} % · avila` : "avila";
  if (!job) return;
  if (busy) showBusy(job);
  else showDone(job);
}

/** @param {any} job */
function showBusy(job) {
  const { width, height } = finalSize(job.request);
  const last = job.results.at(-1);
  frame(job.picture ?? (last && pictureUrl(job, last.index)) ?? "", width, height, t("stage.preview"));
  byId("progress").hidden = false;
  byId("progress-bar").value = job.progress.fraction;
  byId("progress-words").textContent = progressWords(job);
  byId("caption").textContent = job.request.prompt;
  buttons(`${job.id} ${job.state} ${job.images}`, () => jobButtons(job, true));
  strip(job, -1);
  speak(job);
}

/** Every quarter of the way is said, not each step. @param {any} job */
function speak(job) {
  const quarter = job.state === "running" ? Math.floor(job.progress.fraction * 4) : -1;
  if (quarter === spoken) return;
  spoken = quarter;
  if (quarter >= 0) announce(progressWords(job));
}

/** @param {any} job */
function showDone(job) {
  const index = picked?.id === job.id ? picked.index : job.results[0].index;
  const result = job.results.find((/** @type {any} */ one) => one.index === index) ?? job.results[0];
  frame(pictureUrl(job, result.index), result.width, result.height, t("picture.alt", { prompt: job.request.prompt || t("prompt.none") }));
  byId("progress").hidden = true;
  byId("caption").textContent = job.request.prompt;
  buttons(`${job.id} ${result.index} done`, () => [
    ...actions(job, result, ["settings", "seed", "image", "inpaint", "download"]),
    button("expand", "action.open", () => openViewer(job.id, result.index)),
  ]);
  strip(job, result.index);
}

/** What a request's pictures measure in the end. @param {any} request */
function finalSize(request) {
  const { width, height, hires_scale: scale, hires_width: across, hires_height: down } = request;
  if (across || down) return { width: across || width, height: down || height };
  return { width: Math.round(width * (scale ?? 1)), height: Math.round(height * (scale ?? 1)) };
}

/** @param {string} source @param {number} width @param {number} height @param {string} words */
function frame(source, width, height, words) {
  const image = byId("stage-image");
  byId("frame").style.setProperty("--ratio", String(width / height || 1));
  byId("frame").classList.toggle("waiting", !source);
  image.hidden = !source;
  image.alt = words;
  if (source && image.getAttribute("src") !== source) image.src = source;
}

/** @param {string} key @param {() => HTMLElement[]} build */
function buttons(key, build) {
  const wanted = `${key} ${document.documentElement.lang}`;
  if (wanted === buttonsOf) return;
  buttonsOf = wanted;
  const place = byId("stage-buttons");
  const had = place.contains(document.activeElement);
  place.replaceChildren(...build());
  if (had) place.querySelector("button")?.focus();
}

/**
 * Shows one of several pictures: here, or large where the stage has the next one in the making.
 * @param {string} id
 * @param {number} index
 */
function pick(id, index) {
  if (!jobOf(id)?.finished) {
    openViewer(id, index);
    return;
  }
  picked = { id, index };
  showStage();
}

/**
 * The pictures of a job that has several, as small ones to choose from.
 * @param {any} job
 * @param {number} chosen index of the one that is shown
 */
function strip(job, chosen) {
  const place = byId("strip");
  const several = job.results.length > 1;
  place.hidden = !several;
  const key = several ? `${job.id} ${job.results.length}` : "";
  if (place.dataset.key !== key) {
    place.dataset.key = key;
    const items = several ? job.results : [];
    place.replaceChildren(...items.map((/** @type {any} */ result) => el(
      "button",
      { type: "button", class: "strip-item", data: { index: result.index }, "aria-label": `${result.index + 1}`,
        on: { click: () => pick(job.id, result.index) } },
      el("img", { src: pictureUrl(job, result.index), alt: "" }),
    )));
  }
  for (const item of place.children) item.setAttribute("aria-pressed", String(Number(item.dataset.index) === chosen));
}

/** Wires the stage to the jobs. */
export function wireStage() {
  changes.addEventListener("live", showStage);
  changes.addEventListener("gallery", showStage);
  changes.addEventListener("progress", showStage);
  changes.addEventListener("ended", (event) => {
    const job = /** @type {CustomEvent} */ (event).detail;
    if (isOurs(job) && job.results.length) announce(counted("said.done", job.results.length));
    spoken = -1;
  });
  document.addEventListener("language", showStage);
  byId("stage-image").addEventListener("click", () => {
    const job = current();
    if (!job?.finished || !job.results.length) return;
    openViewer(job.id, picked?.id === job.id ? picked.index : job.results[0].index);
  });
}
