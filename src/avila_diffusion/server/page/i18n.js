/** The language of the page: which it is, and what its words are. */

import en from "./en.js";
import pt from "./pt.js";

/** @type {Record<string, Record<string, string>>} */
const LANGUAGES = { en, "pt-BR": pt };

/** The language now: a key of LANGUAGES. */
export function language() {
  return document.documentElement.lang in LANGUAGES ? document.documentElement.lang : "en";
}

/**
 * The words of a key, {names} filled in. What has no words shows its key: never nothing.
 * @param {string} key
 * @param {Record<string, string | number>} [values]
 */
export function t(key, values = {}) {
  const words = LANGUAGES[language()][key] ?? en[key] ?? key;
  return words.replace(/\{(\w+)\}/g, (whole, name) => (name in values ? String(values[name]) : whole));
}

/**
 * Words that depend on a number: the keys `key.one` and `key.many`.
 * @param {string} key
 * @param {number} count
 */
export function counted(key, count) {
  const one = new Intl.PluralRules(language()).select(count) === "one";
  return t(`${key}.${one ? "one" : "many"}`, { n: number(count) });
}

/** @param {string} chosen */
export function setLanguage(chosen) {
  document.documentElement.lang = chosen;
  store("avila.language", chosen);
  document.dispatchEvent(new CustomEvent("language"));
}

/** @param {number} value */
export function number(value) {
  return new Intl.NumberFormat(language()).format(value);
}

/** @param {number} bytes */
export function size(bytes) {
  const units = ["byte", "kilobyte", "megabyte", "gigabyte", "terabyte"];
  const rank = bytes < 1000 ? 0 : Math.min(Math.floor(Math.log10(bytes) / 3), units.length - 1);
  const options = { style: "unit", unit: units[rank], maximumSignificantDigits: 3 };
  return new Intl.NumberFormat(language(), /** @type {any} */ (options)).format(bytes / 1000 ** rank);
}

/**
 * A span of time as people say it.
 * @param {number} seconds
 */
export function span(seconds) {
  const whole = Math.max(Math.round(seconds), 0);
  if (whole < 60) return t("time.seconds", { n: whole });
  const [minutes, rest] = [Math.floor(whole / 60), whole % 60];
  if (minutes < 60) return t("time.minutes", { n: minutes, s: rest });
  return t("time.hours", { n: Math.floor(minutes / 60), m: minutes % 60 });
}

/** @param {number} seconds since 1970 */
export function moment(seconds) {
  const date = new Date(seconds * 1000);
  return new Intl.DateTimeFormat(language(), { dateStyle: "medium", timeStyle: "short" }).format(date);
}

/**
 * Remembers a text in this browser, where it lets us.
 * @param {string} key
 * @param {string | null} text
 */
export function store(key, text) {
  try {
    if (text === null) localStorage.removeItem(key);
    else localStorage.setItem(key, text);
  } catch {
    // Private windows and full disks: the page works without.
  }
}

/** @param {string} key @returns {string | null} */
export function stored(key) {
  try {
    return localStorage.getItem(key);
  } catch {
    return null;
  }
}
