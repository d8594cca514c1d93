// The chat: a conversation that streams, and can be stopped, edited and retried. It lives as long as the page.

import { stream } from "./api.js";
import { Token, TokenRow } from "./answer.js";
import { detail } from "./detail.js";
import { begun, button, h } from "./dom.js";
import { t } from "./language.js";
import { sampling, samplingForm, systemMessage } from "./sampling.js";
import { failure, loading } from "./states.js";

const PATH = "v1/chat/completions";
const ALTERNATIVES = 10;

/** Turns: { role: "user", text } or { role: "assistant", text, tokens, finish, error, view }. */
const turns = [];
let running = null;
let editing = null;
let draft = "";
let view = null;

/** The part's elements. */
export function chatPart() {
  const list = h("div", { class: "turns", role: "log", "aria-label": t("conversation"), "aria-live": "off" });
  view = { list, side: h("div", { class: "about" }), composer: h("div", {}), said: h("p", { class: "unseen", role: "status" }) };
  renderTurns();
  renderComposer();
  return [
    h("h1", { class: "unseen" }, t("part.chat")),
    h("div", { class: "conversation" }, legend(), list, view.said, view.composer),
    h(
      "aside",
      { class: "side", "aria-label": t("settings") },
      view.side,
      h("details", { class: "card settings", open: innerWidth > 900 }, h("summary", {}, t("settings")), samplingForm()),
    ),
  ];
}

function legend() {
  return h(
    "p",
    { class: "legend" },
    h("span", {}, t("legend.entropy")),
    h("span", { class: "ends" }, t("legend.sure"), h("span", { class: "ramp unsure", "aria-hidden": "true" }), t("legend.unsure")),
  );
}

function renderTurns() {
  if (turns.length === 0) {
    const tries = ["chat.try1", "chat.try2", "chat.try3"].map((name) => button(t(name), () => send(t(name))));
    view.list.replaceChildren(
      h("div", { class: "empty" }, h("h2", {}, t("chat.empty")), h("p", {}, t("chat.empty.help")), h("div", { class: "row" }, tries), h("a", { href: "#/walk" }, t("chat.walk"))),
    );
    return;
  }
  view.list.replaceChildren(...turns.map((turn, index) => (turn.role === "user" ? question(turn, index) : reply(turn, index))));
}

function question(turn, index) {
  if (editing === index) return editor(turn, index);
  return h(
    "article",
    { class: "turn user", "aria-label": t("you") },
    h("p", { class: "text" }, turn.text),
    running ? null : h("div", { class: "row actions" }, button(t("edit"), () => edit(index))),
  );
}

function editor(turn, index) {
  const input = h("textarea", { id: "edited", rows: 3 }, turn.text);
  return h(
    "article",
    { class: "turn user editing", "aria-label": t("you") },
    h("label", { class: "unseen", for: "edited" }, t("edit")),
    input,
    h(
      "div",
      { class: "row actions" },
      button(t("cancel"), () => edit(null)),
      button(t("send"), () => resend(index, input.value), { class: "primary" }),
    ),
  );
}

function reply(turn, index) {
  turn.view = new TokenRow(openToken);
  for (const token of turn.tokens) turn.view.push(token);
  const waits = running?.turn === turn && turn.tokens.length === 0;
  const last = index === turns.length - 1;
  return h(
    "article",
    { class: "turn assistant", "aria-label": t("answer") },
    h("p", { class: "unseen text" }, turn.text),
    waits ? loading() : null,
    turn.tokens.length || running?.turn === turn ? turn.view.element : null,
    turn.stopped && h("p", { class: "help" }, t("stopped")),
    turn.finish === "length" && h("p", { class: "help" }, t("cut")),
    turn.error && failure(turn.error, last && !running ? () => retry(index) : null),
    last && !running && !turn.error ? h("div", { class: "row actions" }, button(t("retry"), () => retry(index))) : null,
  );
}

function renderComposer() {
  const input = h(
    "textarea",
    {
      id: "message",
      rows: 2,
      placeholder: t("message.placeholder"),
      on: {
        input: ({ target }) => {
          draft = target.value;
        },
        keydown: (event) => {
          // While a Korean syllable is being composed, Enter ends the syllable.
          if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
          event.preventDefault();
          if (!running) send(draft);
        },
      },
    },
    draft,
  );
  view.composer.replaceChildren(
    h(
      "div",
      { class: "composer" },
      h("label", { class: "unseen", for: "message" }, t("message")),
      input,
      running
        ? button(t("stop"), stop, { id: "stop" })
        : button(t("send"), () => send(draft), { class: "primary", id: "send" }),
    ),
    h("p", { class: "help" }, t("message.help")),
  );
}

function edit(index) {
  editing = index;
  renderTurns();
  document.getElementById(index === null ? "message" : "edited")?.focus();
}

function resend(index, text) {
  editing = null;
  turns.length = index;
  send(text);
}

function retry(index) {
  turns.length = index;
  answer();
}

function send(text) {
  if (text.trim() === "") return;
  editing = null;
  draft = "";
  turns.push({ role: "user", text });
  answer();
}

function stop() {
  running?.abort.abort();
}

function body() {
  const system = systemMessage() ? [{ role: "system", content: systemMessage() }] : [];
  return {
    messages: [...system, ...turns.map(({ role, text }) => ({ role, content: text }))],
    logprobs: true,
    top_logprobs: ALTERNATIVES,
    inspect: { distribution: ALTERNATIVES },
    ...sampling(),
  };
}

/** Streams the answer to the turns so far. */
async function answer() {
  const asked = body();
  const turn = { role: "assistant", text: "", tokens: [], finish: null, error: null, stopped: false };
  const abort = new AbortController();
  turns.push(turn);
  running = { turn, abort };
  closeToken();
  renderTurns();
  renderComposer();
  document.getElementById("message").focus();
  toEnd();
  const decoder = new TextDecoder();
  try {
    for await (const { choices } of stream(PATH, asked, { signal: abort.signal, optional: ["inspect"] })) {
      for (const choice of choices) take(turn, choice, decoder);
    }
  } catch (error) {
    if (error.name === "AbortError") turn.stopped = true;
    else turn.error = error;
  }
  running = null;
  const inComposer = view.composer.contains(document.activeElement);
  renderTurns();
  renderComposer();
  if (inComposer) {
    document.getElementById("message").focus();
    toEnd();
  }
  view.said.textContent = turn.text;
}

function toEnd() {
  scrollTo(0, document.documentElement.scrollHeight);
}

function take(turn, choice, decoder) {
  // Who has scrolled up to read is left there.
  const near = scrollY + innerHeight > document.documentElement.scrollHeight - 120;
  turn.text += choice.delta.content ?? "";
  turn.finish = choice.finish_reason ?? turn.finish;
  const entries = choice.logprobs?.content ?? [];
  for (const [index, entry] of entries.entries()) {
    const text = decoder.decode(new Uint8Array(entry.bytes), { stream: true });
    const before = begun(turn.tokens.slice(-3).flatMap(({ bytes }) => bytes));
    const token = new Token(entry, text, before, index === entries.length - 1 ? choice.inspection : null);
    token.isEnd = choice.finish_reason === "stop" && index === entries.length - 1 && !choice.delta.content;
    turn.tokens.push(token);
    turn.view.push(token);
  }
  if (turn.tokens.length > 0) turn.view.element.parentElement?.querySelector(".loading")?.remove();
  if (entries.length && near) toEnd();
}

function openToken(token, row) {
  const panel = detail(token, () => {
    closeToken();
    row.focus();
  });
  view.side.replaceChildren(panel);
  view.side.parentElement.scrollTop = 0;
  panel.focus({ preventScroll: true });
  // On a narrow screen the panel lies over the page's lower part.
  if (getComputedStyle(panel).position === "fixed") row.moveAbove(panel.getBoundingClientRect().top);
}

function closeToken() {
  view.side.replaceChildren();
}
