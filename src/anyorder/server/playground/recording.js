// What happened on a canvas, and how it stood after any pass.
//
// Events are those of /v1/canvas: {type: "reveal" | "preview", pass, place, token, text, probability,
// alternatives, drafted}. A preview without a token opens its place again.

export class Recording {
  constructor(setup) {
    this.setup = setup;
    this.events = [];
    this.passes = 0;
    this.places = 0;
    this.end = null;
  }

  add(event) {
    if (event.type === "done") this.end = event;
    if (event.type !== "reveal" && event.type !== "preview") return;
    this.events.push(event);
    this.passes = Math.max(this.passes, event.pass);
    this.places = Math.max(this.places, event.place + 1);
  }

  /** The places after `pass`: what stands there ({event, state}), by place; undefined: nothing yet. */
  after(pass) {
    const places = new Array(this.places);
    const last = this.finals();
    for (const event of this.events) {
      if (event.pass > pass) continue;
      const standing = places[event.place];
      if (event.type === "reveal") {
        places[event.place] = { event, state: event.pass === 0 ? "fixed" : "final" };
      } else if (standing?.state !== "final" && standing?.state !== "fixed") {
        const rejected = event.token !== null && last[event.place]?.token !== event.token;
        places[event.place] = event.token === null ? undefined : { event, state: rejected ? "rejected" : "draft" };
      }
    }
    return places;
  }

  /** The final event of each place. */
  finals() {
    const found = new Array(this.places);
    for (const event of this.events) if (event.type === "reveal") found[event.place] = event;
    return found;
  }

  costs() {
    const usage = this.end?.usage ?? {};
    const rows = [["new tokens", usage.completion_tokens ?? this.finals().filter(Boolean).length]];
    rows.push(["forward passes", usage.forward_passes ?? this.passes]);
    if (usage.tokens_per_pass) rows.push(["tokens a pass", usage.tokens_per_pass.toFixed(2)]);
    if (this.seconds) rows.push(["seconds", this.seconds.toFixed(2)]);
    if (usage.seconds) rows.push(["prompt, decoding", `${usage.seconds.prefill.toFixed(2)}, ${usage.seconds.decode.toFixed(2)}`]);
    if (usage.mean_accepted_length) rows.push(["accepted at a time", usage.mean_accepted_length.toFixed(2)]);
    if (usage.exact === false) rows.push(["distribution", "approximate"]);
    if (this.end?.finish_reason) rows.push(["ended by", this.end.finish_reason]);
    for (const note of usage.notes ?? []) rows.push(["note", note]);
    return rows;
  }
}
