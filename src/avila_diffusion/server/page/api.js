/** The native API of the server: calls, their errors, streams of events, and what happens when the server is away. */

import { t, store, stored } from "./i18n.js";

const BASE = "/api/v1";
const PAUSES = [1, 2, 4, 8, 15];
/** Seconds between two looks for a server that is away. */

/** What the server refused, or why it could not be asked. `status` 0: it did not answer. */
export class ApiError extends Error {
  /** @param {string} message @param {number} status @param {string} kind */
  constructor(message, status, kind) {
    super(message);
    this.status = status;
    this.kind = kind;
    /** @type {string | null} name of the request's field that it is about */
    this.field = null;
  }
}

/** Events "gone" and "back" of the server. */
export const server = new EventTarget();
let away = false;

/** @type {() => Promise<boolean>} set by the page: asks for the token; false where the person gave up. */
let askToken = async () => false;
/** @type {Promise<boolean> | null} */
let asking = null;

/** @param {() => Promise<boolean>} ask */
export function onSignIn(ask) {
  askToken = ask;
}

/** The name of this browser among the server's clients. */
export const client = (() => {
  const known = stored("avila.client");
  if (known && /^[\w.-]{1,64}$/.test(known)) return known;
  const made = `page-${Array.from(crypto.getRandomValues(new Uint8Array(8)), (byte) => byte.toString(16).padStart(2, "0")).join("")}`;
  store("avila.client", made);
  return made;
})();

/**
 * JSON with whole numbers beyond 2^53 as text: seeds go to 2^64, and a rounded seed is another picture.
 * @param {string} text
 * @returns {any}
 */
export function parseJson(text) {
  const keep = (/** @type {string} */ _key, /** @type {any} */ value, /** @type {any} */ context) =>
    typeof value === "number" && Math.abs(value) > Number.MAX_SAFE_INTEGER && /^-?\d+$/.test(context?.source ?? "")
      ? context.source
      : value;
  return JSON.parse(text, keep);
}

/**
 * JSON in which seeds that are text stand as the numbers they are. A quoted name inside a text is escaped, and not met.
 * @param {any} value
 */
export function writeJson(value) {
  return JSON.stringify(value).replace(/"(seed|variation_seed)":"(-?\d{1,20})"/g, '"$1":$2');
}

/**
 * One call. Answers parsed JSON, or the Response with `raw`.
 * @param {string} method
 * @param {string} path below /api/v1
 * @param {{json?: any, bytes?: Blob, raw?: boolean, quiet?: boolean, as?: string | null,
 *   key?: string}} [options] quiet: a server away is
 *   not reported; as: the name of another client whose job it is, null for one without a name; key: of idempotency
 * @returns {Promise<any>}
 */
export async function call(method, path, options = {}) {
  const response = await answered(method, path, options);
  if (response.status === 401 && path !== "/session") {
    asking ??= askToken().finally(() => (asking = null));
    if (await asking) return call(method, path, options);
  }
  if (!response.ok) throw await problemOf(response);
  if (options.raw) return response;
  return response.status === 204 ? null : parseJson((await response.text()) || "null");
}

/**
 * @param {string} method
 * @param {string} path
 * @param {{json?: any, bytes?: Blob, quiet?: boolean, as?: string | null, key?: string}} options
 */
async function answered(method, path, { json, bytes, quiet = false, as = client, key }) {
  /** @type {Record<string, string>} */
  const headers = { Accept: "application/json" };
  if (as !== null) headers["X-Avila-Client"] = as;
  if (key) headers["Idempotency-Key"] = key;
  if (json !== undefined) headers["Content-Type"] = "application/json";
  if (bytes) headers["Content-Type"] = bytes.type || "application/octet-stream";
  try {
    const body = json !== undefined ? writeJson(json) : bytes;
    const response = await fetch(BASE + path, { method, headers, body, credentials: "same-origin" });
    if (away) found();
    return response;
  } catch {
    if (!quiet) gone();
    throw new ApiError(t("error.away"), 0, "Away");
  }
}

/** @param {Response} response */
async function problemOf(response) {
  let told = null;
  try {
    told = (await response.json()).error;
  } catch {
    // Something between us and the server answered in its own way.
  }
  const wait = response.headers.get("retry-after");
  const later = response.status === 429 && wait ? ` ${t("error.later", { n: Math.ceil(Number(wait)) })}` : "";
  const message = (told?.message ?? t("error.status", { status: response.status })) + later;
  return Object.assign(new ApiError(message, response.status, told?.kind ?? "Unknown"), { field: told?.field ?? null });
}

function found() {
  away = false;
  server.dispatchEvent(new Event("back"));
}

/** Says that the server is away, and looks for it until it is back. */
export function gone() {
  if (away) return;
  away = true;
  let tries = 0;
  const look = async () => {
    try {
      await answered("GET", "/server", { quiet: true });
    } catch {
      if (away) wait();
    }
  };
  const wait = () => {
    const seconds = PAUSES[Math.min(tries++, PAUSES.length - 1)];
    server.dispatchEvent(new CustomEvent("gone", { detail: { seconds } }));
    setTimeout(look, seconds * 1000);
  };
  wait();
}

/** Whether the server did not answer when it was last asked. */
export function isAway() {
  return away;
}

/**
 * The address of something that the browser fetches by itself, which cannot send our name in a header.
 * @param {string} url
 */
export function addressed(url) {
  return `${url}${url.includes("?") ? "&" : "?"}client=${encodeURIComponent(client)}`;
}

/**
 * The address of a finished picture.
 * @param {{id: string, results: any[]}} job
 * @param {number} index of the picture in its job
 */
export function pictureUrl(job, index) {
  return addressed(`${BASE}/jobs/${job.id}/images/${index}.png`);
}

/**
 * Listens to a job. The browser takes a broken stream up again by itself, after the last event that it had.
 * @param {string} id
 * @param {(kind: string, data: any) => void} hear
 * @param {() => void} lost the stream ended for good, and not with "end"
 * @returns {() => void} stops listening
 */
export function listen(id, hear, lost) {
  const source = new EventSource(addressed(`${BASE}/jobs/${id}/events`));
  for (const kind of ["state", "progress", "preview", "picture", "note", "end"]) {
    source.addEventListener(kind, (event) => {
      if (kind === "end") source.close();
      hear(kind, parseJson(event.data));
    });
  }
  source.addEventListener("error", () => {
    if (source.readyState === EventSource.CLOSED) lost();
  });
  return () => source.close();
}

/**
 * The bytes of a file as base64.
 * @param {Blob} file
 * @returns {Promise<string>}
 */
export function base64Of(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.addEventListener("load", () => resolve(String(reader.result).replace(/^data:[^,]*,/, "")));
    reader.addEventListener("error", () => reject(new ApiError(t("error.read"), 0, "Read")));
    reader.readAsDataURL(file);
  });
}
