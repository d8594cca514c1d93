// Looks inside the model at one prompt. Each thing is asked for when it is first needed, and kept.

import { get, post } from "./api.js";
import { inOrder } from "./dom.js";

const PATH = "v1/inspect";
/** Tokens of a prompt that fit into the pictures. */
export const MOST_TOKENS = 48;
const MOST_LENS_ROWS = 2048;
/** Settings that leave a distribution as it is, and not as the model's makers would have it. */
const NEUTRAL = { temperature: 1, top_k: 0, top_p: 1, min_p: 0, typical_p: 1, repetition_penalty: 1 };

export class Inspector {
  constructor(prompt) {
    this.prompt = prompt;
    this._abort = new AbortController();
    this._known = new Map();
  }

  /** Ends what is still being asked for. */
  close() {
    this._abort.abort();
  }

  /** { tokens, spellings, residual, layers }: the prompt's tokens, other spellings of it, and norms at all positions. */
  base() {
    return this._once("base", async () => {
      const answer = await this._ask({ prompt: this.prompt, residual: true, details: true, spellings: true });
      return { ...answer, tokens: inOrder(answer.tokens), ids: answer.tokens.map(({ id }) => id), layers: (answer.residual.stream.shape[0] - 1) / 2 };
    });
  }

  /** The model's card, with its size. */
  model() {
    return this._once("model", async () => (await get("v1/models", { signal: this._abort.signal })).data[0]);
  }

  /** Attention [heads][queries][keys] of a layer. */
  attention(layer) {
    return this._once(`attention ${layer}`, async () => {
      const { ids } = await this.base();
      const { size } = await this.model();
      const heads = Array.from({ length: size.heads }, (_, head) => [layer, head]);
      return (await this._ask({ tokens: ids, attention: heads })).attention.data;
    });
  }

  /** Attention [layers][heads][keys] of the query at `position`. */
  through(position) {
    return this._once(`through ${position}`, async () => {
      const { ids, layers } = await this.base();
      const { attention } = await this._ask({ tokens: ids, positions: [position], attention: "all" });
      const heads = attention.heads.length / layers;
      const row = (layer, head) => attention.data[layer * heads + head][0];
      return Array.from({ length: layers }, (_, layer) => Array.from({ length: heads }, (_, head) => row(layer, head)));
    });
  }

  /** { positions, lens }: the five likeliest tokens at each layer, at as many last positions as the server allows. */
  lens() {
    return this._once("lens", async () => {
      const { ids, layers } = await this.base();
      const first = Math.max(ids.length - Math.floor(MOST_LENS_ROWS / (layers + 1)), 0);
      const positions = ids.map((_, position) => position).slice(first);
      return this._ask({ tokens: ids, positions, lens: 5 });
    });
  }

  /** The `top` likeliest next tokens at a position: { id, text, logprob } each. */
  next(position, top) {
    return this._once(`next ${position} ${top}`, async () => {
      const { ids } = await this.base();
      const { lens } = await this._ask({ tokens: ids, positions: [position], lens: top });
      return lens.at(-1)[0].likeliest;
    });
  }

  /** { norms, nearest, vectors }: the norm of each token's embedding, the tokens with the nearest ones, and itself. */
  embedding() {
    return this._once("embedding", async () => {
      const { ids } = await this.base();
      return (await this._ask({ tokens: ids, embedding: 6, embedding_vectors: true })).embedding;
    });
  }

  /** { rotary, learned, alibi_slopes }: the numbers that tell the model where its positions are; those that it has. */
  encoding() {
    return this._once("encoding", async () => {
      const { ids } = await this.base();
      return (await this._ask({ tokens: ids, position_encoding: true })).position_encoding;
    });
  }

  /** Distributions after the prompt's position under each of `settings`; null from a server that does not tell. */
  async distributions(position, settings, signal) {
    const { ids } = await this.base();
    const asked = { tokens: ids, positions: [position], distribution: 10, settings, ...NEUTRAL };
    const answer = await post(PATH, asked, { signal, optional: ["distribution", "settings", ...Object.keys(NEUTRAL)] });
    return answer.distributions ?? null;
  }

  _ask(body, options = {}) {
    return post(PATH, body, { signal: this._abort.signal, ...options });
  }

  /** What `make` promised the first time; a failure is forgotten, so that it can be tried again. */
  _once(name, make) {
    if (!this._known.has(name)) {
      const made = make();
      made.catch(() => this._known.delete(name));
      this._known.set(name, made);
    }
    return this._known.get(name);
  }
}
