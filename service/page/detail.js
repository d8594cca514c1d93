// What there is to know about one token of an answer.

import { isMissing } from "./api.js";
import { bars, waterfall } from "./distribution.js";
import { button, h, shown } from "./dom.js";
import { percent, t } from "./language.js";
import { absent } from "./states.js";

const CHAT = "v1/chat/completions";

/** The panel; `close` is called when the person is done with it. */
export function detail(token, close) {
  const place = h(
    "section",
    {
      class: "detail card",
      "aria-labelledby": "detail-title",
      tabindex: "-1",
      on: { keydown: (event) => event.key === "Escape" && close() },
    },
    h(
      "div",
      { class: "row between" },
      h("h2", { id: "detail-title" }, t("detail.title"), " ", h("span", { class: "token-text" }, shown(token.spelling))),
      button("✕", close, { "aria-label": t("close") }),
    ),
    h(
      "dl",
      { class: "facts" },
      fact(t("probability"), percent(token.probability)),
      fact(t("entropy"), token.entropyText),
      fact(t("bytes"), token.bytes.map((byte) => byte.toString(16).padStart(2, "0")).join(" ")),
    ),
    h("h3", {}, t("alternatives")),
    h("p", { class: "help" }, t("alternatives.help")),
    alternatives(token),
    h("h3", {}, t("waterfall")),
    token.distribution
      ? [h("p", { class: "help" }, t("waterfall.help")), waterfall(token.distribution)]
      : absent(t(isMissing(CHAT, "inspect") ? "waterfall.missing" : "waterfall.none")),
  );
  return place;
}

function alternatives(token) {
  const known = token.alternatives.map(({ token: text, logprob }) => ({
    text,
    value: Math.exp(logprob),
    mark: text === token.spelling,
  }));
  if (!known.some(({ mark }) => mark)) known.push({ text: token.spelling, value: token.probability, mark: true });
  const rest = 1 - known.reduce((sum, { value }) => sum + value, 0);
  if (rest > 0) known.push({ text: t("others"), value: rest, rest: true });
  return bars(known, { label: t("alternatives"), full: Math.max(...known.map(({ value }) => value)) });
}

function fact(name, value) {
  return h("div", {}, h("dt", {}, name), h("dd", {}, value));
}
