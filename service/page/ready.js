// Waits for a model that the server is still loading.

import { get } from "./api.js";

/** Milliseconds between questions. */
const PERIOD = 2000;

let coming = null;

/** Resolves once the model is no longer loading, whatever comes of it.
 *
 * All who wait share one question a period. A hidden page asks nothing, and goes on when it is seen again.
 */
export function untilLoaded() {
  coming ??= askAgain().finally(() => {
    coming = null;
  });
  return coming;
}

async function askAgain() {
  do {
    await new Promise((resolve) => setTimeout(resolve, PERIOD));
    await seen();
  } while (await isLoading());
}

/** Whether the server says so; one that says nothing is left to those who wait, who tell of it. */
async function isLoading() {
  try {
    return (await get("health")).status === "loading";
  } catch {
    return false;
  }
}

function seen() {
  return new Promise((resolve) => {
    if (document.hidden) document.addEventListener("visibilitychange", () => resolve(), { once: true });
    else resolve();
  });
}
