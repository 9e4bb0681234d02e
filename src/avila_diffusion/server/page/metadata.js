/** A picture that is dropped on the page: what it says of how it was made, and what to do with that. */

import { call } from "./api.js";
import { alertLine, byId, el, openDialog, toast } from "./dom.js";
import { t } from "./i18n.js";
import { dropPicture, usePicture } from "./picture.js";
import { findModel, toForm, useRequest } from "./reuse.js";

const LONG = ["prompt", "negative_prompt"];
/** @type {{file: File, told: any} | null} */
let shown = null;

/** Reads a picture's metadata and shows it. @param {File} file */
export async function readPicture(file) {
  let told;
  try {
    told = await call("POST", "/metadata", { bytes: file });
  } catch (error) {
    alertLine(/** @type {Error} */ (error).message);
    return;
  }
  shown = { file, told };
  show(file, told);
  openDialog(byId("metadata"));
}

/** @param {File} file @param {any} told */
function show(file, told) {
  const { values = {}, program, model, model_hash: hash, notes = [], lost = [] } = told;
  const image = byId("metadata-image");
  if (image.src) URL.revokeObjectURL(image.src);
  image.src = URL.createObjectURL(file);
  image.alt = file.name;
  const has = Object.keys(values).some((name) => values[name] !== "" && name !== "rng");
  byId("metadata-none").hidden = has;
  byId("metadata-use").disabled = !has;
  byId("metadata-program").textContent = has && program ? t("metadata.program", { program }) : "";
  const words = (/** @type {any} */ value) => (Array.isArray(value) ? value.join(", ") : String(value));
  const rows = LONG.filter((name) => values[name]).map((name) => [name, values[name]]);
  const rest = Object.entries(values).filter(([name, value]) => !LONG.includes(name) && value !== null && value !== "");
  const named = model ? [["model", hash ? `${model} [${hash}]` : model]] : [];
  const all = has ? [...rows, ...named, ...rest] : [];
  byId("metadata-values").replaceChildren(...all.flatMap(([name, value]) => [
    el("dt", {}, fieldWords(String(name))), el("dd", { class: LONG.includes(String(name)) ? "long" : "" }, words(value)),
  ]));
  const lines = [...lost.map((/** @type {any} */ line) => t("metadata.lost", { what: words(line) })), ...notes];
  if (model && !findModel(model, hash)) lines.unshift(t("metadata.nomodel", { model }));
  byId("metadata-notes").replaceChildren(...lines.map((line) => el("li", {}, String(line))));
}

/** @param {string} name */
function fieldWords(name) {
  const words = t(`field.${name}`);
  return words.startsWith("field.") ? name.replaceAll("_", " ") : words;
}

/** Wires the dialog, and that pictures may be dropped anywhere. */
export function wireMetadata() {
  byId("metadata-use").addEventListener("click", async () => {
    if (!shown) return;
    const { values, model, model_hash: hash } = shown.told;
    await useRequest(values, { model: findModel(model, hash)?.name });
    dropPicture();
    toForm();
    toast(t("used.settings"));
  });
  byId("metadata-start").addEventListener("click", async () => {
    if (shown && (await usePicture(shown.file))) toForm(byId("f-strength"));
  });
  wireDrops();
  const reader = byId("read-file");
  byId("read-button").addEventListener("click", () => reader.click());
  reader.addEventListener("change", async () => {
    const [file] = reader.files;
    if (file) await readPicture(file);
    reader.value = "";
  });
}

function wireDrops() {
  let depth = 0;
  const files = (/** @type {DragEvent} */ event) => event.dataTransfer?.types.includes("Files");
  const over = (/** @type {boolean} */ on) => document.body.classList.toggle("dragging", on);
  document.addEventListener("dragenter", (event) => files(event) && over(++depth > 0));
  document.addEventListener("dragleave", (event) => files(event) && over(--depth > 0));
  document.addEventListener("dragover", (event) => files(event) && event.preventDefault());
  document.addEventListener("drop", (event) => {
    depth = 0;
    over(false);
    if (!files(event)) return;
    event.preventDefault();
    const file = [...(event.dataTransfer?.files ?? [])].find((one) => one.type.startsWith("image/"));
    if (file) readPicture(file);
    else alertLine(t("error.picture"));
  });
  // A drop that a part of the page took for itself ends the dragging too.
  document.addEventListener("drop", () => ((depth = 0), over(false)), true);
}
