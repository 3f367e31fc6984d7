// Markdown as it is written: rendered by the server a few times a second, plain until then, and only known elements are let in.

import { markdown } from "./api.js";
import { button, copy, make } from "./dom.js";

const BETWEEN_MS = 350;
const LONGEST = 32768; // characters that the server renders; a longer answer stays plain from there
const ELEMENTS = new Set(
  "p br hr h1 h2 h3 h4 h5 h6 ul ol li blockquote pre code em strong s a table thead tbody tr th td".split(" "),
);
const ATTRIBUTES = { a: ["href", "title", "rel", "target"], code: ["class"], ol: ["start"], th: ["class"], td: ["class"] };
const LINKS = new Set(["http:", "https:", "mailto:"]);
const ENDS = "p,li,h1,h2,h3,h4,h5,h6,td,th,code";

/** Text that grows, inside `place`. */
export class LiveMarkdown {
  #place;
  #text = "";
  #shown = 0;
  #busy = false;
  #timer = null;
  #tail = make("span", { className: "tail" });

  constructor(place) {
    this.#place = place;
    place.append(this.#tail);
  }

  /** All of the text so far. */
  set(text) {
    this.#text = text;
    this.#showTail();
    this.#schedule();
  }

  #schedule() {
    const known = this.#shown === this.#text.length || this.#text.length > LONGEST;
    if (this.#busy || this.#timer !== null || known) return;
    this.#timer = setTimeout(() => this.#render(), this.#shown ? BETWEEN_MS : 0);
  }

  async #render() {
    const text = this.#text;
    this.#timer = null;
    this.#busy = true;
    try {
      const html = await markdown(text);
      this.#place.replaceChildren(...clean(html).childNodes);
      this.#shown = text.length;
      this.#showTail();
      this.#busy = false;
      this.#schedule();
    } catch {
      this.#busy = false; // It stays plain, and is tried again with the next piece.
    }
  }

  /** What came since the last rendering stands plain where the text ends. */
  #showTail() {
    this.#tail.textContent = this.#text.slice(this.#shown);
    if (!this.#place.contains(this.#tail)) ending(this.#place).append(this.#tail);
  }
}

function ending(place) {
  let last = place;
  while (last.lastElementChild && !last.lastElementChild.matches(".copy")) last = last.lastElementChild;
  const end = last.closest(ENDS);
  return place.contains(end) ? end : place;
}

/** A fragment with what of `html` is known: a second fence behind the server's. */
function clean(html) {
  const body = new DOMParser().parseFromString(html, "text/html").body;
  const fragment = document.createDocumentFragment();
  fragment.append(...[...body.childNodes].flatMap(admitted));
  return fragment;
}

function admitted(node) {
  if (node.nodeType === Node.TEXT_NODE) return [document.createTextNode(node.data)];
  if (node.nodeType !== Node.ELEMENT_NODE) return [];
  const tag = node.localName;
  const children = [...node.childNodes].flatMap(admitted);
  if (!ELEMENTS.has(tag)) return children;
  const made = make(tag, {}, ...children);
  for (const name of ATTRIBUTES[tag] ?? []) if (node.hasAttribute(name)) made.setAttribute(name, node.getAttribute(name));
  if (tag === "a" && !LINKS.has(made.protocol)) made.removeAttribute("href");
  if (tag === "table") return [make("div", { className: "scroll", tabIndex: 0, role: "region", "aria-label": "Table" }, made)];
  if (tag === "pre") return [codeBlock(made)];
  return [made];
}

function codeBlock(pre) {
  const press = (event) => copy(pre.textContent.replace(/\n$/, ""), event.currentTarget);
  pre.tabIndex = 0;
  pre.setAttribute("role", "region");
  pre.setAttribute("aria-label", "Code");
  return make("div", { className: "code-block" }, pre, button("Copy", press, { className: "copy", title: "Copy this code" }));
}
