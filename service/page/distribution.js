// A next token's distribution: bars of candidates, and the stages that it goes through before the draw.

import { h, spelled } from "./dom.js";
import { bits, number, percent, t } from "./language.js";

/** Bars of `rows` ({ text, as it is shown, value, mark, note; `plain` if the text is no token }); `value`, by default a share of 1, is drawn against `full`. */
export function bars(rows, { label, full = 1, write = share }) {
  return h(
    "ul",
    { class: "bars", "aria-label": label },
    rows.map(({ text, value, mark, note, rest, plain }) =>
      h(
        "li",
        { class: [mark && "marked", rest && "rest"].filter(Boolean).join(" ") || null, "data-value": value },
        h("span", { class: rest || plain ? "name" : "name token-text" }, text),
        h("span", { class: "track", "aria-hidden": "true" }, h("span", { style: { "--share": value / full } })),
        h("span", { class: "amount" }, write(value), note !== undefined && h("span", { class: "note" }, note)),
      ),
    ),
  );
}

function share(value) {
  return value > 0 ? percent(value) : "–";
}

/** The table of stages of a distribution as /v1/inspect answers it: its candidates down, its stages across.
 *
 * `before` are the bytes of a character that the text before it has begun.
 */
export function waterfall(distribution, { label = t("waterfall"), before = [] } = {}) {
  const { stages, candidates, drawn } = distribution;
  const stageName = ({ name }) => h("th", { scope: "col" }, t(`stage.${name}`));
  const summary = (title, value) =>
    h("tr", { class: "summary" }, h("th", { scope: "row" }, title), stages.map((stage) => h("td", {}, value(stage))));
  return h(
    "div",
    { class: "scroll", tabindex: "0", role: "region", "aria-label": label },
    h(
      "table",
      { class: "waterfall" },
      h("caption", { class: "unseen" }, t("waterfall.caption")),
      h("thead", {}, h("tr", {}, h("th", { scope: "col" }, t("token")), stages.map(stageName))),
      h(
        "tbody",
        {},
        summary(t("stage.kept"), ({ kept }) => number(kept)),
        summary(t("stage.mass"), ({ mass }) => percent(mass)),
        summary(t("stage.entropy"), ({ entropy }) => bits(entropy)),
        candidates.map(({ id, text, bytes, probabilities }) =>
          h(
            "tr",
            { class: id === drawn ? "marked" : null },
            h("th", { scope: "row", class: "token-text" }, spelled({ text, bytes, before }), id === drawn && h("span", { class: "badge" }, t("drawn"))),
            probabilities.map((probability) =>
              h(
                "td",
                { class: probability > 0 ? "share" : "share gone", style: { "--share": probability }, "data-value": probability },
                probability > 0 ? percent(probability) : "–",
              ),
            ),
          ),
        ),
      ),
    ),
  );
}

/** Nats of the distribution whose likeliest tokens have these log-probabilities: at least so many, the rest unknown. */
export function leastEntropy(logprobs) {
  const known = logprobs.map(Math.exp);
  const rest = 1 - known.reduce((sum, probability) => sum + probability, 0);
  const term = (probability) => (probability > 1e-9 ? -probability * Math.log(probability) : 0);
  return [...known, rest].reduce((sum, probability) => sum + term(probability), 0);
}
