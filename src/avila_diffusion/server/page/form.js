/** The form as a whole: it is built from the table, remembered in this browser, read into a request, and told what is wrong. */

import { BY_NAME, FIELDS, buildField, mistake, read, setOptions, write } from "./fields.js";
import { alertLine, byId, el } from "./dom.js";
import { store, stored, t } from "./i18n.js";
import { base64Of } from "./api.js";
import { grow, merged, promptKeys } from "./prompt.js";

const KEY = "avila.form";
const FRESH = stored(KEY) === null;
const FOLDED = ["parts", "hires", "image", "mask", "variation", "tiling", "advanced"];

/** @type {Record<string, any>} */
const inputs = {};
/** @type {Map<string, {prompt: string, negative_prompt: string}>} */
const styles = new Map();
/** @type {Set<string>} names of the styles that are chosen */
const chosen = new Set();
/** @type {{picture: any, mask: any}} what else goes into a request; set by the page */
let given = { picture: null, mask: null };
let saving = 0;

/**
 * Builds the fields into the places of the page that are named after their sections.
 * @param {{picture: any, mask: any}} parts
 */
export function buildForm(parts) {
  given = parts;
  for (const field of FIELDS) {
    const node = buildField(field);
    byId(`section-${field.section}`).append(node);
    inputs[field.name] = node.querySelector(`#f-${field.name}`);
  }
  inputs.prompt.rows = 3;
  for (const name of ["prompt", "negative_prompt", "hires_prompt", "hires_negative_prompt"]) promptKeys(inputs[name]);
  for (const name of FOLDED) byId(`fold-${name}`).addEventListener("toggle", () => {
    growAll();
    changed();
  });
  const form = byId("form");
  form.addEventListener("input", (/** @type {Event} */ event) => {
    const name = /** @type {any} */ (event.target).name;
    if (name in inputs) clearProblem(name);
    changed();
  });
  form.addEventListener("change", changed);
  restore();
}

/** The control of a field. @param {string} name @returns {any} */
export function input(name) {
  return inputs[name];
}

/** What a field holds. @param {string} name @returns {any} */
export function value(name) {
  return read(BY_NAME[name], inputs[name]);
}

/**
 * Fills fields; names that the form does not have are passed over.
 * @param {Record<string, any>} values
 */
export function setValues(values) {
  for (const [name, wanted] of Object.entries(values)) {
    if (!(name in inputs)) continue;
    write(BY_NAME[name], inputs[name], wanted);
    clearProblem(name);
  }
  growAll();
  changed();
}

/** All fields but model, prompts and pictures as they were in the beginning. @param {string[]} keep */
export function reset(keep = []) {
  const values = FIELDS.filter((field) => !keep.includes(field.name)).map((field) => [field.name, field.value]);
  setValues(Object.fromEntries(values));
}

/** @param {string} name @param {any[]} options @param {string} [wanted] */
export function offer(name, options, wanted) {
  setOptions(inputs[name], options, wanted ?? inputs[name].value);
}

/**
 * What the server says about fields: bounds, words, and where they start.
 * @param {Record<string, {min?: number, max?: number, default?: any, choices?: Record<string, string>}>} said
 * @param {{steps?: number, pictures?: number}} server what it allows at most
 */
export function applyLimits(said, server) {
  const most = { steps: server.steps, hires_steps: server.steps, count: server.pictures, batch: server.pictures };
  for (const [name, { min, max, default: start, choices }] of Object.entries(said)) {
    const field = BY_NAME[name];
    if (!field) continue;
    if (field.kind === "range" || field.kind === "number") {
      field.min = Math.max(min ?? -Infinity, field.min ?? -Infinity);
      field.max = Math.min(max ?? Infinity, most[name] ?? Infinity);
      Object.assign(inputs[name], { min: String(field.min), max: String(field.max) });
    }
    if (choices && field.kind === "select" && field.of !== "") {
      offer(name, field.options?.[0] === "" ? ["", ...Object.keys(choices)] : Object.keys(choices));
    }
    if (FRESH && field.of !== "" && start !== null && typeof start === typeof field.value) {
      write(field, inputs[name], (field.value = start));
    }
  }
  changed();
}

/** @param {{name: string, prompt?: string | null, negative_prompt?: string | null}[]} list */
export function setStyles(list) {
  styles.clear();
  for (const style of list) {
    styles.set(style.name, { prompt: style.prompt ?? "", negative_prompt: style.negative_prompt ?? "" });
  }
  for (const name of chosen) if (!styles.has(name)) chosen.delete(name);
  const boxes = [...styles.keys()].map((name) => {
    const box = el("input", { type: "checkbox", value: name, class: "visually-hidden" });
    box.checked = chosen.has(name);
    box.addEventListener("change", () => {
      if (box.checked) chosen.add(name);
      else chosen.delete(name);
      changed();
    });
    return el("label", { class: "chip" }, box, el("span", {}, name));
  });
  byId("styles-list").replaceChildren(...boxes);
  byId("styles").hidden = boxes.length === 0;
}

/** Forgets the chosen styles: the prompts that come in have theirs merged in already. */
export function clearStyles() {
  chosen.clear();
  for (const box of byId("styles-list").querySelectorAll("input")) box.checked = false;
}

/**
 * What is sent to make a job.
 * @returns {Promise<Record<string, any>>}
 */
export async function body() {
  /** @type {Record<string, any>} */
  const request = {};
  for (const field of FIELDS) {
    if (field.of === "" || skipped(field)) continue;
    const held = read(field, inputs[field.name]);
    if (field.always || !same(held, field.value)) request[field.name] = held;
  }
  for (const name of chosen) {
    const style = styles.get(name);
    for (const key of ["prompt", "negative_prompt"]) if (style) request[key] = merged(request[key], style[key]);
  }
  if (value("hires_on")) Object.assign(request, { hires_scale: value("hires_scale"), strength: value("hires_strength") });
  if (given.picture.file) await addPicture(request);
  const parts = { model: value("model"), vae: value("vae"), refiner: value("refiner") };
  return { request, ...Object.fromEntries(Object.entries(parts).filter(([, name]) => name)) };
}

/** @param {Record<string, any>} request */
async function addPicture(request) {
  const { file } = given.picture;
  request.image = { base64: await base64Of(file), name: file.name || "picture.png" };
  request.strength = value("strength");
  const mask = given.mask.empty ? null : await given.mask.toPng();
  if (mask) request.mask = { base64: await base64Of(mask), name: "mask.png" };
  const sides = ["left", "upper", "right", "lower"].map((side) => value(`outpaint_${side}`));
  if (sides.some(Boolean)) request.outpaint = sides;
}

/** Whether a field says nothing because what it belongs to is not in use. @param {import("./fields.js").Field} field */
function skipped(field) {
  if (field.section === "hires") return !value("hires_on");
  if (field.section === "image" || field.section === "mask") return !given.picture.file;
  if (field.name === "refiner_switch" || field.name === "refiner_by") return !value("refiner");
  if (field.name === "variation_seed") return !value("variation_strength");
  // An own list of noise levels replaces the schedule; the server refuses both.
  if (field.name === "schedule") return value("sigmas") !== null;
  return false;
}

/** @param {any} one @param {any} other */
function same(one, other) {
  return one === other || (one === null && other === "") || (one === "" && other === null);
}

/** Looks through the fields; says what is wrong with the first that cannot be sent, and answers whether all can. */
export function check() {
  for (const field of FIELDS) {
    if (skipped(field)) continue;
    const words = mistake(field, read(field, inputs[field.name]));
    if (words) {
      fieldProblem(field.name, words);
      return false;
    }
  }
  return true;
}

/**
 * A refusal of the server: as one line, and at the field that it is about.
 * @param {{message: string, status: number, field?: string | null}} error
 */
export function showProblem(error) {
  alertLine(error.message);
  if (error.status !== 422 && error.status !== 404) return;
  // Messages begin with the name of their field, but for unknown names: "unknown sampler 'x'".
  let name = error.field ?? (error.message.slice(0, 40).match(/[a-z][a-z_]+/g) ?? []).find((word) => word in inputs);
  if (name === "strength" && value("hires_on") && !given.picture.file) name = "hires_strength";
  if (name === "outpaint") name = "outpaint_left";
  if (name && name in inputs) fieldProblem(name, error.message, false);
}

/** @param {string} name @param {string} words @param {boolean} [loud] */
function fieldProblem(name, words, loud = true) {
  if (loud) alertLine(t("wrong.field", { field: t(`field.${name}`), words }));
  byId(`e-${name}`).textContent = words;
  inputs[name].setAttribute("aria-invalid", "true");
  for (let node = inputs[name].closest("details"); node; node = node.parentElement.closest("details")) node.open = true;
  inputs[name].focus();
}

/** @param {string} name */
function clearProblem(name) {
  byId(`e-${name}`).textContent = "";
  inputs[name].removeAttribute("aria-invalid");
}

/** What follows from any change: which sections are in use, and what is remembered. */
export function changed() {
  for (const name of FOLDED) byId(`fold-${name}`).classList.toggle("used", inUse(name));
  byId("mask-needs").hidden = Boolean(given.picture.file);
  byId("section-mask-body").hidden = !given.picture.file;
  clearTimeout(saving);
  saving = setTimeout(save, 250);
}

/** @param {string} section */
function inUse(section) {
  if (section === "hires") return value("hires_on");
  if (section === "image") return Boolean(given.picture.file);
  const outpaint = FIELDS.some((field) => field.section === "outpaint" && value(field.name));
  if (section === "mask") return Boolean(given.picture.file) && (!given.mask.empty || outpaint);
  return FIELDS.some((field) => field.section === section && !same(value(field.name), field.value));
}

function save() {
  const values = Object.fromEntries(FIELDS.map((field) => [field.name, read(field, inputs[field.name])]));
  const open = FOLDED.filter((name) => byId(`fold-${name}`).open);
  store(KEY, JSON.stringify({ values, styles: [...chosen], open }));
}

function restore() {
  try {
    const { values = {}, styles: names = [], open = [] } = JSON.parse(stored(KEY) ?? "{}");
    for (const name of names) chosen.add(String(name));
    for (const name of open) if (FOLDED.includes(name)) byId(`fold-${name}`).open = true;
    for (const field of FIELDS) if (field.name in values) write(field, inputs[field.name], values[field.name]);
  } catch {
    store(KEY, null); // of another version, or damaged: begin anew
  }
  growAll();
  changed();
}

function growAll() {
  for (const name of ["prompt", "negative_prompt", "hires_prompt", "hires_negative_prompt"]) grow(inputs[name]);
}

/** Remembers now what would be remembered in a moment: the page is left. */
export function saveNow() {
  clearTimeout(saving);
  save();
}
