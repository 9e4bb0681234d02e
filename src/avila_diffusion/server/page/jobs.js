/** The jobs of the server as this page knows them: looked at now and then, and listened to where something moves. */

import { ApiError, addressed, call, client, isAway, listen, server } from "./api.js";

const STREAMS = 2;
/** Event streams at once: a browser opens six connections to a server, and pictures need some too. */
const PAGE = 40;
export const ENDED = ["done", "failed", "cancelled"];

/** Events: "live" (who waits or runs), "progress" (detail: a job), "ended" (detail: a job), "gallery". */
export const changes = new EventTarget();

/** @type {Map<string, any>} jobs that are not ended, in the order they will be served */
let live = new Map();
/** @type {Map<string, any>} ended jobs by id */
const ended = new Map();
/** @type {Map<string, () => void>} */
const streams = new Map();
let oldest = Infinity;
let more = true;
let timer = 0;
let started = false;
let looked = false;
let everybody = true;
/** Whether this server shows the jobs of everybody, as one person's does. */
let unsure = /** @type {{text: string, key: string} | null} */ (null);
/** What was sent when the server did not answer, and its idempotency key: sent again, it is the same job. */

/** Jobs that wait or run, in the order they will be served. */
export function liveJobs() {
  return [...live.values()];
}

/** Ended jobs, newest first. */
export function endedJobs() {
  return [...ended.values()].sort((one, other) => other.number - one.number);
}

/** Whether the server has older jobs than those that are here. */
export function hasMore() {
  return more;
}

/** A job by its id, as it is known. @param {string} id */
export function jobOf(id) {
  return live.get(id) ?? ended.get(id);
}

/** Whether a job was made on this page. @param {any} job */
export function isOurs(job) {
  return String(job.client).split("/").at(-1) === client;
}

/** @param {string} name @param {any} [job] */
function tell(name, job) {
  changes.dispatchEvent(new CustomEvent(name, { detail: job }));
}

/** Looks at the server once and then goes on to. */
export async function startJobs() {
  clearTimeout(timer);
  if (!started) {
    started = true;
    server.addEventListener("back", () => startJobs());
    document.addEventListener("visibilitychange", () => (document.hidden ? silence() : startJobs()));
    window.addEventListener("pagehide", silence);
  }
  try {
    await look();
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
  } finally {
    const seconds = document.hidden ? 20 : live.size ? 1.5 : 5;
    clearTimeout(timer);
    timer = setTimeout(startJobs, seconds * 1000);
  }
}

/** @param {string} more parameters @returns {Promise<{jobs: any[]}>} */
async function list(more) {
  try {
    return await call("GET", `/jobs?limit=${PAGE}${everybody ? "&all=true" : ""}${more}`);
  } catch (error) {
    if (!(everybody && error instanceof ApiError && error.status === 403)) throw error;
    everybody = false;
    return list(more);
  }
}

async function look() {
  if (isAway()) return;
  const before = new Set(live.keys());
  const [queue, recent] = await Promise.all([
    call("GET", "/queue"),
    list(""),
  ]);
  const first = !looked;
  looked = true;
  if (first) more = recent.jobs.length === PAGE;
  for (const job of recent.jobs) {
    oldest = first ? Math.min(oldest, job.number) : oldest;
    if (ENDED.includes(job.state)) end(job, first);
  }
  // Of others' jobs a shared server tells no more than that they are there.
  const now = queue.jobs.filter((/** @type {any} */ job) => job.id && !ended.has(job.id));
  const missing = liveJobs().filter(({ id }) => !now.some((/** @type {any} */ job) => job.id === id) && !ended.has(id));
  // What was made while the answer was on its way cannot be in it.
  const newer = missing.filter(({ id }) => !before.has(id));
  const gone = missing.filter(({ id }) => before.has(id)).map(({ id }) => id);
  live = new Map([...now, ...newer].map((/** @type {any} */ job) => [job.id, kept(job)]));
  tell("live");
  tell("gallery");
  await Promise.all(gone.map(finish));
  attend();
}

/** What events told of a job and no list does. @param {any} job */
function kept(job) {
  const before = live.get(job.id);
  const shown = before?.picture && (streams.has(job.id) || !job.preview);
  const picture = shown ? before.picture : job.preview ? addressed(job.preview.url) : undefined;
  const progress = before && before.progress.fraction > job.progress.fraction ? before.progress : job.progress;
  return { ...job, progress, picture };
}

/** Opens the streams that are worth having, and closes the others. */
function attend() {
  const rank = (/** @type {any} */ job) => (job.state === "running" ? 0 : 2) + (isOurs(job) ? 0 : 1);
  const wanted = document.hidden ? [] : liveJobs().sort((one, other) => rank(one) - rank(other)).slice(0, STREAMS);
  for (const [id, close] of streams) {
    if (wanted.some((job) => job.id === id)) continue;
    close();
    streams.delete(id);
  }
  for (const { id } of wanted) {
    if (streams.has(id)) continue;
    const lost = () => {
      streams.delete(id);
      startJobs();
    };
    streams.set(id, listen(id, (kind, data) => hear(id, kind, data), lost));
  }
}

function silence() {
  for (const close of streams.values()) close();
  streams.clear();
}

/** @param {string} id @param {string} kind @param {any} data */
function hear(id, kind, data) {
  const job = live.get(id);
  if (kind === "end") {
    streams.delete(id);
    finish(id);
    return;
  }
  if (!job) return;
  if (kind === "progress") Object.assign(job.progress, data);
  else if (kind === "preview") job.picture = `data:${data.media_type};base64,${data.data}`;
  else if (kind === "state") {
    const other = job.state !== data.state || job.position !== data.position;
    Object.assign(job, data);
    if (other) tell("live");
  } else if (kind === "picture" && !job.results.some((/** @type {any} */ one) => one.index === data.index)) {
    job.results.push(data);
    tell("gallery");
  } else if (kind === "note") job.notes = [...job.notes, data.text ?? data];
  tell("progress", job);
}

/** Asks how a job ended. @param {string} id */
async function finish(id) {
  try {
    const job = await call("GET", `/jobs/${id}`);
    if (ENDED.includes(job.state)) {
      live.delete(id);
      end(job, false);
      tell("live");
      tell("gallery");
      attend();
    }
  } catch (error) {
    if (error instanceof ApiError && error.status === 404) live.delete(id);
  }
}

/** @param {any} job @param {boolean} silent it ended before this page was opened */
function end(job, silent) {
  const news = !ended.has(job.id);
  if (news) ended.set(job.id, job);
  if (news && !silent) tell("ended", job);
}

/** Older jobs. */
export async function loadMore() {
  if (!more || oldest === Infinity) return;
  const { jobs } = await list(`&before=${oldest}`);
  more = jobs.length === PAGE;
  for (const job of jobs) {
    oldest = Math.min(oldest, job.number);
    if (ENDED.includes(job.state)) end(job, true);
  }
  tell("gallery");
}

/**
 * Makes a job.
 * @param {any} body
 */
export async function submit(body) {
  const text = JSON.stringify(body);
  if (unsure?.text !== text) unsure = { text, key: crypto.getRandomValues(new Uint32Array(4)).join("-") };
  let job;
  try {
    job = await call("POST", "/jobs", { json: body, key: unsure.key });
    unsure = null;
  } catch (error) {
    if (!(error instanceof ApiError && error.status === 0)) unsure = null;
    throw error;
  }
  if (ENDED.includes(job.state)) end(job, false);
  else live.set(job.id, job);
  tell("live");
  attend();
  startJobs();
  return job;
}

/** The name under which the server lets a job be changed. @param {any} job */
function owner(job) {
  return String(job.client).includes("/") ? String(job.client).split("/").at(-1) : null;
}

/**
 * @param {any} job
 * @param {"cancel" | "interrupt" | "skip" | "pause" | "resume"} what
 */
export async function control(job, what) {
  await call("POST", `/jobs/${job.id}/${what}`, { json: {}, as: owner(job) });
  await startJobs();
}

/** Deletes an ended job and its pictures. @param {any} job */
export async function remove(job) {
  await call("DELETE", `/jobs/${job.id}`, { as: owner(job) });
  ended.delete(job.id);
  tell("gallery");
}
