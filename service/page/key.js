// Asks the person for an API key. Knows nothing of what becomes of it.

import { h } from "./dom.js";
import { t } from "./language.js";

let asking = null;

/** The key that the person gives, or null; `again` if an earlier one was refused. Asks one time for all who wait. */
export function askForKey(again) {
  asking ??= ask(again).finally(() => {
    asking = null;
  });
  return asking;
}

function ask(again) {
  const input = h("input", {
    id: "key",
    type: "password",
    autocomplete: "off",
    required: true,
    "aria-describedby": "key-help",
  });
  const dialog = h(
    "dialog",
    { class: "card", "aria-labelledby": "key-title" },
    h(
      "form",
      { method: "dialog", class: "stack" },
      h("h2", { id: "key-title" }, t("key.title")),
      again && h("p", { class: "problem", role: "alert" }, t("key.again")),
      h("label", { for: "key" }, t("key.label")),
      input,
      h("p", { class: "help", id: "key-help" }, t("key.help")),
      h(
        "div",
        { class: "row end" },
        h("button", { type: "button", class: "quiet", on: { click: () => dialog.close() } }, t("cancel")),
        h("button", { class: "primary", value: "given" }, t("key.use")),
      ),
    ),
  );
  // A form of a dialog is handled without being sent, but the page's policy forbids forms altogether.
  dialog.querySelector("form").addEventListener("submit", (event) => {
    event.preventDefault();
    dialog.close("given");
  });
  document.body.append(dialog);
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(dialog.returnValue === "given" ? input.value.trim() : null);
    });
  });
}
