/** The mask of inpainting: painted on the picture, kept as what was done, so that it can be undone and done at any size. */

import { byId, openDialog, announce } from "./dom.js";
import { changed } from "./form.js";
import { t } from "./i18n.js";
import { onPicture, picture } from "./picture.js";

const COLOUR = "#ff5b2e";

/**
 * Something that was done, in pixels of the picture.
 * @typedef {{kind: "stroke", erase: boolean, size: number, points: [number, number][]}
 *   | {kind: "box", erase: boolean, box: [number, number, number, number]}
 *   | {kind: "all"} | {kind: "none"} | {kind: "invert"}} Act
 */

/** @type {Act[]} */
let acts = [];
/** @type {Act[]} */
let undone = [];
let erase = false;
let empty = true;
/** @type {Extract<Act, {kind: "stroke"}> | null} */
let stroke = null;

/** What the form asks of the mask. */
export const mask = {
  /** Whether nothing is painted. */
  get empty() {
    return empty;
  },
  /** The mask as a PNG of the picture's size: white is painted anew. */
  toPng() {
    const canvas = drawn(picture.width, picture.height);
    const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
    fill(context, "source-in", "#fff");
    fill(context, "destination-over", "#000");
    return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
  },
};

/** @param {CanvasRenderingContext2D} context @param {GlobalCompositeOperation} how @param {string} colour */
function fill(context, how, colour) {
  context.globalCompositeOperation = how;
  context.fillStyle = colour;
  context.fillRect(0, 0, context.canvas.width, context.canvas.height);
}

function isEmpty() {
  const last = acts.at(-1);
  if (!picture.file || !last || last.kind === "none") return true;
  const { data } = /** @type {CanvasRenderingContext2D} */ (
    drawn(64, 64).getContext("2d", { willReadFrequently: true })
  ).getImageData(0, 0, 64, 64);
  return !data.some((value, at) => at % 4 === 3 && value > 0);
}

/**
 * The mask as a canvas of this size.
 * @param {number} width
 * @param {number} height
 */
function drawn(width, height) {
  const canvas = document.createElement("canvas");
  Object.assign(canvas, { width: Math.max(width, 1), height: Math.max(height, 1) });
  paint(canvas);
  return canvas;
}

/** @param {HTMLCanvasElement} canvas */
function paint(canvas) {
  const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  context.setTransform(1, 0, 0, 1, 0, 0);
  context.clearRect(0, 0, canvas.width, canvas.height);
  for (const act of acts) perform(context, act);
}

/** @param {CanvasRenderingContext2D} context @param {Act} act */
function perform(context, act) {
  const { width, height } = context.canvas;
  context.setTransform(1, 0, 0, 1, 0, 0);
  if (act.kind === "none") context.clearRect(0, 0, width, height);
  else if (act.kind === "all") fill(context, "source-over", COLOUR);
  else if (act.kind === "invert") fill(context, "source-out", COLOUR);
  else {
    context.setTransform(width / picture.width, 0, 0, height / picture.height, 0, 0);
    context.globalCompositeOperation = act.erase ? "destination-out" : "source-over";
    context.fillStyle = context.strokeStyle = COLOUR;
    if (act.kind === "box") context.fillRect(...act.box);
    else line(context, act);
  }
  context.globalCompositeOperation = "source-over";
}

/** @param {CanvasRenderingContext2D} context @param {Extract<Act, {kind: "stroke"}>} act */
function line(context, { points, size }) {
  Object.assign(context, { lineWidth: size, lineCap: "round", lineJoin: "round" });
  context.beginPath();
  context.moveTo(...points[0]);
  // A point alone is a dot: a line to where it began, which round ends make one.
  for (const point of points.length > 1 ? points.slice(1) : points) context.lineTo(...point);
  context.stroke();
}

/** @param {Act} act @param {string} said key of what those hear who do not see it */
function act(act, said) {
  acts.push(act);
  undone = [];
  refresh();
  announce(t(said));
}

function refresh() {
  empty = isEmpty();
  paint(byId("mask-canvas"));
  const small = byId("mask-small");
  if (picture.file) {
    const scale = Math.min(512 / Math.max(picture.width, picture.height), 1);
    Object.assign(small, { width: Math.round(picture.width * scale), height: Math.round(picture.height * scale) });
    paint(small);
  }
  byId("mask-undo").disabled = !acts.length;
  byId("mask-redo").disabled = !undone.length;
  byId("mask-state").textContent = t(empty ? "mask.empty" : "mask.painted");
  changed();
}

function undo() {
  const last = acts.pop();
  if (last) undone.push(last);
  refresh();
}

function redo() {
  const next = undone.pop();
  if (next) acts.push(next);
  refresh();
}

/** @param {PointerEvent} event @returns {[number, number]} */
function place(event) {
  const box = byId("mask-canvas").getBoundingClientRect();
  const across = ((event.clientX - box.left) * picture.width) / box.width;
  const down = ((event.clientY - box.top) * picture.height) / box.height;
  return [across, down];
}

/** Diameter of the brush in pixels of the picture: the slider goes by hundredths of the shorter side. */
function brush() {
  return Math.max((Number(byId("brush-size").value) / 100) * Math.min(picture.width, picture.height), 1);
}

function wirePainting() {
  const canvas = byId("mask-canvas");
  canvas.addEventListener("pointerdown", (/** @type {PointerEvent} */ event) => {
    if (event.button > 0 && event.button !== 5) return;
    canvas.setPointerCapture(event.pointerId);
    // The eraser end of a pen, and Shift, take away.
    const away = erase !== event.shiftKey || event.button === 5;
    stroke = { kind: "stroke", erase: away, size: brush(), points: [place(event)] };
    acts.push(stroke);
    undone = [];
    paint(canvas);
  });
  canvas.addEventListener("pointermove", (/** @type {PointerEvent} */ event) => {
    cursor(event);
    if (!stroke) return;
    const passed = event.getCoalescedEvents?.() ?? [];
    stroke.points.push(...(passed.length ? passed : [event]).map(place));
    paint(canvas);
  });
  const end = () => {
    if (!stroke) return;
    stroke = null;
    refresh();
  };
  canvas.addEventListener("pointerup", end);
  canvas.addEventListener("pointercancel", end);
  canvas.addEventListener("pointerleave", () => byId("mask-cursor").classList.remove("shown"));
}

/** A ring where the brush is. @param {PointerEvent} event */
function cursor(event) {
  const ring = byId("mask-cursor");
  const box = byId("mask-canvas").getBoundingClientRect();
  const across = (brush() * box.width) / picture.width;
  ring.classList.toggle("shown", event.pointerType !== "touch");
  ring.style.setProperty("--x", `${event.clientX - box.left}px`);
  ring.style.setProperty("--y", `${event.clientY - box.top}px`);
  ring.style.setProperty("--size", `${across}px`);
}

/** @param {boolean} on */
function setErase(on) {
  erase = on;
  byId("mask-brush").setAttribute("aria-pressed", String(!on));
  byId("mask-eraser").setAttribute("aria-pressed", String(on));
}

/** Adds or takes away the rectangle that the numbers give. @param {boolean} away */
function rectangle(away) {
  const [left, upper, width, height] = ["left", "upper", "width", "height"].map((name) => Number(byId(`box-${name}`).value));
  if (!(width > 0 && height > 0)) return announce(t("mask.nobox"));
  return act({ kind: "box", erase: away, box: [left, upper, width, height] }, away ? "mask.boxed.away" : "mask.boxed");
}

/** @param {KeyboardEvent} event */
function keys(event) {
  const typing = /** @type {HTMLElement} */ (event.target).matches("input[type=number]");
  const size = byId("brush-size");
  if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "z") {
    event.preventDefault();
    if (event.shiftKey) redo();
    else undo();
  } else if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
  else if (event.key === "[") size.value = String(Number(size.value) - 2);
  else if (event.key === "]") size.value = String(Number(size.value) + 2);
  else if (event.key === "b") setErase(false);
  else if (event.key === "e") setErase(true);
}

/** Opens the place where the mask is painted. */
export function openMask() {
  const canvas = byId("mask-canvas");
  const scale = Math.min(1536 / Math.max(picture.width, picture.height), 1);
  Object.assign(canvas, { width: Math.round(picture.width * scale), height: Math.round(picture.height * scale) });
  byId("mask-image").src = picture.url;
  byId("mask-stack").style.setProperty("--ratio", String(picture.width / picture.height));
  for (const [name, most] of [["left", picture.width], ["upper", picture.height], ["width", picture.width], ["height", picture.height]]) {
    byId(`box-${name}`).max = String(most);
  }
  byId("box-size").textContent = t("mask.of", { width: picture.width, height: picture.height });
  refresh();
  openDialog(byId("mask"));
  byId("mask-brush").focus();
}

/** Wires the dialog and the preview of the mask. */
export function wireMask() {
  wirePainting();
  /** @type {[string, () => void][]} */
  const presses = [
    ["mask-open", openMask],
    ["mask-undo", undo],
    ["mask-redo", redo],
    ["mask-clear", () => act({ kind: "none" }, "mask.none")],
    ["mask-all", () => act({ kind: "all" }, "mask.all")],
    ["mask-invert", () => act({ kind: "invert" }, "mask.inverted")],
    ["mask-brush", () => setErase(false)],
    ["mask-eraser", () => setErase(true)],
    ["box-add", () => rectangle(false)],
    ["box-take", () => rectangle(true)],
    ["mask-done", () => byId("mask").close()],
  ];
  for (const [id, press] of presses) byId(id).addEventListener("click", press);
  byId("mask").addEventListener("keydown", keys);
  document.addEventListener("language", () => refresh());
  onPicture(() => {
    acts = [];
    undone = [];
    const small = byId("mask-small-image");
    if (picture.url) small.src = picture.url;
    else small.removeAttribute("src");
    refresh();
  });
}
