// Shades behind tokens. Both scales keep the text readable in both themes: only the shade is mixed in.

export const SCALES = { probability: "its probability", order: "the order of commitment", none: "no colour" };

function scale(share) {
  return `hsl(${Math.round(8 + 200 * share)} 75% 50%)`;
}

/** A CSS colour of strength for one token. */
export function shade(kind, event, passes) {
  if (kind === "none") return "transparent";
  const share = kind === "probability" ? event.probability ?? 1 : 1 - (event.pass - 1) / Math.max(1, passes - 1);
  return `color-mix(in srgb, ${scale(Math.min(1, Math.max(0, share)))} 34%, transparent)`;
}

export function gradient() {
  return `linear-gradient(to right, ${[0, 0.25, 0.5, 0.75, 1].map(scale).join(", ")})`;
}

/** The same shade on a white ground, for pictures. */
export function flat(kind, event, passes) {
  if (kind === "none") return "#ffffff";
  const share = kind === "probability" ? event.probability ?? 1 : 1 - (event.pass - 1) / Math.max(1, passes - 1);
  return `hsl(${Math.round(8 + 200 * Math.min(1, Math.max(0, share)))} 75% 83%)`;
}
