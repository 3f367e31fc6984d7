// What is kept: the conversation, parameters and theme in localStorage, the key in sessionStorage, until the tab is closed.

const CONVERSATION = "flatlm.conversation";
const PREVIOUS = "flatlm.previous";
const PARAMETERS = "flatlm.parameters";
const THEME = "flatlm.theme";
const KEY = "flatlm.key";

/**
 * A turn: role "user" or "assistant", content, and of an answer: model (id), state ("writing", "done", "stopped", "failed"), error,
 * finish (the server's finish_reason) and stats (see answer.js).
 */
export const loadTurns = () => loadValid(CONVERSATION);

/** False where the browser does not keep it. */
export const saveTurns = (turns) => save(CONVERSATION, turns);

/** The conversation before the last new chat, once. */
export const setAside = (turns) => save(PREVIOUS, turns);
export const takeBack = () => loadValid(PREVIOUS);

export const loadParameters = () => load(PARAMETERS, {});
export const saveParameters = (values) => save(PARAMETERS, values);

/** "light", "dark", or null for the system's. */
export function chosenTheme() {
  try {
    return localStorage.getItem(THEME);
  } catch {
    return null;
  }
}

export function chooseTheme(theme) {
  if (theme) document.documentElement.dataset.theme = theme;
  else delete document.documentElement.dataset.theme;
  try {
    if (theme) localStorage.setItem(THEME, theme);
    else localStorage.removeItem(THEME);
  } catch {
    // It holds until the page is left.
  }
}

let key = "";

export function keptKey() {
  try {
    return sessionStorage.getItem(KEY) ?? key;
  } catch {
    return key;
  }
}

export function keepKey(given) {
  key = given;
  try {
    sessionStorage.setItem(KEY, given);
  } catch {
    // It holds until the page is left.
  }
}

function loadValid(name) {
  const turns = load(name, []);
  const valid = Array.isArray(turns) ? turns.filter((turn) => typeof turn?.content === "string" && typeof turn.role === "string") : [];
  // It was left while an answer was written: what had come is there.
  return valid.map((turn) => (turn.state === "writing" ? { ...turn, state: "stopped" } : turn));
}

function load(name, otherwise) {
  try {
    return JSON.parse(localStorage.getItem(name)) ?? otherwise;
  } catch {
    return otherwise;
  }
}

function save(name, value) {
  try {
    localStorage.setItem(name, JSON.stringify(value));
    return true;
  } catch {
    return false;
  }
}
