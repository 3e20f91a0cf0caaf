// A board as SVG, and through it as PNG: fixed-width text, one rectangle a token.
import { download } from "./api.js";
import { flat } from "./colours.js";

const COLUMNS = 72, WIDTH = 8.4, HEIGHT = 24, MARGIN = 16;

const escape = (text) => text.replace(/[&<>"]/g, (c) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" })[c]);

export function svgOf(recording, pass, kind) {
  const boxes = [];
  let column = 0, row = 0;
  const put = (text, colour, style) => {
    if (column && column + text.length > COLUMNS) { column = 0; row += 1; }
    const x = MARGIN + column * WIDTH, y = MARGIN + 30 + row * HEIGHT;
    if (colour) boxes.push(`<rect x="${x}" y="${y}" width="${text.length * WIDTH}" height="20" rx="3" fill="${colour}"/>`);
    boxes.push(`<text x="${x}" y="${y + 15}" xml:space="preserve" ${style}>${escape(text)}</text>`);
    column += text.length;
  };
  const places = recording.after(pass);
  for (let place = 0; place < places.length; place += 1) {
    const standing = places[place];
    if (!standing) { put("▢ ", null, 'fill="#777"'); continue; }
    const { event, state } = standing;
    const draft = state === "draft" || state === "rejected";
    const lines = event.text.split("\n");
    lines.forEach((line, index) => {
      if (index) { column = 0; row += 1; }
      const style = draft ? `fill="#666" font-style="italic"${state === "rejected" ? ' text-decoration="line-through"' : ""}` : 'fill="#111"';
      for (let at = 0; at < line.length; at += COLUMNS)
        put(line.slice(at, at + COLUMNS), draft ? null : flat(kind, event, recording.passes), style);
    });
  }
  const costs = recording.costs().filter(([name]) => name !== "note").map(([name, value]) => `${name} ${value}`).join(", ");
  const width = 2 * MARGIN + COLUMNS * WIDTH, height = 2 * MARGIN + 60 + (row + 1) * HEIGHT;
  return `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}" viewBox="0 0 ${width} ${height}" font-family="ui-monospace, Menlo, Consolas, DejaVu Sans Mono, monospace" font-size="14">
<rect width="100%" height="100%" fill="#ffffff"/>
<text x="${MARGIN}" y="${MARGIN + 14}" font-weight="bold" fill="#111">${escape(recording.setup.method)}, pass ${pass} of ${recording.passes}</text>
${boxes.join("\n")}
<text x="${MARGIN}" y="${height - MARGIN}" font-size="11" fill="#444">${escape(costs)}</text>
</svg>`;
}

export function saveSVG(recording, pass, kind) {
  download(`${recording.setup.method}.svg`, new Blob([svgOf(recording, pass, kind)], { type: "image/svg+xml" }));
}

export async function savePNG(recording, pass, kind) {
  const url = URL.createObjectURL(new Blob([svgOf(recording, pass, kind)], { type: "image/svg+xml" }));
  const image = new Image();
  image.src = url;
  await image.decode();
  const sheet = document.createElement("canvas");
  sheet.width = image.width * 2;
  sheet.height = image.height * 2;
  sheet.getContext("2d").drawImage(image, 0, 0, sheet.width, sheet.height);
  URL.revokeObjectURL(url);
  download(`${recording.setup.method}.png`, await new Promise((done) => sheet.toBlob(done, "image/png")));
}
