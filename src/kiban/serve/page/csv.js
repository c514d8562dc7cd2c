// Tables in text: reading them as people have them, and writing them as Excel opens them.

const UNSAFE = /^[=+\-@\t\r＝＋－＠]/; // Excel would calculate what begins so
const NUMBER = /^[+-]?\d+([.,]\d+)*%?$/;

/** The text of a file in UTF-8 or Shift_JIS (in UTF-16 with its mark). Throws TypeError if it is none of them. */
export function decode(bytes) {
  const mark = new Uint8Array(bytes.slice(0, 2)).join();
  const encodings = mark === "255,254" ? ["utf-16le"] : mark === "254,255" ? ["utf-16be"] : ["utf-8", "shift_jis"];
  for (const encoding of encodings.slice(0, -1)) {
    try {
      return new TextDecoder(encoding, { fatal: true }).decode(bytes);
    } catch {
      // the next one may fit
    }
  }
  return new TextDecoder(encodings.at(-1), { fatal: true }).decode(bytes);
}

/** Rows of cells, without empty rows. Cells in quotes may hold separators, line ends and doubled quotes. */
export function parse(text) {
  const separator = separatorOf(text);
  const rows = [];
  let row = [], cell = "", quoted = false;
  const endCell = () => { row.push(cell); cell = ""; };
  const endRow = () => { endCell(); if (row.some((one) => one !== "")) rows.push(row); row = []; };
  for (let i = 0; i < text.length; i++) {
    const c = text[i];
    if (quoted) {
      if (c !== '"') cell += c;
      else if (text[i + 1] === '"') { cell += '"'; i++; }
      else quoted = false;
    } else if (c === '"' && cell === "") quoted = true;
    else if (c === separator) endCell();
    else if (c === "\n" || c === "\r") { endRow(); if (c === "\r" && text[i + 1] === "\n") i++; }
    else cell += c;
  }
  endRow();
  return rows;
}

/** The separator of the first row: what stands there most often outside quotes. */
function separatorOf(text) {
  const first = text.slice(0, 100_000).replace(/"[^"]*"/g, "").split(/[\r\n]/).find((line) => line.trim()) ?? "";
  const often = (separator) => first.split(separator).length;
  return ["\t", ",", ";"].reduce((best, one) => (often(one) > often(best) ? one : best));
}

/** A CSV of rows as a Blob: with the mark by which Excel knows UTF-8, and nothing that it would calculate. */
export function write(rows) {
  const lines = rows.map((row) => row.map(safe).join(","));
  return new Blob(["\ufeff", lines.join("\r\n"), "\r\n"], { type: "text/csv;charset=utf-8" });
}

function safe(value) {
  const text = String(value);
  const cell = UNSAFE.test(text) && !NUMBER.test(text) ? `'${text}` : text;
  return /[",\r\n]/.test(cell) ? `"${cell.replaceAll('"', '""')}"` : cell;
}
