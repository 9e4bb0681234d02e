/** Sizes that suit a model: as many pixels as its own size has, in usual proportions. */

const SHAPES = [
  ["square", 1, 1],
  ["portrait", 2, 3],
  ["landscape", 3, 2],
  ["tall", 9, 16],
  ["wide", 16, 9],
];

/**
 * @param {number} own side of the squares that the model was trained on, in pixels
 * @returns {{shape: string, width: number, height: number}[]}
 */
export function presets(own) {
  const cell = own >= 256 ? 64 : 8;
  const side = (/** @type {number} */ pixels) => Math.max(Math.round(pixels / cell) * cell, cell);
  return SHAPES.map(([shape, across, down]) => {
    const ratio = Number(across) / Number(down);
    return { shape: String(shape), width: side(own * Math.sqrt(ratio)), height: side(own / Math.sqrt(ratio)) };
  });
}

/**
 * Width and height in multiples of 8 with the proportions of a picture and about the pixels of a square of this side.
 * @param {number} width
 * @param {number} height
 * @param {number} own
 */
export function fitted(width, height, own) {
  const scale = Math.min(Math.sqrt((own * own) / (width * height)), 1);
  const side = (/** @type {number} */ pixels) => Math.max(Math.round((pixels * scale) / 8) * 8, 8);
  return { width: side(width), height: side(height) };
}
