/** The queue: every job that waits or runs, how far it is, and what can be done about it. */

import { alertLine, button, byId, el, icon } from "./dom.js";
import { counted, number, span, t } from "./i18n.js";
import { changes, control, isOurs, liveJobs } from "./jobs.js";
import { modelWords } from "./models.js";

/** @type {Map<string, {node: HTMLElement, update: (job: any) => void}>} */
const rows = new Map();

/** How far a job is, in words. @param {any} job */
export function progressWords(job) {
  const { state, progress, position } = job;
  if (state === "paused") return t("state.paused");
  if (state === "queued") return position > 1 ? t("state.queued", { n: number(position) }) : t("state.next");
  const parts = [];
  if (job.images > 1) parts.push(t("progress.picture", { n: number(progress.image + 1), of: number(job.images) }));
  const known = ["load", "text", "encode", "decode", "draw"];
  if (known.includes(progress.stage)) parts.push(t(`stage.${progress.stage}`));
  else if (progress.of) parts.push(t("progress.step", { n: number(progress.step), of: number(progress.of) }));
  else if (progress.step) parts.push(t("progress.steps", { n: number(progress.step) }));
  else parts.push(t("state.running"));
  if (progress.eta !== null && progress.eta !== undefined) parts.push(t("progress.left", { time: span(progress.eta) }));
  return parts.join(" · ");
}

/**
 * The buttons that a job has now.
 * @param {any} job
 * @param {boolean} [text]
 */
export function jobButtons(job, text = false) {
  const press = (/** @type {any} */ what) => async (/** @type {Event} */ event) => {
    const pressed = /** @type {HTMLButtonElement} */ (event.currentTarget);
    pressed.disabled = true;
    try {
      await control(job, what);
    } catch (error) {
      alertLine(/** @type {Error} */ (error).message);
    } finally {
      pressed.disabled = false;
    }
  };
  const options = { text };
  const running = job.state === "running";
  return [
    running && button("check", "job.interrupt", press("interrupt"), options),
    running && job.images > 1 && button("skip", "job.skip", press("skip"), { text: false }),
    job.state === "paused"
      ? button("play", "job.resume", press("resume"), { text: false })
      : button("pause", "job.pause", press("pause"), { text: false }),
    button("close", "job.cancel", press("cancel"), { ...options, class: "danger" }),
  ].filter(Boolean);
}

/** @param {any} job */
function row(job) {
  const thumb = el("img", { alt: "" });
  const empty = el("span", { class: "thumb-empty" }, icon("image"));
  const prompt = el("p", { class: "job-prompt" });
  const words = el("p", { class: "job-words" });
  const bar = el("progress", { max: 1, class: "bar" });
  const buttons = el("div", { class: "job-buttons" });
  const node = el("li", { class: "job", data: { job: job.id } }, el("div", { class: "thumb" }, empty, thumb),
    el("div", { class: "job-text" }, prompt, words, bar), buttons);
  let shown = "";
  const update = (/** @type {any} */ now) => {
    const text = now.request?.prompt || t("prompt.none");
    prompt.textContent = text;
    const from = isOurs(now) ? "" : t("job.other");
    words.textContent = [progressWords(now), modelWords(now.model), from].filter(Boolean).join(" · ");
    bar.value = now.progress.fraction;
    bar.setAttribute("aria-label", t("progress.of", { prompt: text.slice(0, 60) }));
    bar.hidden = now.state !== "running";
    if (now.picture) thumb.src = now.picture;
    thumb.hidden = !now.picture;
    node.dataset.state = now.state;
    // New buttons only where they are others: the one that has the focus stays.
    const wanted = `${now.state} ${now.images > 1} ${document.documentElement.lang}`;
    if (wanted === shown) return;
    shown = wanted;
    const had = buttons.contains(document.activeElement);
    buttons.setAttribute("role", "group");
    buttons.setAttribute("aria-label", text.slice(0, 60));
    buttons.replaceChildren(...jobButtons(now));
    if (had) buttons.querySelector("button").focus();
  };
  update(job);
  return { node, update };
}

function show() {
  const jobs = liveJobs();
  const list = byId("queue-list");
  for (const [id, { node }] of rows) {
    if (jobs.some((job) => job.id === id)) continue;
    node.remove();
    rows.delete(id);
  }
  jobs.forEach((job, at) => {
    const known = rows.get(job.id);
    if (known) known.update(job);
    else rows.set(job.id, row(job));
    const { node } = /** @type {any} */ (rows.get(job.id));
    if (list.children[at] !== node) list.insertBefore(node, list.children[at] ?? null);
  });
  byId("queue").hidden = jobs.length === 0;
  byId("queue-count").textContent = jobs.length ? counted("queue.count", jobs.length) : "";
}

/** Wires the queue to the jobs. */
export function wireQueue() {
  changes.addEventListener("live", show);
  changes.addEventListener("progress", (event) => {
    const job = /** @type {CustomEvent} */ (event).detail;
    rows.get(job.id)?.update(job);
  });
  document.addEventListener("language", show);
}
