/** The large view: one picture, how it was made, and the way to its neighbours. */

import { pictureUrl } from "./api.js";
import { announce, byId, el, openDialog } from "./dom.js";
import { moment, number, size, span, t } from "./i18n.js";
import { pictures } from "./gallery.js";
import { changes } from "./jobs.js";
import { modelWords } from "./models.js";
import { actions } from "./reuse.js";

let at = "";

/**
 * @param {string} id of the job
 * @param {number} index of the picture in it
 */
export function openViewer(id, index) {
  at = `${id} ${index}`;
  show();
  openDialog(byId("viewer"));
}

function show() {
  const all = pictures();
  const place = all.findIndex(({ key }) => key === at);
  if (place < 0) return;
  const { job, result } = all[place];
  const image = byId("viewer-image");
  image.src = pictureUrl(job, result.index);
  image.alt = t("picture.alt", { prompt: job.request.prompt || t("prompt.none") });
  byId("viewer-place").textContent = t("viewer.place", { n: number(place + 1), of: number(all.length) });
  byId("viewer-prompt").textContent = job.request.prompt || t("prompt.none");
  const negative = job.request.negative_prompt;
  byId("viewer-negative").textContent = negative;
  byId("viewer-negative-part").hidden = !negative;
  byId("viewer-facts").replaceChildren(...facts(job, result).flatMap(([key, said]) => [el("dt", {}, t(key)), el("dd", {}, said)]));
  byId("viewer-notes").replaceChildren(...job.notes.map((/** @type {string} */ note) => el("li", {}, note)));
  byId("viewer-infotext").textContent = result.infotext ?? "";
  byId("viewer-infotext-part").hidden = !result.infotext;
  byId("viewer-actions").replaceChildren(
    ...actions(job, result, ["settings", "seed", "image", "inpaint", ...(result.infotext ? ["copy"] : []), "download", "delete"]));
  byId("viewer-previous").disabled = place === 0;
  byId("viewer-next").disabled = place === all.length - 1;
}

/** @param {any} job @param {any} result @returns {[string, string][]} */
function facts(job, result) {
  const { request } = job;
  /** @type {[string, any][]} */
  const rows = [
    ["fact.seed", result.seed],
    ["fact.size", `${result.width} × ${result.height}`],
    ["field.steps", request.steps],
    ["field.guidance_scale", request.guidance_scale],
    ["field.sampler", request.sampler],
    ["field.schedule", request.schedule],
    ["field.model", modelWords(job.model)],
    ["field.vae", modelWords(job.vae)],
    ["field.refiner", modelWords(job.refiner)],
    ["field.strength", request.image || request.hires_scale || request.hires_width ? request.strength : ""],
    ["field.variation_strength", request.variation_strength || ""],
    ["field.clip_skip", request.clip_skip > 1 ? request.clip_skip : ""],
    ["fact.file", result.size ? size(result.size) : ""],
    ["fact.time", job.finished && job.started ? span(job.finished - job.started) : ""],
    ["fact.made", job.finished ? moment(job.finished) : ""],
  ];
  return /** @type {any} */ (rows.filter(([, said]) => said !== "" && said !== null && said !== undefined)
    .map(([key, said]) => [key, String(said)]));
}

/** @param {number} by */
function go(by) {
  const all = pictures();
  const next = all[all.findIndex(({ key }) => key === at) + by];
  if (!next) return;
  at = next.key;
  show();
  announce(byId("viewer-place").textContent);
}

/** Wires the keys and buttons of the large view. */
export function wireViewer() {
  const dialog = byId("viewer");
  byId("viewer-previous").addEventListener("click", () => go(-1));
  byId("viewer-next").addEventListener("click", () => go(1));
  dialog.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    if (event.key === "ArrowLeft") go(-1);
    else if (event.key === "ArrowRight") go(1);
    else if (event.key === "Delete") dialog.querySelector("#viewer-actions .danger")?.click();
    else return;
    event.preventDefault();
  });
  changes.addEventListener("gallery", () => {
    if (!dialog.open) return;
    const all = pictures();
    if (all.some(({ key }) => key === at)) {
      byId("viewer-place").textContent = t("viewer.place", {
        n: number(all.findIndex(({ key }) => key === at) + 1), of: number(all.length) });
    } else {
      dialog.close(); // it was deleted
      byId("gallery-grid").querySelector("button")?.focus();
    }
  });
  document.addEventListener("language", () => dialog.open && show());
}
