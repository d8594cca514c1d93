// What stands where there is nothing to show yet: loading, an error, or a part that this server lacks.

import { ApiError } from "./api.js";
import { button, h } from "./dom.js";
import { t } from "./language.js";
import { untilLoaded } from "./ready.js";

/** A line that says that something is on its way. */
export function loading() {
  return onItsWay("loading");
}

/** What went wrong, in plain words and in the server's own, and a way to try again.
 *
 * While the model is loading, nothing is wrong: that is said, and it is tried again by itself.
 */
export function failure(error, retry) {
  if (error.code === "model_loading" && retry) return awaited(retry);
  return h(
    "div",
    { class: "state problem", role: "alert" },
    h("p", {}, h("strong", {}, t(kind(error)))),
    error instanceof ApiError && h("p", {}, error.message),
    retry && button(t("again"), retry),
  );
}

function awaited(retry) {
  const place = onItsWay("waiting");
  untilLoaded().then(() => {
    // Who has gone elsewhere meanwhile waits no more.
    if (place.isConnected) retry();
  });
  return place;
}

function onItsWay(words) {
  return h("p", { class: "state loading", role: "status" }, h("span", { class: "spinner" }), t(words));
}

/** A line that says why a part is not there. */
export function absent(text) {
  return h("p", { class: "state absent" }, text);
}

/** An element that is filled when `make` has made its content; meanwhile and on failure it says so. */
export function eventually(make) {
  const place = h("div", { class: "eventually" });
  async function fill() {
    place.replaceChildren(loading());
    try {
      place.replaceChildren(...[await make()].flat());
    } catch (error) {
      if (error.name === "AbortError") return;
      if (!(error instanceof ApiError)) console.error(error);
      place.replaceChildren(failure(error, fill));
    }
  }
  fill();
  return place;
}

function kind(error) {
  if (error instanceof ApiError) {
    if (error.status === 401) return "error.key";
    if (error.status === 429) return "error.busy";
    if (error.status === 503) return "error.unready";
    return "error.refused";
  }
  return error instanceof TypeError && error.message.includes("fetch") ? "error.network" : "error.page";
}
