/** What can be done with a finished picture: its settings, its seed, itself as a beginning, its file. */

import { pictureUrl } from "./api.js";
import { alertLine, button, byId, copyText, el, icon, toast } from "./dom.js";
import { confirm } from "./dialogs.js";
import { clearStyles, input, reset, setValues, value } from "./form.js";
import { counted, t } from "./i18n.js";
import { remove } from "./jobs.js";
import { openMask } from "./mask.js";
import { modelChanged, ofRole, showPresets } from "./models.js";
import { dropPicture, picture, usePicture } from "./picture.js";

const KEPT = ["model", "vae", "refiner"];

/** @param {string | number} one @param {number} by */
function plus(one, by) {
  const sum = (BigInt(one) + BigInt(by)) % 2n ** 64n;
  return sum <= BigInt(Number.MAX_SAFE_INTEGER) ? Number(sum) : String(sum);
}

/**
 * Fields of a request as fields of the form; where a name means two things, both.
 * @param {Record<string, any>} request
 */
export function formValues(request) {
  const { hires_scale: scale, hires_width: across, hires_height: down, width, height, outpaint } = request;
  /** @type {Record<string, any>} */
  const values = { ...request };
  delete values.hires_width;
  delete values.hires_height;
  const hires = Boolean(scale || across || down);
  values.hires_on = hires;
  if (hires) values.hires_scale = scale ?? Math.round(((across || down) / (across ? width : height)) * 100) / 100;
  else delete values.hires_scale;
  if (hires && request.strength !== undefined) values.hires_strength = request.strength;
  if (hires || request.strength === undefined) delete values.strength;
  ["left", "upper", "right", "lower"].forEach((side, at) => (values[`outpaint_${side}`] = outpaint?.[at] ?? 0));
  return values;
}

/**
 * The form as it was for a picture; what is not recorded is as in the beginning.
 * @param {Record<string, any>} request
 * @param {{model?: string | null, vae?: string | null, refiner?: string | null}} using
 */
export async function useRequest(request, using) {
  reset(KEPT);
  clearStyles();
  const there = (/** @type {string} */ role, /** @type {any} */ name) => ofRole(role).some((one) => one.name === name);
  if (using.model && there("checkpoint", using.model)) {
    setValues({ model: using.model });
    await modelChanged();
  }
  setValues({
    ...formValues(request),
    vae: using.vae && there("vae", using.vae) ? using.vae : "",
    refiner: using.refiner && there("checkpoint", using.refiner) ? using.refiner : "",
  });
  showPresets();
  for (const name of ["hires", "variation", "advanced", "parts"]) {
    const fold = byId(`fold-${name}`);
    if (fold.classList.contains("used")) fold.open = true;
  }
}

/** @param {any} job @param {any} result */
async function useSettings(job, result) {
  const { request } = job;
  /** @type {Record<string, any>} */
  const values = { ...request, seed: result.seed };
  if (request.variation_strength) values.variation_seed = plus(request.variation_seed, result.index);
  // One picture of several is that one alone; in ComfyUI's way it depends on the others.
  if (request.compat !== "comfyui") Object.assign(values, { batch: 1, count: 1 });
  else values.seed = request.seed;
  await useRequest(values, job);
  if (!request.image) dropPicture();
  toast(t(request.image && !picture.file ? "used.nopicture" : "used.settings"));
  toForm();
}

/** @param {any} result */
function useSeed(result) {
  setValues({ seed: result.seed });
  toast(t("used.seed", { seed: result.seed }));
  toForm(input("seed"));
}

/** @param {any} job @param {any} result @param {boolean} paint */
async function begin(job, result, paint) {
  try {
    const response = await fetch(pictureUrl(job, result.index));
    if (!response.ok) throw new Error(t("error.status", { status: response.status }));
    const blob = await response.blob();
    const file = new File([blob], `${result.seed}.png`, { type: blob.type });
    if (!(await usePicture(file, { keep: true }))) return;
  } catch (error) {
    alertLine(/** @type {Error} */ (error).message);
    return;
  }
  setValues({ hires_on: false });
  if (!value("prompt")) setValues({ prompt: job.request.prompt, negative_prompt: job.request.negative_prompt });
  if (paint) {
    byId("fold-mask").open = true;
    closeDialogs();
    openMask();
  } else toForm(input("strength"));
}

function closeDialogs() {
  for (const dialog of document.querySelectorAll("dialog[open]")) /** @type {any} */ (dialog).close();
}

/** @param {HTMLElement} [where] */
export function toForm(where = input("prompt")) {
  closeDialogs();
  byId("settings").open = true;
  where.focus();
  where.scrollIntoView({ block: "center" });
}

/** @param {any} job */
export async function deleteJob(job) {
  const several = job.results.length > 1;
  if (!(await confirm(several ? counted("delete.sure", job.results.length) : t("delete.one"), t("action.delete")))) return false;
  try {
    await remove(job);
    toast(t("delete.done"));
    return true;
  } catch (error) {
    alertLine(/** @type {Error} */ (error).message);
    return false;
  }
}

/** The address of a picture as a file to save. @param {any} job @param {any} result */
function download(job, result) {
  const href = `${pictureUrl(job, result.index)}&download=true`;
  return el("a", { class: "button plain", href, download: `${result.seed}.png`, label: "action.download" }, icon("download"));
}

/**
 * Buttons for a finished picture.
 * @param {any} job
 * @param {any} result
 * @param {string[]} names
 * @returns {HTMLElement[]}
 */
export function actions(job, result, names) {
  /** @type {Record<string, () => HTMLElement>} */
  const all = {
    settings: () => button("settings", "action.settings", () => useSettings(job, result), { text: true }),
    seed: () => button("sprout", "action.seed", () => useSeed(result), { text: true }),
    image: () => button("image", "action.image", () => begin(job, result, false), { text: true }),
    inpaint: () => button("brush", "action.inpaint", () => begin(job, result, true), { text: true }),
    download: () => download(job, result),
    copy: () => button("copy", "action.copy", () => copyText(result.infotext ?? "").then(() => toast(t("copied"))), { text: true }),
    delete: () => button("trash", "action.delete", () => deleteJob(job), { text: true, class: "danger" }),
  };
  return names.map((name) => all[name]());
}

/**
 * The server's model that a picture names, by hash or by name.
 * @param {string | null | undefined} name
 * @param {string | null | undefined} hash
 */
export function findModel(name, hash) {
  const stem = (/** @type {string} */ text) => text.split("/").at(-1)?.replace(/\.\w+$/, "").toLowerCase();
  return (
    ofRole("checkpoint").find((one) => hash && one.short_hash && one.short_hash === hash.toLowerCase().slice(0, 10)) ??
    ofRole("checkpoint").find((one) => name && stem(one.name) === stem(name)) ??
    ofRole("checkpoint").find((one) => one.name === "procedural" && name === "avila procedural") ??
    null
  );
}

