// Two files side by side: one prompt to both at once, and where their answers part.

import { answer } from "./answer.js";
import { alike, common, words } from "./diff.js";
import { button, find, make, megabytes, seconds, whole } from "./dom.js";
import { entered } from "./message.js";
import { readParameters } from "./parameters.js";

const SIDES = ["left", "right"];
const SHOW_EVERY_MS = 100;

export class Compare {
  #models;
  #options;
  #stopping = null;
  #turns = [];
  #timer = null;

  constructor(models, options) {
    this.#models = models;
    this.#options = options;
    const place = find("compare");
    if (models.length < 2) {
      place.replaceChildren(alone());
      return;
    }
    place.replaceChildren(this.#form(), make("div", { className: "sides" }, ...SIDES.map((side, index) => this.#side(side, index))));
    SIDES.forEach((side) => this.#showFile(side));
  }

  stop() {
    this.#stopping?.abort();
    return this.#stopping !== null;
  }

  #form() {
    const area = make("textarea", { id: "compare-prompt", rows: 2, value: "Once upon a time" });
    area.addEventListener("keydown", (event) => entered(event) && (event.preventDefault(), this.#run()));
    const greedy = make("input", { type: "checkbox", id: "greedy", checked: true });
    const why = "Temperature 0: what differs is the files' doing alone";
    return make(
      "form",
      { className: "ask", on: { submit: (event) => (event.preventDefault(), this.#run()) } },
      make("label", { htmlFor: "compare-prompt", textContent: "One prompt to both" }),
      area,
      make(
        "div",
        { className: "toolbar" },
        make("label", { className: "check", title: why }, greedy, " always the most likely token"),
        make("span", { className: "spacer" }),
        make("button", { type: "submit", id: "run-both", className: "main", textContent: "Run both" }),
        button("Stop", () => this.stop(), { id: "stop-both", className: "main stop", hidden: true }),
      ),
      make("p", { id: "verdict", className: "verdict", role: "status" }),
    );
  }

  #side(side, index) {
    const options = this.#models.map((model) => make("option", { value: model.id, textContent: model.id }));
    const which = index ? "Second" : "First";
    const select = make("select", { id: `${side}-model`, "aria-label": `${which} file` }, ...options);
    select.value = this.#models[index].id;
    select.addEventListener("change", () => this.#showFile(side));
    return make(
      "section",
      { className: "side" },
      select,
      make("p", { className: "hint", id: `${side}-file` }),
      make("dl", { className: "speeds", id: `${side}-speeds`, "aria-label": `Speed of the ${which.toLowerCase()} answer` }),
      make("div", { className: "body", id: `${side}-text`, tabIndex: 0, role: "region", "aria-label": `${which} answer` }),
    );
  }

  #chosen(side) {
    return this.#models.find((model) => model.id === find(`${side}-model`).value);
  }

  #showFile(side) {
    const model = this.#chosen(side);
    const recipe = model.manifest.recipe?.summary ?? model.recipe;
    const parts = [model.bytes && megabytes(model.bytes), recipe, model.chat_template ? "" : "plain mode"];
    find(`${side}-file`).textContent = parts.filter(Boolean).join(" · ");
  }

  async #run() {
    const content = find("compare-prompt").value.trim();
    const parameters = readParameters(this.#options.openPanel);
    if (!content || this.#stopping || !parameters) return;
    if (find("greedy").checked) Object.assign(parameters, { temperature: 0 });
    this.#stopping = new AbortController();
    this.#turns = SIDES.map(() => ({ role: "assistant", content: "" }));
    this.#showRunning(true);
    const asked = { messages: [{ role: "user", content }], parameters, signal: this.#stopping.signal, tokens: true };
    const models = SIDES.map((side) => this.#chosen(side));
    await Promise.all(this.#turns.map((turn, index) => answer(turn, { model: models[index], ...asked }, () => this.#soon())));
    this.#stopping = null;
    this.#showRunning(false);
    this.#show(true);
    const refused = this.#turns.find((turn) => turn.error?.status === 401);
    if (refused && (await this.#options.keyWanted(refused.error.message))) this.#run();
  }

  #showRunning(running) {
    const focused = [find("run-both"), find("stop-both")].includes(document.activeElement);
    find("run-both").hidden = running;
    find("stop-both").hidden = !running;
    if (focused) find(running ? "stop-both" : "run-both").focus();
    find("verdict").textContent = running ? "Both are writing…" : "";
  }

  #soon() {
    this.#timer ??= setTimeout(() => ((this.#timer = null), this.#stopping && this.#show(false)), SHOW_EVERY_MS);
  }

  #show(ended) {
    const lists = this.#turns.map((turn) => words(turn.content));
    const same = alike(...lists);
    const kept = ended ? common(...lists) : null;
    const parted = ended ? lists.some((list) => list.length > same) : lists.every((list) => list.length > same + 1);
    this.#turns.forEach((turn, index) => {
      const marks = lists[index].map((word, at) => marked(word, parted && at === same, kept && !kept[index][at]));
      if (parted && same >= lists[index].length) marks.push(make("mark", { className: "first", textContent: " (ends here)" }));
      const failed = turn.error && make("p", { className: "remark failed", role: "alert", textContent: turn.error.message });
      find(`${SIDES[index]}-text`).replaceChildren(...marks, ...(failed ? [failed] : []));
      find(`${SIDES[index]}-speeds`).replaceChildren(...speeds(turn));
    });
    if (ended) this.#judge(same, parted);
  }

  #judge(same, parted) {
    const failed = this.#turns.filter((turn) => turn.state === "failed").length;
    if (failed) {
      find("verdict").replaceChildren(failed === 1 ? "One of the two failed. " : "Both failed. ", button("Retry", () => this.#run()));
      return;
    }
    const count = Math.min(...this.#turns.map((turn) => turn.tokens.length));
    const at = alike(...this.#turns.map((turn) => turn.tokens.map((token) => token.text)));
    const stopped = this.#turns.some((turn) => turn.state === "stopped") ? " Stopped before the end." : "";
    if (!parted) find("verdict").textContent = `The answers are the same, word for word.${stopped}`;
    else if (!count) find("verdict").textContent = `The same for ${whole(same)} words; there they part.${stopped}`;
    else find("verdict").textContent = `The same for ${whole(at)} tokens; there they part.${this.#choices(at)}${stopped}`;
  }

  /** What each wrote where they part, and how sure it was. */
  #choices(at) {
    const tokens = this.#turns.map((turn) => turn.tokens[at]);
    if (tokens.some((token) => token?.logprob === undefined || token.logprob === null)) return "";
    const [left, right] = tokens.map(({ text, logprob }) => `“${text.trim() || text}” (${(100 * Math.exp(logprob)).toFixed(0)} %)`);
    return ` Left wrote ${left}, right ${right}.`;
  }
}

function alone() {
  const how = make("code", { textContent: "flatlm webui model_f32.tflite model_q4.tflite" });
  const text = make("p", {}, "This server has one file. Start it with two to see where their answers differ: ", how);
  return make("div", { className: "column page" }, make("h2", { textContent: "Two files side by side" }), text);
}

function marked(word, first, differs) {
  if (!first && !differs) return word;
  const space = word.match(/^\s*/)[0];
  const mark = make("mark", { className: first ? "first" : "differs", textContent: word.slice(space.length) });
  if (first) mark.title = "Here the answers part";
  const both = document.createDocumentFragment();
  both.append(space, mark);
  return both;
}

function speeds({ stats, state }) {
  if (!stats) return [];
  const about = stats.exact ? "" : "≈ ";
  const rows = [
    ["tokens", about + whole(stats.completion_tokens)],
    ["tokens/s", stats.per_second ? about + whole(Number(stats.per_second.toPrecision(3))) : "–"],
    ["first token", stats.first_s === null ? "–" : seconds(stats.first_s)],
  ];
  if (state === "stopped") rows.push(["", "stopped"]);
  return rows.map(([name, value]) => make("div", {}, make("dt", { textContent: name }), make("dd", { textContent: value })));
}
