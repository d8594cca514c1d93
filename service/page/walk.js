// The walk: one prompt through the steps of a transformer, each a page of its own.

import { button, h } from "./dom.js";
import { t } from "./language.js";
import { Inspector, MOST_TOKENS } from "./inspector.js";
import { eventually, absent } from "./states.js";
import { attention } from "./steps/attention.js";
import { choosing } from "./steps/choosing.js";
import { embedding } from "./steps/embedding.js";
import { feedforward } from "./steps/feedforward.js";
import { heads } from "./steps/heads.js";
import { lens } from "./steps/lens.js";
import { position } from "./steps/position.js";
import { purpose } from "./steps/purpose.js";
import { scale } from "./steps/scale.js";
import { softmax } from "./steps/softmax.js";
import { tokens } from "./steps/tokens.js";

const STEPS = { purpose, tokens, embedding, position, attention, heads, feedforward, lens, softmax, choosing, scale };
const NAMES = Object.keys(STEPS);
/** Prompts to begin with, by what they are written in. */
const EXAMPLES = {
  english: "The teacher gave the student a book because the",
  korean: "선생님이 학생에게 책을",
  code: "def add(a, b):\n    return a",
};

let inspector = new Inspector(EXAMPLES.english);
/** What the person chose to look at; the steps share it. */
let chosen = {};

/** The part's elements, at the step of this name. */
export function walkPart(name) {
  const step = NAMES.includes(name) ? name : NAMES[0];
  const place = h("div", { class: "figures" });
  show(step, place);
  return [
    contents(step),
    h(
      "article",
      { class: "step" },
      h("p", { class: "count" }, t("step.count", { step: NAMES.indexOf(step) + 1, steps: NAMES.length })),
      h("h1", {}, t(`${step}.title`)),
      h("p", { class: "lead" }, t(`${step}.text`)),
      promptForm(step, place),
      place,
      h("section", { class: "formula card", "aria-label": t("formula") }, h("h2", {}, t("formula")), h("p", { class: "math" }, t(`${step}.formula`)), h("p", { class: "help" }, t(`${step}.symbols`))),
      h("section", { class: "limits" }, h("h2", {}, t("limits")), h("p", {}, t(`${step}.limits`))),
      neighbours(step),
    ),
  ];
}

function contents(step) {
  // On a narrow screen the list is a line to be scrolled, which begins at its first step.
  requestAnimationFrame(() => {
    const nav = document.querySelector(".contents");
    const current = nav?.querySelector("[aria-current]");
    if (current) nav.scrollLeft = current.offsetLeft - nav.offsetLeft - (nav.clientWidth - current.offsetWidth) / 2;
  });
  return h(
    "nav",
    { class: "contents", "aria-label": t("steps") },
    h(
      "ol",
      {},
      NAMES.map((name) => h("li", {}, h("a", { href: `#/walk/${name}`, "aria-current": name === step ? "step" : null }, t(`${name}.title`)))),
    ),
  );
}

function promptForm(step, place) {
  const input = h("textarea", { id: "prompt", rows: 2, "aria-describedby": "prompt-said" }, inspector.prompt);
  const said = h("p", { class: "said", id: "prompt-said", role: "status" });
  function take() {
    said.textContent = input.value.trim() === "" ? t("prompt.empty") : "";
    if (said.textContent || input.value === inspector.prompt) return;
    inspector.close();
    inspector = new Inspector(input.value);
    chosen = {};
    show(step, place);
  }
  input.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    take();
  });
  const example = ([name, prompt]) =>
    button(t(`tokens.${name}`), () => {
      input.value = prompt;
      take();
    });
  return h(
    "div",
    { class: "prompt" },
    h("label", { for: "prompt" }, t("prompt")),
    h("div", { class: "composer" }, input, button(t("look"), take, { class: "primary" })),
    said,
    h("div", { class: "row actions", role: "group", "aria-label": t("examples") }, h("span", { class: "help", "aria-hidden": "true" }, t("examples")), Object.entries(EXAMPLES).map(example)),
  );
}

function show(step, place) {
  // Who chose something by keyboard goes on from there.
  const focused = place.contains(document.activeElement) ? document.activeElement.id : "";
  place.replaceChildren(
    eventually(async () => {
      const base = await inspector.base();
      if (base.tokens.length > MOST_TOKENS) return absent(t("prompt.long", { count: base.tokens.length, most: MOST_TOKENS }));
      chosen.position ??= base.tokens.length - 1;
      chosen.layer ??= Math.floor(base.layers / 2);
      const made = await STEPS[step]({ inspector, base, chosen, redraw: () => show(step, place) });
      if (focused) requestAnimationFrame(() => refocus(focused));
      return made;
    }),
  );
}

/** Focuses what has this id, unless the person went elsewhere meanwhile. */
function refocus(id) {
  if (document.activeElement === document.body) document.getElementById(id)?.focus();
}

function neighbours(step) {
  const at = NAMES.indexOf(step);
  const link = (name, text, side) => name && h("a", { class: side, href: `#/walk/${name}` }, t(text, { title: t(`${name}.title`) }));
  return h("nav", { class: "neighbours", "aria-label": t("neighbours") }, link(NAMES[at - 1], "previous", "left"), link(NAMES[at + 1], "next", "right"));
}
