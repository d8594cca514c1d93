// Feed-forward and residual stream: what attention and the network add in each layer.

import { h, spelled } from "../dom.js";
import { number, t } from "../language.js";
import { positionPicker } from "./controls.js";
import { parameters } from "./parameters.js";

export async function feedforward(state) {
  const { size } = await state.inspector.model();
  return [parameters(size, ["feed_forward"]), ...residual(state)];
}

/** The norms at the chosen position, layer by layer. */
export function residual(state) {
  const { base, chosen } = state;
  const place = base.positions.indexOf(chosen.position);
  const added = base.residual.added.data.map((row) => row[place]);
  const stream = base.residual.stream.data.map((row) => row[place]);
  const most = Math.max(...added);
  const bar = (kind, value) =>
    h("td", { class: `bar ${kind}`, "data-value": value }, h("span", { class: "track", "aria-hidden": "true" }, h("span", { style: { "--share": value / most } })), h("span", { class: "amount" }, number(value, 1)));
  const title = t("feedforward.label", { token: spelled(base.tokens[chosen.position]) });
  return [
    h("div", { class: "row controls" }, positionPicker(state, t("position"))),
    h("h2", {}, title),
    h(
      "div",
      { class: "scroll", tabindex: "0", role: "region", "aria-label": title },
      h(
        "table",
        { class: "plain layers" },
        h("thead", {}, h("tr", {}, ["layer", "feedforward.attention", "feedforward.mlp", "feedforward.stream"].map((name) => h("th", { scope: "col" }, t(name))))),
        h(
          "tbody",
          {},
          Array.from({ length: base.layers }, (_, layer) =>
            h("tr", {}, h("th", { scope: "row" }, layer), bar("first", added[2 * layer]), bar("second", added[2 * layer + 1]), h("td", { class: "amount" }, number(stream[2 * layer + 2], 1))),
          ),
        ),
      ),
    ),
    h("p", { class: "help" }, t("feedforward.unit")),
  ];
}
