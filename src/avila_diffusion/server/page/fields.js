/** The table of the form's fields, by their names in a request, and how one is built. */

import { el } from "./dom.js";
import { t } from "./i18n.js";
import en from "./en.js";

/**
 * kind: "range" is a number with a slider. value: where it starts; null: left to the server where it is empty. min, max: the
 * server's; slide: the slider's, where that would be of no use. always: sent even at its default. half: two share a line.
 * of: what it is in a request, where its name here is another; "" for none. options: of a select; first "" where it may be left.
 * @typedef {{name: string, section: string, kind: "range"|"number"|"select"|"switch"|"text"|"area"|"list", value: any,
 *   min?: number, max?: number, step?: number, slide?: [number, number], options?: string[], always?: boolean,
 *   half?: boolean, of?: string}} Field
 */

const range = (name, section, value, min, max, step, slide = [min, max], more = {}) =>
  ({ name, section, kind: "range", value, min, max, step, slide, ...more });
const optional = (name, section, min, max, step, more = {}) =>
  ({ name, section, kind: "number", value: null, min, max, step, half: true, ...more });
const choice = (name, section, value, options = [], more = {}) =>
  ({ name, section, kind: "select", value, options, ...more });
const toggle = (name, section, more = {}) => ({ name, section, kind: "switch", value: false, ...more });

const ALWAYS = { always: true };
const HALF = { half: true };
const OURS = { of: "" };

/** @type {Field[]} */
export const FIELDS = [
  { name: "prompt", section: "prompts", kind: "area", value: "", always: true },
  { name: "negative_prompt", section: "prompts", kind: "area", value: "", always: true },
  choice("model", "model", "", [], OURS),
  { ...optional("width", "size", 8, 8192, 8), value: 512, ...ALWAYS },
  { ...optional("height", "size", 8, 8192, 8), value: 512, ...ALWAYS },
  range("steps", "main", 20, 1, 1000, 1, [1, 60], ALWAYS),
  range("guidance_scale", "main", 7, 0, 100, 0.1, [1, 20], ALWAYS),
  choice("sampler", "main", "DPM++ 2M", ["DPM++ 2M"], { ...HALF, ...ALWAYS }),
  choice("schedule", "main", "Automatic", ["Automatic"], { ...HALF, ...ALWAYS }),
  { name: "seed", section: "seed", kind: "text", value: null, always: true },
  { ...optional("count", "counts", 1, 1000, 1), value: 1, ...ALWAYS },
  { ...optional("batch", "counts", 1, 64, 1), value: 1, ...ALWAYS },

  choice("vae", "parts", "", [""], OURS),
  choice("refiner", "parts", "", [""], OURS),
  range("refiner_switch", "parts", 0.8, 0, 1, 0.01),
  choice("refiner_by", "parts", "timestep", ["timestep", "step"]),
  range("clip_skip", "parts", 1, 1, 12, 1, [1, 12], ALWAYS),

  toggle("hires_on", "hires", OURS),
  range("hires_scale", "hires", 2, 1, 8, 0.05, [1, 4], OURS),
  range("hires_strength", "hires", 0.6, 0, 1, 0.01, [0, 1], OURS),
  choice("hires_upscaler", "hires", "Latent", ["Latent"]),
  optional("hires_steps", "hires", 1, 1000, 1),
  optional("hires_guidance_scale", "hires", 0, 100, 0.1),
  choice("hires_sampler", "hires", "", [""], HALF),
  choice("hires_schedule", "hires", "", [""], HALF),
  { name: "hires_prompt", section: "hires", kind: "area", value: null },
  { name: "hires_negative_prompt", section: "hires", kind: "area", value: null },

  range("strength", "image", 0.6, 0, 1, 0.01, [0, 1], OURS),
  choice("resize_mode", "image", "resize", ["resize", "crop", "fill", "latent", "keep"]),
  toggle("exact_steps", "image"),
  range("extra_noise", "image", 0, 0, 1, 0.01),
  range("noise_multiplier", "image", 1, 0, 2, 0.01),
  range("image_guidance_scale", "image", 1.5, 0, 100, 0.1, [0, 5]),

  choice("masked_content", "mask", "original", ["original", "fill", "noise", "nothing"]),
  choice("inpaint_area", "mask", "whole", ["whole", "masked"]),
  range("mask_padding", "mask", 32, 0, 8192, 4, [0, 256]),
  range("mask_blur", "mask", 4, 0, 256, 0.5, [0, 64]),
  range("mask_weight", "mask", 1, 0, 1, 0.01),
  toggle("mask_invert", "mask"),
  toggle("mask_soft", "mask"),
  ...["left", "upper", "right", "lower"].map((side) => ({
    ...optional(`outpaint_${side}`, "outpaint", 0, 4096, 8), value: 0, ...OURS })),

  range("variation_strength", "variation", 0, 0, 1, 0.01),
  { name: "variation_seed", section: "variation", kind: "text", value: null },
  optional("seed_width", "variation", 8, 8192, 8),
  optional("seed_height", "variation", 8, 8192, 8),

  choice("tiling", "tiling", "none", ["none", "x", "y", "both"]),

  choice("compat", "advanced", "a1111", ["a1111", "comfyui", "diffusers"], HALF),
  choice("rng", "advanced", "", ["", "nv", "cpu", "gpu"], HALF),
  choice("emphasis", "advanced", "Original", ["Original", "No norm", "Ignore", "None"]),
  range("guidance_rescale", "advanced", 0, 0, 1, 0.01),
  range("guidance_start", "advanced", 0, 0, 1, 0.01),
  range("guidance_stop", "advanced", 1, 0, 1, 0.01),
  range("skip_early", "advanced", 0, 0, 1, 0.01),
  optional("eta", "advanced", 0, 10, 0.01),
  optional("s_noise", "advanced", 0, 10, 0.001),
  optional("s_churn", "advanced", 0, 1000, 0.1),
  optional("s_tmin", "advanced", 0, 100000, 0.01),
  optional("s_tmax", "advanced", 0, 100000, 0.01),
  optional("rho", "advanced", 0.01, 100, 0.01),
  optional("sigma_min", "advanced", 0.00001, 100000, "any"),
  optional("sigma_max", "advanced", 0.00001, 100000, "any"),
  { ...optional("ngms", "advanced", 0, 100000, 0.01), value: 0 },
  { ...optional("ensd", "advanced", -1e15, 1e15, 1), value: 0 },
  { ...optional("noise_batch", "advanced", 1, 64, 1) },
  { ...optional("noise_index", "advanced", 0, 63, 1), value: 0 },
  { name: "sigmas", section: "advanced", kind: "list", value: null },
  { name: "guidance_list", section: "advanced", kind: "list", value: null },
  toggle("ngms_all", "advanced"),
];

/** @type {Record<string, Field>} */
export const BY_NAME = Object.fromEntries(FIELDS.map((field) => [field.name, field]));

const WORDED = new Set(["resize_mode", "masked_content", "inpaint_area", "tiling", "compat", "rng", "emphasis", "refiner_by"]);
/** Selects whose choices have words of their own. */

/**
 * A field with its label, hint and room for what is wrong with it.
 * @param {Field} field
 * @returns {HTMLElement}
 */
export function buildField(field) {
  const id = `f-${field.name}`;
  const hint = `hint.${field.name}` in en ? el("p", { class: "hint", id: `h-${field.name}`, i18n: `hint.${field.name}` }) : null;
  const wrong = el("p", { class: "error", id: `e-${field.name}` });
  const described = [hint && hint.id, wrong.id].filter(Boolean).join(" ");
  const label = el("label", { for: id, i18n: `field.${field.name}` });
  const input = control(field, id, described);
  const parts = field.kind === "switch" ? [el("span", { class: "toggle" }, input, label)] : [label, input];
  if (field.kind === "range") parts.push(slider(field, input));
  return el(
    "div",
    { class: `field ${field.kind}${field.half ? " half" : ""}`, data: { field: field.name } },
    ...parts, hint, wrong,
  );
}

/**
 * @param {Field} field
 * @param {string} id
 * @param {string} described
 */
function control(field, id, described) {
  const common = { id, name: field.name, "aria-describedby": described };
  if (field.kind === "select") {
    const select = el("select", common);
    setOptions(select, field.options ?? [], field.value);
    return select;
  }
  if (field.kind === "switch") return el("input", { ...common, type: "checkbox" });
  if (field.kind === "area") return el("textarea", { ...common, rows: 2, spellcheck: "false" });
  if (field.kind === "text" || field.kind === "list") {
    return el("input", { ...common, type: "text", autocomplete: "off", inputmode: field.kind === "text" ? "numeric" : "text",
      hint: `empty.${field.kind === "text" ? "random" : "list"}` });
  }
  const { min, max, step } = field;
  // Arrow keys go by `step`; that a value lies between two of them is no mistake, the server takes it.
  const input = el("input", { ...common, type: "number", min, max, step, inputmode: "decimal",
    hint: field.value === null ? "empty.own" : null });
  input.value = field.value ?? "";
  return input;
}

/**
 * A slider that goes with a number. It has no place in the tab order: the number does the same with arrow keys.
 * @param {Field} field
 * @param {HTMLInputElement} input
 */
function slider(field, input) {
  const [min, max] = field.slide ?? [field.min, field.max];
  const step = field.step === 0.1 ? 0.5 : field.step;
  const bar = el("input", { type: "range", class: "slider", min, max, step, tabindex: -1, "aria-hidden": "true" });
  const show = () => {
    bar.value = input.value;
    const share = (Number(bar.value) - Number(min)) / (Number(max) - Number(min));
    bar.style.setProperty("--share", String(share));
  };
  bar.addEventListener("input", () => {
    input.value = bar.value;
    input.dispatchEvent(new Event("input", { bubbles: true }));
  });
  input.addEventListener("input", show);
  input.addEventListener("shown", show);
  show();
  return bar;
}

/**
 * The choices of a select; the value it had stays where it is still among them.
 * @param {HTMLSelectElement} select
 * @param {(string | {value: string, text: string, group?: string})[]} options
 * @param {string} [value]
 */
export function setOptions(select, options, value = select.value) {
  const groups = new Map();
  const nodes = [];
  for (const option of options) {
    const plain = typeof option === "string" ? { value: option, text: option } : option;
    const key = typeof option === "string" ? wordsOf(select.name, option) : null;
    const node = el("option", { value: plain.value, i18n: key }, key ? null : plain.text);
    const group = typeof option === "string" ? undefined : option.group;
    if (!group) nodes.push(node);
    else if (groups.has(group)) groups.get(group).append(node);
    else {
      groups.set(group, el("optgroup", { label: null }, node));
      groups.get(group).label = group;
      nodes.push(groups.get(group));
    }
  }
  select.replaceChildren(...nodes);
  select.value = value;
  if (select.selectedIndex < 0) select.selectedIndex = 0;
}

/**
 * The key of a choice's words, or null where it is a name.
 * @param {string} name
 * @param {string} option
 */
function wordsOf(name, option) {
  if (option === "") return `choice.own.${name}` in en ? `choice.own.${name}` : "choice.own";
  return WORDED.has(name) ? `choice.${name}.${option}` : null;
}

/**
 * What a control holds, as a request wants it; null for nothing.
 * @param {Field} field
 * @param {any} input
 * @returns {any}
 */
export function read(field, input) {
  if (field.kind === "switch") return input.checked;
  if (field.kind === "select") return input.value === "" && field.value === "" ? null : input.value;
  const text = field.kind === "area" ? input.value : input.value.trim();
  if (field.kind === "area") return text === "" ? field.value : text;
  if (field.kind === "list") return text === "" ? null : text.split(/[\s,;]+/).filter(Boolean).map(Number);
  if (field.kind === "text") return /^-?\d+$/.test(text) ? (text === "-1" ? null : wholeOf(text)) : text || null;
  if (input.validity?.badInput) return NaN;
  return text === "" ? field.value : Number(text);
}

/**
 * Seeds beyond 2^53 stay text; see api.writeJson.
 * @param {string} text
 */
function wholeOf(text) {
  return Number.isSafeInteger(Number(text)) ? Number(text) : text;
}

/**
 * @param {Field} field
 * @param {any} input
 * @param {any} value
 */
export function write(field, input, value) {
  if (field.kind === "switch") input.checked = Boolean(value);
  else if (field.kind === "list") input.value = Array.isArray(value) ? value.join(", ") : "";
  else if (field.kind === "select") {
    const wanted = value ?? field.value;
    input.value = wanted;
    if (input.selectedIndex < 0) {
      // A name that the lists do not have (yet): it is shown as it is, and the server says what it thinks.
      input.append(el("option", { value: wanted }, String(wanted)));
      input.value = wanted;
    }
  } else if (field.kind === "text" && (value === -1 || value === "-1")) input.value = "";
  else input.value = value ?? field.value ?? "";
  input.dispatchEvent(new Event("shown"));
}

/**
 * Checks what can be told without the server; the words of the first mistake, or null.
 * @param {Field} field
 * @param {any} value as `read` gives it
 */
export function mistake(field, value) {
  if (value === null) return null;
  if (field.kind === "text") return /^-?\d{1,20}$/.test(String(value)) ? null : t("wrong.whole");
  if (field.kind === "list") return value.every(Number.isFinite) ? null : t("wrong.list");
  if (field.kind !== "range" && field.kind !== "number") return null;
  if (!Number.isFinite(value)) return t("wrong.number");
  const { min = -Infinity, max = Infinity } = field;
  return value < min || value > max ? t("wrong.range", { min, max }) : null;
}
