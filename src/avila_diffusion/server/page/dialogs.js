/** The small dialogs: signing in, being asked whether one is sure, the keys; and how all of them close. */

import { ApiError, call, onSignIn } from "./api.js";
import { byId, openDialog } from "./dom.js";

/**
 * Asks a question; resolves to whether it was answered with yes.
 * @param {string} question
 * @param {string} yes words of the button that does it
 * @returns {Promise<boolean>}
 */
export function confirm(question, yes) {
  const dialog = byId("confirm");
  byId("confirm-question").textContent = question;
  byId("confirm-yes").textContent = yes;
  dialog.returnValue = "";
  openDialog(dialog);
  byId("confirm-no").focus();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
  });
}

/** Asks for the server's token until it is right; false where the person gives up. @returns {Promise<boolean>} */
function signIn() {
  const dialog = byId("signin");
  const field = byId("signin-token");
  dialog.returnValue = "";
  openDialog(dialog);
  field.focus();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "in"), { once: true });
  });
}

async function sendToken() {
  const field = byId("signin-token");
  const wrong = byId("signin-error");
  wrong.textContent = "";
  try {
    await call("POST", "/session", { json: { token: field.value } });
    field.value = "";
    byId("signin").close("in");
  } catch (error) {
    wrong.textContent = error instanceof ApiError ? error.message : String(error);
    field.setAttribute("aria-invalid", "true");
    field.select();
  }
}

/** Wires all dialogs of the page. */
export function wireDialogs() {
  onSignIn(signIn);
  byId("signin-form").addEventListener("submit", (/** @type {Event} */ event) => {
    event.preventDefault();
    sendToken();
  });
  byId("confirm-yes").addEventListener("click", () => byId("confirm").close("yes"));
  byId("confirm-no").addEventListener("click", () => byId("confirm").close("no"));
  byId("help-button").addEventListener("click", () => openDialog(byId("help")));
  for (const dialog of document.querySelectorAll("dialog")) {
    for (const button of dialog.querySelectorAll("[data-close]")) button.addEventListener("click", () => dialog.close());
    // A press beside the dialog is on its backdrop, and so on the dialog itself.
    dialog.addEventListener("pointerdown", (event) => {
      const box = dialog.getBoundingClientRect();
      const inside = event.clientX >= box.left && event.clientX <= box.right && event.clientY >= box.top && event.clientY <= box.bottom;
      if (event.target === dialog && !inside && dialog.id !== "signin") dialog.close();
    });
  }
}
