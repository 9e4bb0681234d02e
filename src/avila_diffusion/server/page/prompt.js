/** What the keys do in a prompt: weights of the selection, as AUTOMATIC1111 has them, and styles merged in. */

const STEP = 0.1;
const DELIMITERS = " \t\n\r.,\\/!?%^*;:{}=`~()<>";

/**
 * The text with the weight of what is selected changed, and the selection after it.
 * Where nothing is selected it is the weighted bracket that the cursor stands in, else the word there.
 * @param {string} text
 * @param {number} start
 * @param {number} end
 * @param {number} by
 * @returns {{text: string, start: number, end: number} | null} null where there is nothing to weigh
 */
export function weigh(text, start, end, by) {
  if (start === end) [start, end] = bracketAt(text, start) ?? wordAt(text, start);
  while (end > start && /\s/.test(text[end - 1])) end--;
  while (start < end && /\s/.test(text[start])) start++;
  if (start === end) return null;
  const lora = /^(:)(-?\d*\.?\d+)(>)/.exec(text.slice(end));
  if (lora && /<(lora|lyco|hypernet):[^<>:]*$/.test(text.slice(0, end))) return replaced(text, start, end, lora, by, "");
  const weight = /^(:)(-?\d*\.?\d+)(\))/.exec(text.slice(end));
  if (weight && text[start - 1] === "(") return replaced(text, start, end, weight, by, "(");
  const inside = text.slice(start, end);
  const value = rounded(1 + by);
  return { text: `${text.slice(0, start)}(${inside}:${value})${text.slice(end)}`, start: start + 1, end: end + 1 };
}

/**
 * @param {string} text
 * @param {number} start
 * @param {number} end
 * @param {RegExpExecArray} match of ":1.1)" behind the end
 * @param {number} by
 * @param {string} open what goes with the weight when it becomes 1
 */
function replaced(text, start, end, match, by, open) {
  const value = rounded(Number(match[2]) + by);
  const after = text.slice(end + match[0].length);
  const inside = text.slice(start, end);
  if (open && value === "1") {
    return { text: text.slice(0, start - 1) + inside + after, start: start - 1, end: end - 1 };
  }
  return { text: `${text.slice(0, end)}:${value}${match[3]}${after}`, start, end };
}

/** @param {number} value */
function rounded(value) {
  return String(Math.round(value * 100) / 100);
}

/**
 * The inside of "(…:1.1)" around a place.
 * @param {string} text
 * @param {number} at
 * @returns {[number, number] | null}
 */
function bracketAt(text, at) {
  const open = text.lastIndexOf("(", at - 1);
  if (open < 0 || text.slice(open + 1, at).includes(")")) return null;
  const match = /^([^()]*?)(:-?\d*\.?\d+)\)/.exec(text.slice(open + 1));
  if (!match || at > open + 1 + match[0].length) return null;
  return [open + 1, open + 1 + match[1].length];
}

/**
 * @param {string} text
 * @param {number} at
 * @returns {[number, number]}
 */
function wordAt(text, at) {
  let [start, end] = [at, at];
  while (start > 0 && !DELIMITERS.includes(text[start - 1])) start--;
  while (end < text.length && !DELIMITERS.includes(text[end])) end++;
  return [start, end];
}

/**
 * Lets Ctrl+Up and Ctrl+Down change weights in a text area, and lets it grow with its text.
 * @param {HTMLTextAreaElement} area
 */
export function promptKeys(area) {
  area.addEventListener("keydown", (event) => {
    const up = event.key === "ArrowUp";
    if (!(event.ctrlKey || event.metaKey) || event.altKey || !(up || event.key === "ArrowDown")) return;
    event.preventDefault();
    const done = weigh(area.value, area.selectionStart, area.selectionEnd, up ? STEP : -STEP);
    if (!done) return;
    area.setSelectionRange(0, area.value.length);
    // The way that the browser's own undo knows; it tells of the input by itself.
    if (!document.execCommand("insertText", false, done.text)) {
      area.value = done.text;
      area.dispatchEvent(new Event("input", { bubbles: true }));
    }
    area.setSelectionRange(done.start, done.end);
  });
  area.addEventListener("input", () => grow(area));
}

/** @param {HTMLTextAreaElement} area */
export function grow(area) {
  area.style.height = "auto";
  if (area.scrollHeight) area.style.height = `${Math.min(area.scrollHeight + 2, 320)}px`;
}

/**
 * A prompt with a style merged in: in place of "{prompt}" in the style, else behind it after a comma.
 * @param {string} prompt
 * @param {string} style
 */
export function merged(prompt, style) {
  if (style.includes("{prompt}")) return style.split("{prompt}").join(prompt);
  return [prompt.trim(), style.trim()].filter(Boolean).join(", ");
}
