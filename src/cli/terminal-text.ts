/** Text of unknown origin on a terminal: nothing in it may move the cursor, and how many columns it takes is known. */

/**
 * Written out rather than sent: control characters (C0, C1), what is invisible or turns the direction of writing (format characters), line
 * and paragraph separators, lone surrogates, and what has no meaning yet or only a private one.
 */
const UNSAFE = /[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\p{Cs}\p{Co}\p{Cn}]/gu;
const SHORT: Readonly<Record<string, string>> = { '\n': '\\n', '\r': '\\r', '\t': '\\t' };

export function escapeControls(text: string): string {
  return text.replace(UNSAFE, (char) => SHORT[char] ?? `\\u{${char.codePointAt(0)!.toString(16)}}`);
}

/** Of text in several lines: a message that holds names from a file. */
export function escapeLines(text: string): string {
  return text.split('\n').map(escapeControls).join('\n');
}

const ZERO_WIDTH = /^[\p{Mn}\p{Me}]$/u;
/** Two columns: East Asian Wide and Fullwidth (Unicode TR 11), block by block, and emoji. A block's few narrow ones count as wide. */
const WIDE =
  /^[\u1100-\u115f\u2e80-\u303e\u3041-\ua4cf\ua960-\ua97f\uac00-\ud7a3\uf900-\ufaff\ufe30-\ufe6f\uff01-\uff60\uffe0-\uffe6\u{16fe0}-\u{18cff}\u{1b000}-\u{1b2ff}\u{1f000}-\u{1faff}\u{20000}-\u{3fffd}\p{Emoji_Presentation}]$/u;

/** Columns of text that holds no control characters. */
export function displayWidth(text: string): number {
  let width = 0;
  for (const char of text) width += charWidth(char);
  return width;
}

const charWidth = (char: string): number => (ZERO_WIDTH.test(char) ? 0 : WIDE.test(char) ? 2 : 1);

/** At most `columns` wide; where something had to go, `…` says so. */
export function truncate(text: string, columns: number): string {
  if (displayWidth(text) <= columns) return text;
  let width = 1; // the ellipsis
  let end = 0;
  for (const char of text) {
    width += charWidth(char);
    if (width > columns) break;
    end += char.length;
  }
  return columns < 1 ? '' : `${text.slice(0, end)}…`;
}
