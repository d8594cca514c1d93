// Choosing: the same distribution under each way of choosing, redrawn by the server as a slider moves.

import { bars, waterfall } from "../distribution.js";
import { button, h, spelled } from "../dom.js";
import { bits, number, t } from "../language.js";
import { absent, failure, loading } from "../states.js";
import { positionPicker } from "./controls.js";

const SLIDERS = [
  ["temperature", 0.1, 2, 0.05, 2],
  ["top_k", 1, 50, 1, 0],
  ["top_p", 0.05, 1, 0.01, 2],
  ["min_p", 0, 0.5, 0.01, 2],
];
/** Milliseconds for which a slider rests before the server is asked. */
const PAUSE = 60;

export function choosing(state) {
  const { inspector, chosen } = state;
  chosen.sampling ??= { temperature: 1, top_k: 10, top_p: 0.9, min_p: 0.1, seed: 0 };
  const { sampling } = chosen;
  const place = h("div", { class: "cards ways", "aria-live": "off" }, loading());
  const whole = h("div", { class: "stack" });
  let abort = new AbortController();
  let timer = null;

  async function ask() {
    abort.abort();
    abort = new AbortController();
    const names = ways(sampling);
    try {
      const told = await inspector.distributions(chosen.position, Object.values(names), abort.signal);
      if (told === null) {
        place.replaceChildren(absent(t("choosing.missing")));
        return;
      }
      place.replaceChildren(...Object.keys(names).map((name, index) => way(name, told[index])));
      whole.replaceChildren(h("h2", {}, t("waterfall")), h("p", { class: "help" }, t("choosing.all")), waterfall(told.at(-1)));
    } catch (error) {
      if (error.name !== "AbortError") place.replaceChildren(failure(error, ask));
    }
  }

  function later() {
    clearTimeout(timer);
    timer = setTimeout(ask, PAUSE);
  }

  const draw = button(t("choosing.draw"), () => {
    sampling.seed += 1;
    ask();
  }, { class: "primary" });
  ask();
  return [
    h("div", { class: "row controls" }, positionPicker(state, t("softmax.after")), draw),
    h("div", { class: "sliders" }, SLIDERS.map((limits) => slider(limits, sampling, later))),
    h("p", { class: "help" }, t("choosing.mark")),
    place,
    whole,
  ];
}

/** Settings of each way of choosing; the last has all filters one after the other. */
function ways({ temperature, top_k, top_p, min_p, seed }) {
  return {
    greedy: { temperature: 0 },
    temperature: { temperature, seed },
    top_k: { temperature, top_k, seed },
    top_p: { temperature, top_p, seed },
    min_p: { temperature, min_p, seed },
    all: { temperature, top_k, top_p, min_p, seed },
  };
}

function way(name, { stages, candidates, drawn }) {
  const last = stages.at(-1);
  const rows = [...candidates]
    .sort((a, b) => b.probabilities[0] - a.probabilities[0])
    .slice(0, 12)
    .map((token) => ({ text: spelled(token), value: token.probabilities.at(-1), mark: token.id === drawn }));
  const drawnText = candidates.find(({ id }) => id === drawn);
  if (!rows.some(({ mark }) => mark) && drawnText) rows.push({ text: spelled(drawnText), value: drawnText.probabilities.at(-1), mark: true });
  return h(
    "section",
    { class: "card way", "data-way": name },
    h("h2", { class: "small" }, t(`way.${name}`)),
    h("p", { class: "help" }, t("choosing.kept", { count: number(last.kept), entropy: bits(last.entropy) })),
    bars(rows, { label: t(`way.${name}`) }),
  );
}

function slider([name, min, max, step, digits], sampling, moved) {
  const id = `slider-${name}`;
  const output = h("output", { for: id }, number(sampling[name], digits));
  const input = h("input", {
    id,
    type: "range",
    min,
    max,
    step,
    value: sampling[name],
    on: {
      input: ({ target }) => {
        sampling[name] = target.valueAsNumber;
        output.textContent = number(sampling[name], digits);
        moved();
      },
    },
  });
  return h("div", { class: "field" }, h("div", { class: "row between" }, h("label", { for: id }, t(`setting.${name}`)), output), input);
}
