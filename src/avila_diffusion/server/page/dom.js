/** Elements built by calls; text is only ever set as text. */

import { t } from "./i18n.js";

/**
 * An element. Attributes: `class`, `on` ({event: function}), `data` ({name: value}), `i18n` (key of its text), `label` (key of
 * its aria-label and title), `hint` (key of its placeholder); all else is an attribute, or a property where it is no text.
 * @param {string} tag
 * @param {Record<string, any>} [attributes]
 * @param {...(Node | string | null | undefined | false)} children
 * @returns {any}
 */
export function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "class") node.className = value;
    else if (name === "on") for (const [type, handler] of Object.entries(value)) node.addEventListener(type, handler);
    else if (name === "data") Object.assign(node.dataset, value);
    else if (name === "i18n") node.dataset.i18n = value;
    else if (name === "label") node.dataset.i18nLabel = value;
    else if (name === "hint") node.dataset.i18nHint = value;
    else if (value === true) node.setAttribute(name, "");
    else node.setAttribute(name, String(value));
  }
  node.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  translate(node);
  return node;
}

/**
 * One of the drawings in icons.svg; never read out.
 * @param {string} name
 */
export function icon(name) {
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg");
  const use = document.createElementNS(space, "use");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  use.setAttribute("href", `/page/icons.svg#${name}`);
  svg.append(use);
  return svg;
}

/**
 * A button with a drawing. With `text` it shows its words, else they are its label.
 * @param {string} name of the drawing
 * @param {string} key of its words
 * @param {(event: Event) => void} press
 * @param {{text?: boolean, class?: string, [attribute: string]: any}} [options]
 */
export function button(name, key, press, { text = false, class: kind = "", ...rest } = {}) {
  const words = text ? { class: `button ${kind}` } : { class: `button plain ${kind}`, label: key };
  const parts = text ? [icon(name), el("span", { i18n: key })] : [icon(name)];
  return el("button", { type: "button", ...words, on: { click: press }, ...rest }, ...parts);
}

/**
 * Sets the words of everything in `root` that names a key.
 * @param {any} root
 */
export function translate(root) {
  const each = (attribute, set) => {
    if (root.dataset && attribute in root.dataset) set(root, root.dataset[attribute]);
    const selector = `[data-${attribute.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`)}]`;
    for (const node of root.querySelectorAll(selector)) set(node, node.dataset[attribute]);
  };
  each("i18n", (node, key) => (node.textContent = t(key)));
  each("i18nLabel", (node, key) => {
    node.setAttribute("aria-label", t(key));
    if (node.matches("button, a")) node.title = t(key);
  });
  each("i18nHint", (node, key) => node.setAttribute("placeholder", t(key)));
}

/** @param {string} id @returns {any} */
export function byId(id) {
  return document.getElementById(id);
}

/**
 * Moves something that is said across the page to where it is seen and heard: into the dialog on top, else to the page.
 * All that is outside an open dialog lies below it, and is inert.
 * @param {HTMLElement} node
 */
function bring(node) {
  const host = [...document.querySelectorAll("dialog[open]")].at(-1) ?? document.body;
  if (node.parentElement !== host) host.append(node);
}

/**
 * Says something to those who hear the page.
 * @param {string} text
 */
export function announce(text) {
  const node = byId("live");
  bring(node);
  node.textContent = "";
  // A region that was moved just now is heard only when it changes afterwards.
  setTimeout(() => (node.textContent = text), 60);
}

/**
 * One clear line in the alert region, until it is closed or the next thing is tried.
 * @param {string | null} text
 */
export function alertLine(text) {
  const region = byId("alert");
  if (text) bring(region);
  byId("alert-text").textContent = text ?? "";
  region.classList.toggle("shown", Boolean(text));
}

let fading = 0;

/**
 * A few words that go away by themselves, and are read out.
 * @param {string} text
 */
export function toast(text) {
  const node = byId("toast");
  bring(node);
  node.textContent = text;
  node.classList.add("shown");
  clearTimeout(fading);
  fading = setTimeout(() => node.classList.remove("shown"), 3200);
}

/**
 * Opens a dialog; what had the focus gets it back when it closes.
 * @param {any} dialog
 */
export function openDialog(dialog) {
  if (dialog.open) return;
  const before = /** @type {HTMLElement | null} */ (document.activeElement);
  const closed = () => {
    for (const id of ["live", "alert", "toast"]) bring(byId(id));
    if (before?.isConnected) before.focus();
  };
  dialog.addEventListener("close", closed, { once: true });
  dialog.showModal();
}

/**
 * Puts text on the clipboard, also where the page is not in a secure context.
 * @param {string} text
 */
export async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = el("textarea", { class: "off-screen", "aria-hidden": "true" });
    area.value = text;
    (document.querySelector("dialog[open]") ?? document.body).append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
}
