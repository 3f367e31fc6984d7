// One answer of one model: what is asked, what comes, how fast.

import { stream } from "./api.js";

/**
 * Lets a model answer a conversation, and fills `turn` as the answer comes: content, stats, finish, state. `changed` is called after each
 * piece. Ends when the answer does; a failure or a stop leaves what was written. `tokens`: keep each token with its probability too.
 */
export async function answer(turn, { model, messages, parameters, signal, tokens = false }, changed) {
  const clock = new Clock();
  Object.assign(turn, { state: "writing", error: null, finish: null, model: model.id, content: "", tokens: [], stats: null });
  try {
    for await (const event of stream("/v1/chat/completions", request(model, messages, parameters, tokens), signal)) {
      if (event.usage) clock.usage = event.usage;
      const choice = event.choices?.[0];
      const text = choice?.delta?.content ?? "";
      turn.tokens.push(...(choice?.logprobs?.content ?? []).map(({ token, logprob }) => ({ text: token, logprob })));
      if (choice?.finish_reason) turn.finish = choice.finish_reason;
      if (text) clock.piece(turn.tokens.length);
      turn.content += text;
      turn.stats = clock.stats(parameters.max_tokens, model.context, turn.finish);
      changed();
    }
    turn.state = "done";
  } catch (error) {
    turn.state = signal?.aborted ? "stopped" : "failed";
    turn.error = signal?.aborted ? null : { message: error.message, status: error.status ?? 0, type: error.type ?? "" };
  }
  if (!tokens) delete turn.tokens;
  changed();
}

function request(model, messages, { system, ...parameters }, tokens) {
  const all = system ? [{ role: "system", content: system }, ...messages] : messages;
  const streamed = { stream: true, stream_options: { include_usage: true } };
  return { model: model.id, messages: all, ...streamed, ...parameters, ...(tokens && { logprobs: true }) };
}

/** Times of one answer. Until the server says how many tokens there were, each piece counts as one. */
class Clock {
  usage = null;
  #sent = performance.now();
  #first = null;
  #last = null;
  #pieces = 0;
  #tokensInFirst = 1;

  piece(tokens) {
    this.#last = performance.now();
    if (this.#first === null) {
      this.#first = this.#last;
      this.#tokensInFirst = Math.max(1, tokens);
    }
    this.#pieces += 1;
  }

  /** `exact`: has the server counted the tokens? `cut`: by "context", "limit" (Max tokens), or null. Seconds are wall time. */
  stats(limit, context, finish) {
    const written = this.usage?.completion_tokens ?? this.#pieces;
    const prompt = this.usage?.prompt_tokens ?? null;
    const writing = (this.#last - this.#first) / 1000;
    const after = written - this.#tokensInFirst;
    return {
      completion_tokens: written,
      prompt_tokens: prompt,
      exact: this.usage !== null,
      first_s: this.#first === null ? null : (this.#first - this.#sent) / 1000,
      total_s: (performance.now() - this.#sent) / 1000,
      per_second: after > 0 && writing > 0 ? after / writing : null,
      cut: finish === "length" ? cutBy(written, prompt, limit, context) : null,
    };
  }
}

function cutBy(written, prompt, limit, context) {
  if (limit !== undefined && written >= limit) return "limit";
  return prompt !== null && prompt + written >= context - 1 ? "context" : "limit";
}
