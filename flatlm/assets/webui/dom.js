// What every module needs of the document.

/** The element with that id. */
export const find = (id) => document.getElementById(id);

/** An element. Properties that it has are set, `on` holds listeners, all others become attributes. Children are nodes or texts. */
export function make(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "on") Object.entries(value).forEach(([event, listener]) => node.addEventListener(event, listener));
    else if (name in node && name !== "list") node[name] = value;
    else if (value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

/** A button with words. */
export function button(text, press, properties = {}) {
  return make("button", { type: "button", textContent: text, on: { click: press }, ...properties });
}

/** Puts text on the clipboard; on pages without that right (http, other hosts) by a selection. Says so on the button for a moment. */
export async function copy(text, pressed) {
  const label = pressed.dataset.label ?? pressed.textContent;
  pressed.dataset.label = label;
  pressed.textContent = (await put(text)) ? "Copied" : "Not copied";
  setTimeout(() => (pressed.textContent = label), 1500);
}

async function put(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = make("textarea", { value: text, className: "hidden" });
    const before = document.activeElement;
    document.body.append(area);
    area.select();
    const copied = document.execCommand("copy");
    area.remove();
    before?.focus();
    return copied;
  }
}

/** A line at the top of the page; with a button where there is something to do about it. No text: none. */
export function notify(text, action) {
  const place = find("notice");
  place.replaceChildren();
  place.hidden = !text;
  if (!text) return;
  place.append(make("span", { textContent: text }));
  if (action) place.append(button(action.label, () => (notify(""), action.press())));
  place.append(button("Dismiss", () => notify("")));
}

const TIMES = { s: 1, ms: 1000 };

/** "0.42 s", "12 ms". */
export function seconds(value) {
  return value < 0.1 ? `${Math.max(1, Math.round(value * TIMES.ms))} ms` : `${value.toFixed(value < 10 ? 2 : 1)} s`;
}

/** "5.6 MB": megabytes of 10^6 bytes, as `flatlm inspect` says them. */
export function megabytes(bytes) {
  return `${(bytes / 1e6).toLocaleString("en", { maximumFractionDigits: 1, minimumFractionDigits: 1 })} MB`;
}

/** "1,312,384". */
export const whole = (number) => number.toLocaleString("en");
