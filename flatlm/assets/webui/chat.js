// The conversation: sending, stopping, writing again, editing, the context's meter.

import { answer } from "./answer.js";
import { button, find, make, megabytes, notify, whole } from "./dom.js";
import { Message, entered } from "./message.js";
import { readParameters } from "./parameters.js";
import { loadTurns, saveTurns, setAside, takeBack } from "./state.js";

const SAVE_EVERY_MS = 500;
const NEARLY_FULL = 0.85;
const NEAR_THE_END_PX = 80;
const LETTERS_OF_A_TOKEN = 4;
const PLAIN = "This file has no chat template. In plain mode it is given the texts one after another, and goes on with them.";
const STARTS = {
  true: ["Why is the sky blue? Explain it to a child.", "Write a haiku about the sea.", "Make a table of three planets and their sizes."],
  false: ["Once upon a time", "One day, a little girl named Lily", "The old man looked at the sea and"],
};

export class Chat {
  #models;
  #turns = loadTurns();
  #shown = new Map();
  #stopping = null;
  #saved = 0;
  #openPanel;
  #onKeyWanted;

  constructor(models, { openPanel, keyWanted }) {
    this.#models = models;
    this.#openPanel = openPanel;
    this.#onKeyWanted = keyWanted;
    find("model").replaceChildren(...models.map((model) => make("option", { value: model.id, textContent: model.id })));
    find("model").disabled = models.length < 2;
    const served = new Set(models.map((model) => model.id));
    const last = this.#turns.findLast((turn) => served.has(turn.model));
    if (last) find("model").value = last.model;
    find("model").addEventListener("change", () => this.#showModel());
    find("new").addEventListener("click", () => this.startAnew());
    find("export").addEventListener("click", () => this.#export());
    find("stop").addEventListener("click", () => this.stop());
    find("composer").addEventListener("submit", (event) => (event.preventDefault(), this.#send()));
    const prompt = find("prompt");
    prompt.addEventListener("keydown", (event) => entered(event) && (event.preventDefault(), this.#send()));
    prompt.addEventListener("input", fit);
    addEventListener("pagehide", () => (this.stop(), saveTurns(this.#turns)));
    this.#showAll();
  }

  /** Stops the answer that is being written; false where there is none. */
  stop() {
    this.#stopping?.abort();
    return this.#stopping !== null;
  }

  startAnew() {
    this.stop();
    const before = this.#turns;
    if (before.length) {
      setAside(before);
      notify("A new chat. The one before is gone.", { label: "Bring it back", press: () => this.#bringBack() });
    }
    this.#replace([]);
    find("prompt").focus();
  }

  #bringBack() {
    this.stop();
    this.#replace(takeBack());
  }

  #replace(turns) {
    this.#turns = turns;
    this.#keep();
    this.#showAll();
  }

  get #model() {
    return this.#models.find((model) => model.id === find("model").value) ?? this.#models[0];
  }

  #send() {
    const content = find("prompt").value.trim();
    if (!content || this.#stopping) return;
    const parameters = readParameters(this.#openPanel);
    if (!parameters) return;
    find("prompt").value = "";
    fit();
    this.#add({ role: "user", content });
    this.#answer(parameters);
  }

  #edit(turn, content) {
    this.#from(turn, { role: "user", content });
  }

  #again(turn) {
    this.#from(turn);
  }

  /** Everything from a turn on is written anew, with `replacement` in its place. */
  #from(turn, replacement) {
    const parameters = readParameters(this.#openPanel);
    if (!parameters) return;
    this.stop();
    this.#turns = this.#turns.slice(0, this.#turns.indexOf(turn));
    if (replacement) this.#turns.push(replacement);
    this.#showAll();
    this.#answer(parameters);
    find("prompt").focus();
  }

  async #answer(parameters) {
    const stopping = new AbortController();
    const turns = this.#turns;
    const messages = turns.filter((turn) => turn.content).map(({ role, content }) => ({ role, content }));
    const turn = { role: "assistant", content: "", state: "writing" };
    this.#stopping = stopping;
    this.#add(turn);
    this.#showWriting();
    await answer(turn, { model: this.#model, messages, parameters, signal: stopping.signal }, () => this.#changed(turn));
    if (this.#stopping === stopping) this.#stopping = null;
    if (this.#turns === turns) this.#keep();
    this.#showWriting();
    this.#changed(turn);
    if (turn.error?.status === 401 && (await this.#onKeyWanted(turn.error.message)) && this.#turns.at(-1) === turn) this.#again(turn);
  }

  #add(turn) {
    this.#turns.push(turn);
    this.#show(turn);
    this.#keep();
    this.#showModel();
    find("scroller").scrollTop = find("scroller").scrollHeight;
  }

  #changed(turn) {
    if (!this.#shown.has(turn)) return;
    const scroller = find("scroller");
    const follows = scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < NEAR_THE_END_PX;
    this.#shown.get(turn).update(this.#turns.at(-1) === turn);
    this.#showContext();
    if (follows) scroller.scrollTop = scroller.scrollHeight;
    if (performance.now() - this.#saved > SAVE_EVERY_MS) this.#keep();
  }

  #keep() {
    this.#saved = performance.now();
    if (!saveTurns(this.#turns)) notify("This browser does not keep the conversation: it is gone when the page is left.");
  }

  #showAll() {
    this.#shown.clear();
    find("messages").replaceChildren();
    this.#turns.forEach((turn) => this.#show(turn));
    this.#turns.forEach((turn) => this.#shown.get(turn).update(this.#turns.at(-1) === turn));
    this.#showModel();
    this.#showWriting();
    find("scroller").scrollTop = find("scroller").scrollHeight;
  }

  #show(turn) {
    const before = this.#turns.at(-2);
    const message = new Message(turn, { edit: (...edited) => this.#edit(...edited), again: (which) => this.#again(which) });
    this.#shown.set(turn, message);
    find("messages").append(message.node);
    if (before && this.#shown.has(before) && before !== turn) this.#shown.get(before).update(false);
  }

  #showWriting() {
    const writing = this.#stopping !== null;
    const focused = [find("send"), find("stop")].includes(document.activeElement);
    find("send").hidden = writing;
    find("stop").hidden = !writing;
    find("messages").setAttribute("aria-busy", String(writing)); // read out when it is whole
    if (focused) find("prompt").focus();
  }

  #showModel() {
    const model = this.#model;
    find("plain-badge").hidden = model.chat_template;
    find("plain-badge").title = PLAIN;
    find("prompt").placeholder = model.chat_template ? "Write a message" : "Begin a text";
    find("welcome").hidden = this.#turns.length > 0;
    if (!this.#turns.length) find("welcome").replaceChildren(...welcome(model));
    this.#showContext();
  }

  #showContext() {
    const used = tokensUsed(this.#turns);
    const { context } = this.#model;
    const share = Math.min(1, used / context);
    const left = Math.max(0, context - used);
    find("meter").value = share;
    find("context").dataset.full = share >= NEARLY_FULL ? (left > 1 ? "nearly" : "yes") : "no";
    const warning = { no: "", nearly: `: nearly full, room for ${whole(left)} more`, yes: ": full" }[find("context").dataset.full];
    find("used").textContent = `${whole(Math.min(used, context))} of ${whole(context)} tokens${warning}`;
  }

  #export() {
    const kept = { exported: new Date().toISOString(), model: this.#model, turns: this.#turns };
    const href = URL.createObjectURL(new Blob([JSON.stringify(kept, null, 2)], { type: "application/json" }));
    make("a", { href, download: "conversation.json" }).click();
    setTimeout(() => URL.revokeObjectURL(href), 1000);
  }
}

/** As the server counted them last; what came since is guessed. */
function tokensUsed(turns) {
  const counted = turns.findLastIndex((turn) => turn.stats?.exact);
  const stats = turns[counted]?.stats;
  const guessed = (turn) => turn.stats?.completion_tokens ?? Math.ceil(turn.content.length / LETTERS_OF_A_TOKEN);
  const before = stats ? stats.prompt_tokens + stats.completion_tokens : 0;
  return turns.slice(counted + 1).reduce((sum, turn) => sum + guessed(turn), before);
}

/** As high as its text, up to what the style sheet allows. */
function fit() {
  const prompt = find("prompt");
  prompt.style.height = "auto";
  prompt.style.height = `${prompt.scrollHeight + 2}px`;
}

function welcome(model) {
  const recipe = model.manifest.recipe?.summary ?? model.recipe;
  const facts = [model.family, recipe, model.bytes && megabytes(model.bytes), `room for ${whole(model.context)} tokens`];
  const begin = (text) => button(text, () => ((find("prompt").value = text), fit(), find("prompt").focus()), { className: "start" });
  return [
    make("h2", { textContent: model.file }),
    make("p", { className: "hint", textContent: facts.filter(Boolean).join(" · ") }),
    make("p", { textContent: model.chat_template ? "Ask it something." : PLAIN }),
    make("div", { className: "starts" }, ...STARTS[model.chat_template].map(begin)),
  ];
}
