// What a file is, and how far it is from the model it was made from.

import { find, make, megabytes, whole } from "./dom.js";

// 0.0215, 7.28e-13
const small = (value) => (value === 0 || value >= 0.001 ? String(Number(value.toPrecision(3))) : value.toExponential(2));
const FIGURES = [
  {
    key: "max_abs_error",
    name: "Largest error of a logit",
    form: small,
    meaning: "How far any score of any token was from the original's, at worst. It may be a score that no text depends on.",
  },
  {
    key: "mean_kl",
    name: "Mean KL divergence",
    form: small,
    meaning: "How far the probabilities of the next token are from the original's, on average, in nats. 0: not at all.",
  },
  {
    key: "top1_agreement",
    name: "Top-1 agreement",
    form: (value) => `${(100 * value).toFixed(1)} %`,
    meaning: "How often the most likely next token is the original's.",
  },
  {
    key: "mean_cosine",
    name: "Mean cosine",
    form: (value) => value.toFixed(6),
    meaning: "How alike the directions of the outputs are. 1: the same.",
  },
  {
    key: "squared_error",
    name: "Relative squared error",
    form: small,
    meaning: "The outputs' squared error as a part of their size. 0: none.",
  },
];
const GREEDY =
  "How long both write the same text when each always takes the most likely token. One close choice that falls otherwise ends it.";
const UNVERIFIED = "This file was not verified when it was made, or says nothing of it. To verify it: ";
const AT_LEAST = new Set(["top1_agreement", "mean_cosine"]);

export function showCards(models) {
  find("card").replaceChildren(make("div", { className: "column page" }, ...models.map(card)));
}

function card(model) {
  const manifest = model.manifest ?? {};
  return make(
    "article",
    { className: "sheet" },
    make("h2", { textContent: model.file }),
    facts(model, manifest),
    make("h3", { textContent: "Verification" }),
    ...verification(manifest.verification, manifest.recipe),
    versions(manifest.versions),
  );
}

function facts(model, manifest) {
  const recipe = manifest.recipe ?? {};
  const rows = [
    ["Name in requests", model.id],
    ["Size", model.bytes && megabytes(model.bytes)],
    ["Recipe", [recipe.name, recipe.summary].filter(Boolean).join(": ")],
    ["Careful", recipe.warning],
    ["Family", manifest.family],
    ["Parameters", manifest.parameters && whole(manifest.parameters)],
    ["Context (KV cache)", `${whole(model.context)} tokens`],
    ["Vocabulary", `${whole(model.vocab_size)} tokens`],
    ["Signatures", (manifest.signatures ?? []).join(", ")],
    ["Chat", model.chat_template ? "by a chat template" : "no chat template: plain mode, the model goes on with the text"],
    ["Checkpoint", manifest.checkpoint && `${manifest.checkpoint.slice(0, 16)}…`],
  ];
  const shown = rows.filter(([, value]) => value);
  const pair = ([name, value]) => [make("dt", { textContent: name }), make("dd", { textContent: value })];
  return make("dl", { className: "facts" }, ...shown.flatMap(pair));
}

function verification(found, recipe) {
  if (!found) return [make("p", { className: "hint" }, UNVERIFIED, make("code", { textContent: "flatlm verify FILE CHECKPOINT" }))];
  const bound = found.bound ?? recipe?.bound ?? {};
  const measured = FIGURES.filter(({ key }) => typeof found[key] === "number");
  const rows = measured.map(({ key, name, form, meaning }) => row(name, form(found[key]), limit(key, bound[key], form), meaning));
  if (found.greedy_tokens) {
    rows.push(row("Greedy tokens until divergence", `${found.greedy_tokens_equal} of ${found.greedy_tokens}`, "none", GREEDY));
  }
  const [kind, word] = found.passed ? ["good", "passed"] : ["bad", "not passed"];
  const on = ` on ${whole(found.tokens_compared ?? 0)} tokens, by running the file itself, against ${found.against ?? "the reference"}.`;
  const titles = ["Figure", "Measured", "Bound", "In plain words"].map((textContent) => make("th", { scope: "col", textContent }));
  const table = make("table", { className: "verification" }, make("thead", {}, make("tr", {}, ...titles)), make("tbody", {}, ...rows));
  return [
    make("p", { className: "passed" }, make("span", { className: `badge ${kind}`, textContent: word }), on),
    make("div", { className: "scroll", tabIndex: 0, role: "region", "aria-label": "Verification figures" }, table),
  ];
}

const limit = (key, bound, form) => (typeof bound === "number" ? `${AT_LEAST.has(key) ? "at least" : "at most"} ${form(bound)}` : "none");

function row(name, value, bound, meaning) {
  return make(
    "tr",
    {},
    make("th", { scope: "row", textContent: name }),
    make("td", { className: "value", textContent: value }),
    make("td", { textContent: bound }),
    make("td", { className: "meaning", textContent: meaning }),
  );
}

function versions(found) {
  const text = Object.entries(found ?? {}).map(([name, version]) => `${name} ${version}`).join(", ");
  return make("p", { className: "hint", textContent: text && `Made with ${text}.` });
}
