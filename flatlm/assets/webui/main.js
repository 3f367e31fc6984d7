// The page comes together: models, views, panel, theme, keys.

import { models } from "./api.js";
import { showCards } from "./card.js";
import { Chat } from "./chat.js";
import { Compare } from "./compare.js";
import { find, notify } from "./dom.js";
import { resetParameters, showParameters } from "./parameters.js";
import { chooseTheme, chosenTheme, keepKey } from "./state.js";

const WIDE = matchMedia("(min-width: 60rem)");
const THEMES = [null, "light", "dark"];
const VIEWS = ["chat", "compare", "card"];
const running = [];

function openPanel(open = true) {
  find("parameters").hidden = !open;
  find("open-parameters").setAttribute("aria-expanded", String(open));
}

function showView(name) {
  document.body.dataset.view = name;
  VIEWS.forEach((view) => (find(view).hidden = view !== name));
  for (const tab of document.querySelectorAll("nav [data-view]")) {
    if (tab.dataset.view === name) tab.setAttribute("aria-current", "page");
    else tab.removeAttribute("aria-current");
  }
}

function showTheme() {
  const words = `Theme: ${chosenTheme() ?? "as the system's"}`;
  find("theme").setAttribute("aria-label", words);
  find("theme").title = words;
}

/** Asks for the key; false where none was given. */
function keyWanted(why) {
  const dialog = find("key-dialog");
  find("key-why").textContent = why;
  find("key").value = "";
  dialog.returnValue = "";
  if (!dialog.open) dialog.showModal();
  return new Promise((done) => {
    dialog.addEventListener("close", () => done(dialog.returnValue === "given"), { once: true });
  });
}

function listen() {
  document.querySelectorAll("nav [data-view]").forEach((tab) => tab.addEventListener("click", () => showView(tab.dataset.view)));
  find("open-parameters").addEventListener("click", () => {
    openPanel(find("parameters").hidden);
    if (!find("parameters").hidden && !WIDE.matches) find("close-parameters").focus();
  });
  find("close-parameters").addEventListener("click", () => (openPanel(false), find("open-parameters").focus()));
  find("reset-parameters").addEventListener("click", resetParameters);
  find("theme").addEventListener("click", () => {
    chooseTheme(THEMES[(THEMES.indexOf(chosenTheme()) + 1) % THEMES.length]);
    showTheme();
  });
  find("skip").addEventListener("click", (event) => {
    event.preventDefault();
    const shown = VIEWS.find((view) => !find(view).hidden);
    (find({ chat: "prompt", compare: "compare-prompt" }[shown]) ?? find(shown).querySelector("[tabindex]"))?.focus();
  });
  find("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    keepKey(find("key").value.trim());
    find("key-dialog").close("given");
  });
  addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || find("key-dialog").open) return;
    const stopped = running.map((view) => view.stop()).some(Boolean);
    if (!stopped && !WIDE.matches && !find("parameters").hidden) find("close-parameters").click();
  });
}

async function start() {
  try {
    const cards = await models();
    if (!cards.length) return notify("This server has no model that writes texts.");
    const options = { openPanel, keyWanted };
    showCards(cards);
    running.push(new Chat(cards, options), new Compare(cards, options));
    find("prompt").focus();
    document.body.dataset.ready = "yes";
  } catch (error) {
    if (error.status === 401 && (await keyWanted(error.message))) return start();
    notify(error.message, { label: "Retry", press: start });
  }
}

listen();
showTheme();
showParameters();
openPanel(WIDE.matches);
start();
