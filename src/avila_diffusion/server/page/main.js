/** The page: builds its parts, wires them, and begins. */

import { ApiError, call, server } from "./api.js";
import { wireDialogs } from "./dialogs.js";
import { alertLine, announce, byId, icon, toast, translate } from "./dom.js";
import { body, buildForm, check, input, reset, saveNow, setValues, showProblem, value } from "./form.js";
import { wireGallery } from "./gallery.js";
import { language, setLanguage, store, t } from "./i18n.js";
import { changes, endedJobs, isOurs, startJobs, submit } from "./jobs.js";
import { mask, wireMask } from "./mask.js";
import { wireMetadata } from "./metadata.js";
import { loadLists, showPresets, wireModels } from "./models.js";
import { picture, wirePicture } from "./picture.js";
import { wireQueue } from "./queue.js";
import { showStage, wireStage } from "./stage.js";
import { wireViewer } from "./viewer.js";

const THEMES = ["auto", "light", "dark"];
let sending = false;

/** Sends what the form holds. */
async function generate() {
  if (sending || !check()) return;
  sending = true;
  alertLine(null);
  byId("generate").setAttribute("aria-busy", "true");
  try {
    await submit(await body());
    announce(t("said.queued"));
    if (narrow.matches) byId("stage").scrollIntoView({ behavior: "smooth", block: "start" });
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    showProblem(error);
  } finally {
    sending = false;
    byId("generate").removeAttribute("aria-busy");
  }
}

/** The seed that was drawn or used last: of our newest job with a picture. */
function lastSeed() {
  const job = endedJobs().find((one) => isOurs(one) && one.results.length) ?? endedJobs().find((one) => one.results.length);
  if (!job) return toast(t("seed.none"));
  setValues({ seed: job.results[0].seed });
  return undefined;
}

/** @param {string} theme */
function setTheme(theme) {
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  store("avila.theme", theme);
  const button = byId("theme");
  button.replaceChildren(icon(theme));
  button.dataset.theme = theme;
  button.dataset.i18nLabel = `theme.${theme}`;
  translate(button);
}

function wireHead() {
  const theme = byId("theme");
  setTheme(document.documentElement.dataset.theme ?? "auto");
  theme.addEventListener("click", () => {
    setTheme(THEMES[(THEMES.indexOf(theme.dataset.theme) + 1) % THEMES.length]);
    announce(theme.title);
  });
  const languages = byId("language");
  languages.value = language();
  languages.addEventListener("change", () => setLanguage(languages.value));
  document.addEventListener("language", () => {
    translate(document.body);
    showPresets();
    loadLists().catch(() => undefined); // the words of the models inside; the banner says where the server is away
  });
}

function wireServer() {
  const banner = byId("gone");
  server.addEventListener("gone", (event) => {
    banner.classList.add("shown");
    byId("gone-text").textContent = t("gone", { n: /** @type {CustomEvent} */ (event).detail.seconds });
  });
  server.addEventListener("back", () => {
    banner.classList.remove("shown");
    toast(t("back"));
    begin();
  });
  changes.addEventListener("ended", (event) => {
    const job = /** @type {CustomEvent} */ (event).detail;
    if (job.state === "failed" && isOurs(job)) {
      const { problem } = job;
      if (problem?.asked) showProblem({ message: problem.message, status: 422 });
      else alertLine(t("failed", { message: problem?.message ?? "" }));
    }
  });
}

function wireForm() {
  byId("form").addEventListener("submit", (/** @type {Event} */ event) => {
    event.preventDefault();
    generate();
  });
  document.addEventListener("keydown", (event) => {
    if (!(event.ctrlKey || event.metaKey) || event.key !== "Enter" || document.querySelector("dialog[open]")) return;
    event.preventDefault();
    generate();
  });
  // Enter in a field of the form would send it; only the button and Ctrl+Enter do.
  byId("form").addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
    const target = /** @type {HTMLElement} */ (event.target);
    if (event.key === "Enter" && !event.ctrlKey && !event.metaKey && target.matches("input:not([type=checkbox])")) event.preventDefault();
  });
  byId("seed-random").addEventListener("click", () => setValues({ seed: null }));
  byId("seed-last").addEventListener("click", lastSeed);
  byId("reset").addEventListener("click", () => {
    reset(["prompt", "negative_prompt", "model", "width", "height"]);
    toast(t("reset.done"));
  });
  byId("alert-close").addEventListener("click", () => alertLine(null));
  for (const press of document.querySelectorAll("[data-example]")) {
    press.addEventListener("click", () => {
      setValues({ prompt: press.textContent ?? "" });
      input("prompt").focus();
    });
  }
  window.addEventListener("pagehide", saveNow);
}

const narrow = window.matchMedia("(max-width: 859px)");

function wireWidth() {
  const fit = () => (byId("settings").open = !narrow.matches);
  narrow.addEventListener("change", fit);
  fit();
}

/** Asks the server for all that is to be shown. */
async function begin() {
  try {
    await loadLists();
    await startJobs();
    const { version } = await call("GET", "/server");
    byId("version").textContent = version ? `avila_diffusion ${version}` : "";
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    if (error.status) alertLine(error.message);
  }
}

translate(document.body);
wireDialogs();
buildForm({ picture, mask });
wireHead();
wireWidth();
wireServer();
wireForm();
wireModels();
wirePicture();
wireMask();
wireQueue();
wireStage();
wireGallery();
wireViewer();
wireMetadata();
showStage();
if (!value("prompt") && !narrow.matches) input("prompt").focus();
begin();
