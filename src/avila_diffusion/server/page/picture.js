/** The picture to begin from: chosen, dropped, pasted, or taken from the gallery. */

import { alertLine, byId, toast } from "./dom.js";
import { changed, setValues } from "./form.js";
import { t } from "./i18n.js";
import { known, showPresets } from "./models.js";
import { fitted } from "./sizes.js";

/** file: null where a run begins from noise. mask: of mask.js, told when the picture changes. */
export const picture = {
  file: /** @type {File | Blob | null} */ (null),
  url: "",
  width: 0,
  height: 0,
};
/** @type {(() => void)[]} */
const watchers = [];

/** @param {() => void} tell called whenever the picture is another one */
export function onPicture(tell) {
  watchers.push(tell);
}

/**
 * Takes a picture to begin from. Resolves to whether it was one.
 * @param {File | Blob} file
 * @param {{keep?: boolean}} [options] keep: the size is the picture's own, whatever suits the model
 */
export async function usePicture(file, { keep = false } = {}) {
  const url = URL.createObjectURL(file);
  const image = new Image();
  image.src = url;
  try {
    await image.decode();
  } catch {
    URL.revokeObjectURL(url);
    alertLine(t("error.picture"));
    return false;
  }
  if (picture.url) URL.revokeObjectURL(picture.url);
  Object.assign(picture, { file, url, width: image.naturalWidth, height: image.naturalHeight });
  const { width, height } = picture;
  setValues(fitted(width, height, keep ? Math.sqrt(width * height) : known.own));
  showPresets();
  show();
  byId("fold-image").open = true;
  toast(t("picture.taken"));
  return true;
}

/** Back to pictures from noise. */
export function dropPicture() {
  if (picture.url) URL.revokeObjectURL(picture.url);
  Object.assign(picture, { file: null, url: "", width: 0, height: 0 });
  show();
}

function show() {
  const has = Boolean(picture.file);
  byId("source").hidden = !has;
  byId("drop").hidden = has;
  const thumb = byId("source-image");
  if (has) thumb.src = picture.url;
  else thumb.removeAttribute("src");
  byId("source-line").textContent = has ? `${picture.width} × ${picture.height}` : "";
  for (const tell of watchers) tell();
  changed();
}

/** Wires the place where pictures are dropped. */
export function wirePicture() {
  const chooser = byId("choose");
  chooser.addEventListener("change", async () => {
    const [file] = chooser.files;
    if (file) await usePicture(file);
    chooser.value = "";
  });
  byId("choose-button").addEventListener("click", () => chooser.click());
  byId("choose-other").addEventListener("click", () => chooser.click());
  byId("source-remove").addEventListener("click", () => {
    dropPicture();
    byId("choose-button").focus();
  });
  const fold = byId("fold-image");
  fold.addEventListener("dragover", (/** @type {DragEvent} */ event) => event.preventDefault());
  fold.addEventListener("drop", (/** @type {DragEvent} */ event) => {
    event.preventDefault();
    event.stopPropagation();
    document.body.classList.remove("dragging");
    const file = [...(event.dataTransfer?.files ?? [])].find((one) => one.type.startsWith("image/"));
    if (file) usePicture(file);
    else alertLine(t("error.picture"));
  });
  document.addEventListener("paste", (event) => {
    const file = [...(event.clipboardData?.files ?? [])].find((one) => one.type.startsWith("image/"));
    if (!file) return;
    event.preventDefault();
    usePicture(file);
  });
  show();
}
