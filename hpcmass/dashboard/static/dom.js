// How anything gets onto the page: as text, never as markup; and how numbers and times are written.

// What would turn the writing round or hide is shown as what it is.
const clean = (text) => String(text).replace(/[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff]/g, '\ufffd');

function fill(node, attrs, children) {
  for (const [key, value] of Object.entries(attrs || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith('on')) node.addEventListener(key.slice(2), value);
    else if (key === 'css') for (const [name, to] of Object.entries(value)) node.style.setProperty(name, to);
    else node.setAttribute(key, value === true ? '' : String(value));
  }
  for (const child of children.flat(4)) {
    if (child !== null && child !== undefined && child !== false) node.append(child instanceof Node ? child : clean(child));
  }
  return node;
}
export const el = (tag, attrs, ...children) => fill(document.createElement(tag), attrs, children);
export const svg = (tag, attrs, ...children) => fill(document.createElementNS('http://www.w3.org/2000/svg', tag), attrs, children);
export const $ = (id) => document.getElementById(id);
export const isNumber = (v) => typeof v === 'number' && Number.isFinite(v);

// A link inside the page; what a name holds cannot end the address.
export function to(...parts) {
  return '#/' + parts.map((part) => encodeURIComponent(String(part).toWellFormed ? String(part).toWellFormed() : String(part))).join('/');
}

export function fmt(v) {
  if (v === null || v === undefined) return '–';
  if (typeof v === 'boolean') return v ? 'yes' : 'no';
  if (typeof v === 'object') return JSON.stringify(v);
  if (typeof v !== 'number') return String(v);
  if (v === 0) return '0';
  const size = Math.abs(v);
  if (Number.isInteger(v) && size < 1e7) return v.toLocaleString('en-GB').replaceAll(',', '\u2009');
  if (size >= 1e6 || size < 1e-4) return v.toExponential(3).replace(/\.?0+e/, 'e').replace('e+', 'e');
  return String(Number(v.toPrecision(size >= 100 ? 4 : 5)));
}
export function span(s) {
  if (!isNumber(s)) return '–';
  if (s < 0.9995) return s <= 0 ? '0 s' : `${Math.max(1, Math.round(s * 1000))} ms`;
  if (s < 9.95) return `${Number(s.toPrecision(2))} s`;
  if (s < 59.5) return `${Math.round(s)} s`;
  if (s < 5970) return `${Math.floor(Math.round(s) / 60)} min`;
  const m = Math.round(s / 60);
  return m < 2880 ? `${Math.floor(m / 60)} h ${m % 60} min` : `${Math.round(m / 1440)} d`;
}
export const ms = (v) => isNumber(v) ? `${fmt(Number(v.toPrecision(3)))} ms` : '–';
export const rate = (v) => isNumber(v) ? `${fmt(Number(v.toPrecision(3)))} / s` : '–';
export const percent = (x) => isNumber(x) ? `${Number((100 * x).toFixed(1))} %` : '–';
export const plural = (n, word, more) => `${fmt(n)} ${n === 1 ? word : more || word + 's'}`;
export function bytes(count) {
  let amount = count;
  for (const unit of ['B', 'kB', 'MB', 'GB']) {
    if (amount < 1000) return `${unit === 'B' ? amount : amount.toFixed(1)} ${unit}`;
    amount /= 1000;
  }
  return `${amount.toFixed(1)} TB`;
}

// A time as how long ago it was; `tick` keeps it true without drawing the page again.
const agoText = (t) => {
  const s = Date.now() / 1000 - t;
  return s < 5 ? 'now' : `${span(s)} ago`;
};
export function ago(t) {
  if (!isNumber(t)) return el('span', {}, '–');
  const full = new Date(t * 1000);
  return el('time', {datetime: full.toISOString(), 'data-ago': t, title: full.toLocaleString(undefined, {dateStyle: 'medium', timeStyle: 'medium'})}, agoText(t));
}
export function tick() {
  for (const node of document.querySelectorAll('time[data-ago]')) {
    const text = agoText(Number(node.dataset.ago));
    if (node.textContent !== text) node.textContent = text;
  }
}

// The mark of a state: told apart by form as well as by colour.
const LOOKS = {
  COMPLETED: 'complete', complete: 'complete', READY: 'running', ready: 'running', RUNNING: 'running', running: 'running',
  FAILED: 'failed', failed: 'failed', UNKNOWN: 'odd', damaged: 'odd', lost: 'odd', drift: 'odd', STOPPED: 'pruned', pruned: 'pruned',
  DRAINING: 'pruned', draining: 'pruned', best: 'best',
};
export function mark(state) {
  const look = LOOKS[state] || 'waiting';
  const box = svg('svg', {width: 12, height: 12, viewBox: '0 0 12 12', 'aria-hidden': 'true', class: `mark ${look}`});
  if (look === 'failed') box.append(svg('path', {d: 'M2 2L10 10M2 10L10 2'}));
  else if (look === 'pruned') box.append(svg('path', {d: 'M3 3H9V9H3Z'}));
  else if (look === 'odd') box.append(svg('path', {d: 'M6 1L11 10H1ZM6 4.5V7'}));
  else if (look === 'complete') box.append(svg('path', {d: 'M2 6.5L5 9.5L10.5 2.5'}));
  else if (look === 'running') box.append(svg('circle', {cx: 6, cy: 6, r: 4.5, class: 'full'}));
  else box.append(svg('circle', {cx: 6, cy: 6, r: 4}));
  return box;
}
export const chip = (state, text) => el('span', {class: 'chip', 'data-state': state}, mark(state), text ?? String(state).toLowerCase());

export const tile = (name, value, note, attrs) => el('div', {class: 'tile', ...attrs}, el('dt', {}, name), el('dd', {}, value), note ? el('p', {}, note) : null);
export const section = (id, title, side, ...rest) => el('section', {id, 'aria-labelledby': `${id}-title`},
  el('div', {class: 'head'}, el('h2', {id: `${id}-title`}, title), side ? el('div', {class: 'note'}, side) : null), rest);
export const note = (text) => el('p', {class: 'message'}, text);
// What can't be read is said where it would have been.
export const problem = (text) => el('p', {class: 'problem', role: 'note'}, mark('UNKNOWN'), el('span', {}, text));

// A table: columns of [name, cell of a row, extra class].
export function table(columns, rows, attrs) {
  const head = el('tr', {}, columns.map(([name, , kind]) => el('th', {scope: 'col', class: kind}, name)));
  const body = rows.map((row) => el('tr', {class: row.class}, columns.map(([, cell, kind]) => el('td', {class: kind}, cell(row)))));
  return el('div', {class: 'scroll', tabindex: 0, role: 'region', ...attrs}, el('table', {}, el('thead', {}, head), el('tbody', {}, body)));
}
export function pages(found, limit, go) {
  const {offset} = found, total = found.total;
  if (total <= limit && offset === 0) return null;
  const last = Math.min(total, offset + limit);
  return el('div', {class: 'pages'},
    el('button', {type: 'button', 'data-key': 'previous', disabled: offset === 0, onclick: () => go(Math.max(0, offset - limit))}, 'Previous'),
    el('span', {}, total ? `${fmt(Math.min(offset + 1, total))}–${fmt(last)} of ${fmt(total)}` : 'none'),
    el('button', {type: 'button', 'data-key': 'next', disabled: last >= total, onclick: () => go(offset + limit)}, 'Next'));
}
const SHA256 = /^[0-9a-f]{64}$/;

// Names and values of something nested, one a line.
export function facts(pairs) {
  const rows = Object.entries(pairs || {}).filter(([, value]) => value !== null && value !== undefined && value !== '');
  return el('dl', {class: rows.length > 8 ? 'facts many' : 'facts'}, rows.map(([name, value]) => [el('dt', {}, name), el('dd', {}, value instanceof Node ? value : SHA256.test(value) ? el('code', {title: value}, value.slice(0, 16)) : fmt(value))]));
}
export function flat(value, prefix = '', into = {}) {
  for (const [key, one] of Object.entries(value || {})) {
    if (one && typeof one === 'object' && !Array.isArray(one)) flat(one, `${prefix}${key}.`, into);
    else into[prefix + key] = one;
  }
  return into;
}
