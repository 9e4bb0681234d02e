/** What the server has to draw with: models, samplers, schedules, styles; and what it knows of the chosen model. */

import { call } from "./api.js";
import { BY_NAME } from "./fields.js";
import { alertLine, byId, el, openDialog, toast } from "./dom.js";
import { counted, size, store, stored, t } from "./i18n.js";
import { applyLimits, input, offer, setStyles, setValues, value } from "./form.js";
import { presets } from "./sizes.js";

const INSIDE = ["bundled", "procedural"];
const DEFAULTS = "avila.defaults";
/** @type {Record<string, string>} */
const FAMILIES = { sd1: "Stable Diffusion 1", sd2: "Stable Diffusion 2", sdxl: "SDXL" };

/** models: of all roles. own: side in pixels that suits the chosen model. */
export const known = { models: /** @type {any[]} */ ([]), fallback: "", loaded: /** @type {string | null} */ (null), own: 512 };
/** @type {any} */
let facts = null;
let asked = "";

/** Asks for all lists and fills the selects. */
export async function loadLists() {
  const soft = (/** @type {string} */ path) => call("GET", path).catch(() => null);
  const [samplers, schedules, upscalers, styles, limits] = await Promise.all(
    ["/samplers", "/schedules", "/upscalers", "/styles", "/limits"].map(soft),
  );
  const names = (/** @type {any} */ told, /** @type {string} */ key) =>
    (Array.isArray(told) ? told : told?.[key] ?? []).map((/** @type {any} */ one) => (typeof one === "string" ? one : one.name));
  fill("sampler", names(samplers, "samplers"), "hires_sampler");
  fill("schedule", names(schedules, "schedules"), "hires_schedule");
  fill("hires_upscaler", names(upscalers, "upscalers"));
  setStyles(Array.isArray(styles) ? styles : styles?.styles ?? []);
  applyLimits(limits?.fields ?? {}, limits?.server ?? {});
  await loadModels(); // last: what a model recommends comes before what the server does
}

/**
 * @param {string} name
 * @param {string[]} options
 * @param {string} [also] a field with the same choices that may be left open
 */
function fill(name, options, also) {
  if (!options.length) return;
  offer(name, options.includes(value(name)) ? options : [...options, value(name)]);
  if (also) offer(also, ["", ...options]);
}

export async function loadModels() {
  const told = await call("GET", "/models");
  Object.assign(known, { models: told.models ?? [], fallback: told.default ?? "", loaded: told.loaded ?? null });
  const checkpoints = ofRole("checkpoint");
  const before = stored("avila.model") ?? known.fallback;
  const options = checkpoints.map((one) => ({ value: one.name, text: titleOf(one), group: groupOf(one) }));
  const wanted = checkpoints.some((one) => one.name === before) ? before : known.fallback;
  offer("model", options, wanted);
  const plain = (/** @type {any} */ one) => ({ value: one.name, text: titleOf(one) });
  offer("vae", ["", ...ofRole("vae").map(plain)]);
  offer("refiner", ["", ...checkpoints.filter((one) => !INSIDE.includes(one.name)).map(plain)]);
  byId("first-start").hidden = checkpoints.some((one) => !INSIDE.includes(one.name));
  byId("first-start-now").textContent = t(checkpoints.some((one) => one.name === "bundled") ? "first.bundled" : "first.procedural");
  await modelChanged(false);
}

/** @param {string} role */
export function ofRole(role) {
  return known.models.filter((one) => (one.role ?? "checkpoint") === role);
}

/** @param {any} model */
function titleOf(model) {
  return INSIDE.includes(model.name) ? t(`model.${model.name}`) : (model.title ?? model.name);
}

/** @param {any} model */
function groupOf(model) {
  if (INSIDE.includes(model.name)) return t("model.inside");
  return model.name.includes("/") ? model.name.slice(0, model.name.lastIndexOf("/")) : undefined;
}

/** The words for a model that a job names. @param {string | null | undefined} name */
export function modelWords(name) {
  if (!name) return "";
  return INSIDE.includes(name) ? t(`model.${name}`) : name.replace(/\.(safetensors|sft)$/i, "");
}

/**
 * Asks for the facts of the chosen model, and takes its defaults where the person has not chosen otherwise.
 * @param {boolean} chosen by the person, just now
 */
export async function modelChanged(chosen = true) {
  const name = value("model");
  if (!name) return;
  if (chosen) store("avila.model", name);
  asked = name;
  let told;
  try {
    told = await call("GET", `/models/${encodeURIComponent(name).replaceAll("%2F", "/")}`);
  } catch (error) {
    if (asked !== name) return;
    facts = null;
    byId("model-line").textContent = /** @type {Error} */ (error).message;
    byId("model-line").classList.add("error");
    return;
  }
  if (asked !== name) return;
  facts = told;
  // What draws at one small size is enlarged to what is asked for: then its own size is no measure.
  known.own = !facts.size || facts.fixed_size || facts.size < 256 ? 512 : facts.size;
  showFacts();
  takeDefaults();
  showPresets();
}

function takeDefaults() {
  const defaults = { ...(facts.defaults ?? {}), width: known.own, height: known.own };
  const before = JSON.parse(stored(DEFAULTS) ?? "{}");
  const taken = {};
  for (const [name, wanted] of Object.entries(defaults)) {
    if (!(name in BY_NAME) || wanted === null) continue;
    const now = value(name);
    // What the person set stays; what the last model, or nobody, set follows the model.
    if (now === (name in before ? before[name] : BY_NAME[name].value)) taken[name] = wanted;
  }
  if (("width" in taken) !== ("height" in taken)) for (const name of ["width", "height"]) delete taken[name];
  setValues(taken);
  store(DEFAULTS, JSON.stringify(defaults));
}

/** What a model is, in words: "SDXL inpaint". */
function kindWords() {
  const family = FAMILIES[facts.family] ?? facts.family;
  return [family, facts.variant === "base" ? "" : facts.variant].filter(Boolean).join(" ");
}

function showFacts() {
  const model = known.models.find((one) => one.name === asked);
  const parts = [kindWords(), facts.size ? `${facts.size} px` : "",
    model?.size ? size(model.size) : ""];
  byId("model-line").textContent = facts.problem ?? parts.filter(Boolean).join(" · ");
  byId("model-line").classList.toggle("error", Boolean(facts.problem));
}

/** The sizes that suit the model, as buttons. */
export function showPresets() {
  const now = `${value("width")}x${value("height")}`;
  const nodes = presets(known.own).map(({ shape, width, height }) => {
    const words = t("size.preset", { shape: t(`shape.${shape}`), width, height });
    const outline = el("span", { class: `shape ${shape}`, "aria-hidden": "true" });
    return el("button", {
      type: "button", class: "preset", title: words, "aria-label": words, "aria-pressed": now === `${width}x${height}`,
      on: { click: () => { setValues({ width, height }); showPresets(); } },
    }, outline);
  });
  const focused = [...byId("presets").children].indexOf(document.activeElement);
  byId("presets").replaceChildren(...nodes);
  if (focused >= 0) nodes[focused].focus();
}

/** Opens what is known about the chosen model. */
export function showReport() {
  const name = value("model");
  byId("report-title").textContent = modelWords(name);
  const rows = facts
    ? [["facts.family", kindWords()], ["facts.size", facts.size && `${facts.size} px`],
       ["facts.prediction", facts.prediction], ...Object.entries(facts.defaults ?? {}).map(([key, said]) => [`field.${key}`, said])]
    : [];
  const list = rows.filter(([, said]) => said !== null && said !== undefined && said !== "")
    .flatMap(([key, said]) => [el("dt", {}, t(String(key))), el("dd", {}, String(said))]);
  byId("report-facts").replaceChildren(...list);
  byId("report-lines").textContent = (facts?.lines ?? []).join("\n");
  byId("report-lines").hidden = !facts?.lines?.length;
  byId("report-empty").hidden = Boolean(facts);
  openDialog(byId("report"));
}

/** Looks at the folders of the server again. */
export async function rescan() {
  const before = ofRole("checkpoint").length;
  try {
    await call("POST", "/models/rescan", { json: {} });
    await loadLists();
    const more = ofRole("checkpoint").length - before;
    toast(more > 0 ? counted("models.more", more) : t("models.same"));
  } catch (error) {
    alertLine(/** @type {Error} */ (error).message);
  }
}

/** Wires the controls around the model. */
export function wireModels() {
  input("model").addEventListener("change", () => modelChanged());
  byId("rescan").addEventListener("click", rescan);
  byId("first-rescan").addEventListener("click", rescan);
  byId("about-model").addEventListener("click", showReport);
  for (const name of ["width", "height"]) input(name).addEventListener("input", showPresets);
  byId("swap").addEventListener("click", () => {
    setValues({ width: value("height"), height: value("width") });
    showPresets();
  });
}
