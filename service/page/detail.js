// What there is to know about one token of an answer.

import { isMissing } from "./api.js";
import { bars, waterfall } from "./distribution.js";
import { button, facts, h, hexadecimal, spelled } from "./dom.js";
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
      h("h2", { id: "detail-title" }, t("detail.title"), " ", h("span", { class: "token-text" }, token.name)),
      button("✕", close, { "aria-label": t("close") }),
    ),
    facts([
      [t("probability"), percent(token.probability)],
      [t("entropy"), token.entropyText],
      [t("bytes"), hexadecimal(token.bytes)],
    ]),
    h("h3", {}, t("alternatives")),
    h("p", { class: "help" }, t("alternatives.help")),
    alternatives(token),
    h("h3", {}, t("waterfall")),
    token.distribution
      ? [h("p", { class: "help" }, t("waterfall.help")), waterfall(token.distribution, { before: token.before })]
      : absent(t(isMissing(CHAT, "inspect") ? "waterfall.missing" : "waterfall.none")),
  );
  return place;
}

function alternatives(token) {
  const isChosen = ({ bytes }) => String(bytes) === String(token.bytes);
  const row = (entry) => ({ text: spelled({ ...entry, text: entry.token, before: token.before }), value: Math.exp(entry.logprob), mark: isChosen(entry) });
  const known = token.alternatives.map(row);
  if (!token.alternatives.some(isChosen)) known.push(row(token.entry));
  const rest = 1 - known.reduce((sum, { value }) => sum + value, 0);
  if (rest > 0) known.push({ text: t("others"), value: rest, rest: true });
  return bars(known, { label: t("alternatives"), full: Math.max(...known.map(({ value }) => value)) });
}
