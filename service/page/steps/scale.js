// Scale: the prompt runs twice, and the page measures what reading in parallel and the KV cache spare.

import { getText, stream } from "../api.js";
import { button, h } from "../dom.js";
import { number, t } from "../language.js";
import { failure, loading } from "../states.js";

const TOKENS = 24;
/** The text is repeated, because the cache keeps whole blocks of tokens alone. */
const TIMES = 8;

export function scale({ inspector }) {
  const place = h("div", { class: "eventually" }, h("p", { class: "state absent" }, t("scale.empty")));
  async function run() {
    start.disabled = true;
    place.replaceChildren(loading());
    try {
      const prompt = Array(TIMES).fill(inspector.prompt).join(" ");
      // With a salt that nobody had, the first run finds nothing.
      const salt = String(Math.random());
      const first = await measure(prompt, salt);
      place.replaceChildren(table([first, await measure(prompt, salt)]));
    } catch (error) {
      place.replaceChildren(failure(error, run));
    }
    start.disabled = false;
  }
  const start = button(t("scale.run"), run, { class: "primary" });
  return [h("h2", {}, t("scale.label")), h("div", { class: "row" }, start), place];
}

/** A completion's times in milliseconds, and its counts. */
async function measure(prompt, salt) {
  const began = performance.now();
  const times = [];
  let usage = null;
  let beside = null;
  const body = { prompt, cache_salt: salt, max_tokens: TOKENS, ignore_eos: true, stream_options: { include_usage: true }, logprobs: 0 };
  for await (const chunk of stream("v1/completions", body)) {
    usage = chunk.usage ?? usage;
    if (chunk.choices.length) times.push(performance.now());
    if (times.length === 4) beside ??= await running();
  }
  return { usage, first: times[0] - began, rest: times.at(-1) - times[0], beside };
}

/** How many completions the engine runs now. */
async function running() {
  const line = (await getText("metrics")).match(/^headlight_num_requests_running\{.*\} (\S+)$/m);
  return line ? Number(line[1]) : null;
}

function table(runs) {
  const rows = [
    ["scale.prompt", ({ usage }) => number(usage.prompt_tokens)],
    ["scale.cached", ({ usage }) => number(usage.prompt_tokens_details?.cached_tokens ?? 0)],
    ["scale.first", ({ first }) => t("milliseconds", { value: number(first) })],
    ["scale.speed", ({ usage, rest }) => t("scale.perSecond", { value: number((1000 * (usage.completion_tokens - 1)) / rest) })],
    ["scale.beside", ({ beside }) => (beside === null ? "–" : number(beside))],
  ];
  return h(
    "table",
    { class: "plain" },
    h("thead", {}, h("tr", {}, h("td", {}), h("th", { scope: "col" }, t("scale.run1")), h("th", { scope: "col" }, t("scale.run2")))),
    h("tbody", {}, rows.map(([name, value]) => h("tr", {}, h("th", { scope: "row" }, t(name)), runs.map((run) => h("td", { class: "amount" }, value(run)))))),
  );
}
