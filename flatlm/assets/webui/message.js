// A turn of the conversation, as it is seen.

import { button, copy, make, seconds, whole } from "./dom.js";
import { LiveMarkdown } from "./markdown.js";

/** The element of one turn. `actions`: {edit(turn, text), again(turn)}; `update()` shows what the turn has become. */
export class Message {
  #turn;
  #actions;
  #body = make("div", { className: "body" });
  #foot = make("div", { className: "foot", "aria-live": "off" });
  #live = null;

  constructor(turn, actions) {
    this.#turn = turn;
    this.#actions = actions;
    const who = make("span", { className: "hidden", textContent: turn.role === "user" ? "You: " : "Answer: " });
    this.node = make("li", { className: `message ${turn.role}` }, who, this.#body, this.#foot);
    if (turn.role === "user") this.#body.textContent = turn.content;
    else this.#live = new LiveMarkdown(this.#body);
    this.update(false);
  }

  /** `last`: only the last answer can be written again. */
  update(last) {
    const turn = this.#turn;
    if (turn.role === "user") {
      this.#foot.replaceChildren(this.#copy(), button("Edit", () => this.#edit()));
      return;
    }
    this.#live.set(turn.content);
    this.node.dataset.state = turn.state;
    const writing = turn.state === "writing";
    const again = last && turn.state !== "failed" ? [button("Regenerate", () => this.#actions.again(turn))] : [];
    const buttons = writing ? [] : [this.#copy(), ...again];
    this.#foot.replaceChildren(...remarks(turn, () => this.#actions.again(turn), last), ...buttons, figures(turn));
  }

  #copy() {
    return button("Copy", (event) => copy(this.#turn.content, event.currentTarget));
  }

  #edit() {
    const area = make("textarea", { value: this.#turn.content, rows: 3, "aria-label": "Edit your message" });
    const leave = () => {
      this.#body.replaceChildren(this.#turn.content);
      this.update(false);
      this.#foot.lastElementChild.focus();
    };
    const send = () => area.value.trim() && this.#actions.edit(this.#turn, area.value.trim());
    area.addEventListener("keydown", (event) => {
      if (event.key === "Escape") {
        event.stopPropagation();
        leave();
      } else if (entered(event)) {
        event.preventDefault();
        send();
      }
    });
    this.#body.replaceChildren(area);
    this.#foot.replaceChildren(button("Send again", send, { className: "main" }), button("Cancel", leave));
    area.focus();
  }
}

/** Enter by itself, and not to end a word of an input method. */
export const entered = (event) => event.key === "Enter" && !event.shiftKey && !event.isComposing;

/** Tokens, speed, time to the first token. */
export function figures(turn) {
  const stats = turn.stats;
  if (!stats) return make("span", { className: "figures", textContent: turn.state === "writing" ? "reading…" : "" });
  const about = stats.exact ? "" : "≈ ";
  const parts = [`${about}${whole(stats.completion_tokens)} tokens`];
  if (stats.per_second) parts.push(`${about}${whole(Number(stats.per_second.toPrecision(3)))} tokens/s`);
  if (stats.first_s !== null) parts.push(`first token ${seconds(stats.first_s)}`);
  return make("span", { className: "figures", textContent: parts.join(" · ") });
}

/** How it ended, where it did not end by itself. */
function remarks(turn, again, last) {
  if (turn.state === "failed") {
    const retry = last ? [button("Retry", again, { className: "main" })] : [];
    const status = turn.error.status ? ` (${[turn.error.status, turn.error.type].filter(Boolean).join(", ")})` : "";
    const text = make("span", { textContent: turn.error.message + status });
    return [make("div", { className: "remark failed", role: "alert" }, text, ...retry)];
  }
  return endings(turn).map((textContent) => make("div", { className: "remark", textContent }));
}

function endings(turn) {
  if (turn.state === "stopped") return ["Stopped."];
  if (turn.state === "done" && !turn.content) return ["The answer is empty: the model ended at once."];
  if (turn.stats?.cut === "context") return ["Cut here: the context is full. Start a new chat, or edit an earlier message."];
  if (turn.stats?.cut === "limit") return ["Cut here: that was the most tokens of one answer (Max tokens, in the parameters)."];
  return [];
}
