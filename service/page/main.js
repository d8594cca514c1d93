// The frame of the page: its head, its two parts, the language and the colours. The address says which part is open.

import { get } from "./api.js";
import { chatPart } from "./chat.js";
import { h, select } from "./dom.js";
import { language, setLanguage, t } from "./language.js";
import { walkPart } from "./walk.js";

const THEME = "headlight.theme";
const THEMES = ["light dark", "light", "dark"];
const PARTS = { chat: chatPart, walk: walkPart };

let model = "";

function render() {
  const [part, step] = location.hash.replace(/^#\/?/, "").split("/");
  const open = part in PARTS ? part : "chat";
  document.documentElement.lang = language();
  document.title = `${t(`part.${open}`)} · Headlight`;
  document.body.replaceChildren(
    h("a", { class: "skip", href: "#main", on: { click: skip } }, t("skip")),
    head(open),
    h("main", { id: "main", tabindex: "-1", class: open }, PARTS[open](step)),
  );
}

function skip(event) {
  // The address belongs to the parts.
  event.preventDefault();
  document.getElementById("main").focus();
}

function head(open) {
  return h(
    "header",
    { class: "head" },
    h("p", { class: "mark" }, h("img", { src: "page/icon.svg", alt: "", width: 26, height: 26 }), "Headlight"),
    h(
      "nav",
      { "aria-label": t("parts") },
      Object.keys(PARTS).map((part) =>
        h("a", { href: `#/${part}`, "aria-current": part === open ? "page" : null }, t(`part.${part}`)),
      ),
    ),
    h("p", { class: "model", title: t("model") }, model),
    h(
      "div",
      { class: "row preferences" },
      h("label", { class: "unseen", for: "language" }, t("language")),
      select("language", [["en", "English"], ["ko", "한국어"]], language(), changeLanguage),
      h("label", { class: "unseen", for: "theme" }, t("theme")),
      select("theme", THEMES.map((theme) => [theme, t(`theme.${theme}`)]), theme(), changeTheme),
    ),
  );
}

function changeLanguage(name) {
  setLanguage(name);
  render();
  document.getElementById("language").focus();
}

function theme() {
  const stored = localStorage.getItem(THEME);
  return THEMES.includes(stored) ? stored : THEMES[0];
}

function changeTheme(name) {
  localStorage.setItem(THEME, name);
  paint();
}

function paint() {
  document.documentElement.style.colorScheme = theme();
}

async function nameModel() {
  try {
    model = (await get("v1/models")).data[0].id;
    document.querySelector(".model").textContent = model;
  } catch {
    // The part that is open tells of a server that does not answer.
  }
}

paint();
render();
addEventListener("hashchange", () => {
  render();
  document.getElementById("main").focus({ preventScroll: true });
});
nameModel();
