// Position: what the model is told of one, and two words swapped with what that does to the next token.

import { bars } from "../distribution.js";
import { h, select, shown, spelled } from "../dom.js";
import { t } from "../language.js";
import { Inspector } from "../inspector.js";
import { absent, eventually } from "../states.js";
import { positionPicker } from "./controls.js";
import { encoding } from "./encoding.js";

export async function position(state) {
  const { inspector, base, chosen } = state;
  const told = await inspector.encoding();
  const title = t("position.encoding", { position: chosen.position, token: spelled(base.tokens[chosen.position]) });
  return [h("div", { class: "row controls" }, positionPicker(state, t("position"))), h("h2", {}, title), encoding(told, chosen.position), swap(state)].flat();
}

function swap({ inspector, base, chosen, redraw }) {
  const words = inspector.prompt.split(/(\s+)/);
  const places = words.map((word, place) => [place, word]).filter(([, word]) => word.trim() !== "");
  if (places.length < 2) return absent(t("position.short"));
  chosen.swap ??= [places[Math.min(1, places.length - 2)][0], places[Math.min(4, places.length - 1)][0]];
  const pick = (index) =>
    h(
      "div",
      { class: "field" },
      h("label", { for: `swap-${index}` }, t(`position.word${index + 1}`)),
      select(`swap-${index}`, places, chosen.swap[index], (value) => {
        chosen.swap[index] = Number(value);
        redraw();
      }),
    );
  const swapped = [...words];
  const [a, b] = chosen.swap;
  [swapped[a], swapped[b]] = [swapped[b], swapped[a]];
  const other = swapped.join("");
  return [
    h("h2", {}, t("position.swap")),
    h("div", { class: "row" }, pick(0), pick(1)),
    eventually(async () => {
      const otherInspector = new Inspector(other);
      const last = (await otherInspector.base()).ids.length - 1;
      const [before, after] = await Promise.all([inspector.next(base.ids.length - 1, 8), otherInspector.next(last, 8)]);
      return h("div", { class: "cards two" }, side(inspector.prompt, before), side(other, after));
    }),
  ];
}

function side(prompt, likeliest) {
  const rows = likeliest.map((token) => ({ text: spelled(token), value: Math.exp(token.logprob) }));
  return h("section", { class: "card" }, h("h3", { class: "quoted" }, prompt, " …"), bars(rows, { label: t("position.next", { prompt: shown(prompt) }), full: rows[0].value }));
}
