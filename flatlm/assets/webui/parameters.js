// How answers are written: the fields, what they may be, what goes into a request.

import { find, make } from "./dom.js";
import { loadParameters, saveParameters } from "./state.js";

/** `above`: the value must be more than it. `empty`: what no value means. */
const FIELDS = [
  { name: "temperature", label: "Temperature", low: 0, high: 2, initial: "0.7", empty: "default", hint: "0: always the most likely token" },
  { name: "max_tokens", label: "Max tokens", low: 1, whole: true, initial: "256", empty: "default", hint: "of one answer" },
  { name: "top_p", label: "Top p", above: 0, high: 1, empty: "off", hint: "the most likely that make up this probability" },
  { name: "top_k", label: "Top k", low: 1, whole: true, empty: "off", hint: "so many of the most likely" },
  { name: "min_p", label: "Min p", low: 0, high: 1, empty: "off", hint: "at least this share of the most likely one's probability" },
  { name: "seed", label: "Seed", low: 0, whole: true, empty: "random", hint: "one seed, one answer" },
];
const TEXTS = [
  { name: "system", label: "System prompt", rows: 3, hint: "what the model is told before the conversation" },
  { name: "stop", label: "Stop at", rows: 2, hint: "one text a line; \\n is a new line" },
];
const MOST_STOPS = 16;

/** Builds the panel's fields with what was kept. */
export function showParameters() {
  const kept = loadParameters();
  const number = ({ whole, empty }) => make("input", { type: "text", inputMode: whole ? "numeric" : "decimal", placeholder: empty });
  const numbers = FIELDS.map((field) => row(field, number(field), kept));
  const texts = TEXTS.map((field) => row(field, make("textarea", { rows: field.rows }), kept));
  find("fields").replaceChildren(...numbers, ...texts);
  [...FIELDS, ...TEXTS].forEach(check);
}

export function resetParameters() {
  saveParameters({});
  showParameters();
}

/** What a request carries, with `system`; null where a field is not possible: that field is shown and has the focus. */
export function readParameters(openPanel) {
  const wrong = [...FIELDS, ...TEXTS].filter((field) => !check(field));
  if (wrong.length) {
    openPanel();
    find(`p-${wrong[0].name}`).focus();
    return null;
  }
  const values = {};
  for (const field of FIELDS) if (text(field)) values[field.name] = parsed(text(field));
  if (text(TEXTS[0])) values.system = text(TEXTS[0]);
  if (stops().length) values.stop = stops();
  return values;
}

function row(field, input, kept) {
  const id = `p-${field.name}`;
  Object.assign(input, { id, name: field.name, value: kept[field.name] ?? field.initial ?? "", spellcheck: false });
  input.setAttribute("aria-describedby", `${id}-hint ${id}-wrong`);
  input.addEventListener("input", () => {
    if (check(field)) saveParameters({ ...loadParameters(), [field.name]: input.value });
  });
  return make(
    "div",
    { className: field.rows ? "field wide" : "field" },
    make("label", { htmlFor: id, textContent: field.label }),
    input,
    make("p", { id: `${id}-hint`, className: "hint", textContent: field.hint }),
    make("p", { id: `${id}-wrong`, className: "wrong", role: "alert" }),
  );
}

/** Is the field's value possible? Says why not below it. */
function check(field) {
  const wrong = field.rows ? wrongText(field) : wrongNumber(field);
  const input = find(`p-${field.name}`);
  input.setAttribute("aria-invalid", String(Boolean(wrong)));
  const place = find(`p-${field.name}-wrong`);
  if (place.textContent !== wrong) place.textContent = wrong;
  return !wrong;
}

function wrongNumber(field) {
  if (!text(field)) return "";
  const value = parsed(text(field));
  const outside = value < field.low || value <= field.above || value > field.high || (field.whole && !Number.isSafeInteger(value));
  return Number.isFinite(value) && !outside ? "" : `must be ${wanted(field)}`;
}

function wanted({ low, above, high, whole }) {
  const kind = whole ? "a whole number" : "a number";
  if (above !== undefined) return `${kind} above ${above}, up to ${high}`;
  return high === undefined ? `${kind} from ${low}` : `${kind} from ${low} to ${high}`;
}

const wrongText = (field) => (field.name === "stop" && stops().length > MOST_STOPS ? `at most ${MOST_STOPS}` : "");
const parsed = (written) => Number(written.replace(",", "."));
const text = (field) => find(`p-${field.name}`).value.trim();
const stops = () => find("p-stop").value.split("\n").filter(Boolean).map((line) => line.replaceAll("\\n", "\n"));
