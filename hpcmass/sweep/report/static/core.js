// The data, and how anything gets onto the page: as text, never as markup.
const D = JSON.parse(document.getElementById('data').textContent);
const T = D.trials, N = T.number.length, STUDY = D.study;
const SEVERAL = STUDY.objectives.length > 1;
const $ = (id) => document.getElementById(id);

// What would turn the writing round or hide is shown as what it is.
const clean = (text) => String(text).replace(/[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff]/g, '\ufffd');
function fill(node, attrs, children) {
  for (const [key, value] of Object.entries(attrs || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith('on')) node.addEventListener(key.slice(2), value);
    else if (key === 'css') for (const [name, to] of Object.entries(value)) node.style.setProperty(name, to);
    else node.setAttribute(key, value === true ? '' : String(value));
  }
  for (const child of children.flat(3)) {
    if (child !== null && child !== undefined) node.append(child instanceof Node ? child : clean(child));
  }
  return node;
}
const el = (tag, attrs, ...children) => fill(document.createElement(tag), attrs, children);
const svg = (tag, attrs, ...children) => fill(document.createElementNS('http://www.w3.org/2000/svg', tag), attrs, children);

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue('--' + name).trim();
const isNumber = (v) => typeof v === 'number' && Number.isFinite(v);

function fmt(v) {
  if (v === null || v === undefined) return '–';
  if (typeof v === 'boolean') return v ? 'yes' : 'no';
  if (typeof v !== 'number') return String(v);
  if (v === 0) return '0';
  const size = Math.abs(v);
  if (Number.isInteger(v) && size < 1e7) return v.toLocaleString('en-GB').replaceAll(',', '\u2009');
  if (size >= 1e6 || size < 1e-4) return v.toExponential(3).replace(/\.?0+e/, 'e').replace('e+', 'e');
  return String(Number(v.toPrecision(5)));
}
function span(s) {
  if (!isNumber(s)) return 'not known';
  if (s < 0.9995) return s === 0 ? '0 s' : `${Math.max(1, Math.round(s * 1000))} ms`;
  if (s < 99.5) return `${Number(s.toPrecision(3))} s`;
  if (s < 5970) return `${Math.floor(Math.round(s) / 60)} min ${Math.round(s) % 60} s`;
  const m = Math.round(s / 60);
  return m < 2880 ? `${Math.floor(m / 60)} h ${m % 60} min` : `${(m / 1440).toFixed(1)} d`;
}
const hours = (s) => isNumber(s) ? `${fmt(Number((s / 3600).toPrecision(s < 360 ? 2 : s < 3.6e6 ? 3 : 5)))} h` : 'not known';
const percent = (x) => isNumber(x) ? `${(100 * x).toFixed(x < 0.0995 || x > 0.9905 ? 1 : 0)} %` : 'not known';
const stamp = (t) => isNumber(t) ? new Date(t * 1000).toLocaleString(undefined, {dateStyle: 'medium', timeStyle: 'medium'}) : 'not known';
const count = (n, word) => `${fmt(n)} ${word}${n === 1 ? '' : 's'}`;

const STATES = ['complete', 'running', 'pruned', 'failed', 'lost', 'uncounted', 'paused', 'waiting'];
const stateColour = (state) => colour({complete: 'complete', pruned: 'pruned', failed: 'failed', running: 'running'}[state] || 'waiting');
const COUNTS = {};
for (const state of T.state) COUNTS[state] = (COUNTS[state] || 0) + 1;

// The mark of a state: told apart by form as well as by colour.
function drawMark(c, state, x, y, r) {
  if (N > 3000 && (state === 'complete' || state === 'pruned')) { // of thousands a square is enough, and drawn at once
    if (state === 'complete') { c.fillRect(x - r, y - r, 2 * r, 2 * r); return; }
    c.beginPath(); c.moveTo(x - r, y - r * .7); c.lineTo(x + r, y - r * .7); c.lineTo(x, y + r); c.fill(); return;
  }
  c.beginPath();
  if (state === 'failed') { c.moveTo(x - r, y - r); c.lineTo(x + r, y + r); c.moveTo(x - r, y + r); c.lineTo(x + r, y - r); c.stroke(); return; }
  if (state === 'pruned') { c.moveTo(x - r, y - r * .7); c.lineTo(x + r, y - r * .7); c.lineTo(x, y + r); c.closePath(); c.stroke(); return; }
  c.arc(x, y, r, 0, 7);
  if (state === 'complete') c.fill(); else c.stroke();
}
function mark(state) {
  const box = svg('svg', {width: 12, height: 12, viewBox: '0 0 12 12', 'aria-hidden': 'true'});
  const name = {complete: 'complete', pruned: 'pruned', failed: 'failed', running: 'running', best: 'best'}[state] || 'waiting';
  const line = {fill: 'none', css: {stroke: `var(--${name})`}, 'stroke-width': 2};
  if (state === 'failed') box.append(svg('path', {...line, d: 'M2 2L10 10M2 10L10 2'}));
  else if (state === 'pruned') box.append(svg('path', {...line, d: 'M2 3L10 3L6 10Z'}));
  else if (state === 'best') box.append(svg('path', {...line, d: 'M0 9H5V3H12'}));
  else if (state === 'complete') box.append(svg('circle', {cx: 6, cy: 6, r: 4.5, css: {fill: `var(--${name})`}}));
  else box.append(svg('circle', {...line, cx: 6, cy: 6, r: 4}));
  return box;
}
const chip = (state, text) => el('span', {class: 'chip'}, mark(state), text ?? state);

const measured = (name) => (T.measured.find((one) => one[0] === name) || [name, Array(N).fill(null)])[1];
const signOf = (k) => STUDY.objectives[k][1] === 'minimize' ? 1 : -1;

// Places of all trials with an objective, the worst at 0 and the best at 1: outliers do not spoil the colours.
function ranksOf(k) {
  const values = measured(STUDY.objectives[k][0]), order = [];
  for (let i = 0; i < N; i++) if (isNumber(values[i]) && T.state[i] !== 'failed') order.push(i);
  order.sort((a, b) => signOf(k) * (values[b] - values[a]));
  const ranks = new Float64Array(N).fill(NaN);
  order.forEach((i, place) => { ranks[i] = order.length > 1 ? place / (order.length - 1) : 1; });
  return ranks;
}
function ramp() {
  const stops = ['r0', 'r1', 'r2', 'r3'].map((name) => colour(name)).map((hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16)));
  return (x) => {
    const place = Math.min(2.9999, Math.max(0, x * 3)), low = Math.floor(place), part = place - low;
    return `rgb(${stops[low].map((v, i) => Math.round(v + (stops[low + 1][i] - v) * part)).join(',')})`;
  };
}

// The tip beside the pointer.
function showTip(x, y, title, pairs, more) {
  const tip = $('tip');
  tip.replaceChildren(el('b', {}, title), el('table', {}, el('tbody', {}, pairs.map(([name, value]) =>
    el('tr', {}, el('td', {class: 'name'}, name), el('td', {}, value))))), more ? el('span', {class: 'note'}, more) : '');
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  const left = x + 14 + box.width > innerWidth - 6 ? x - 14 - box.width : x + 14;
  tip.style.left = `${Math.max(6, Math.min(left, innerWidth - box.width - 6))}px`;
  tip.style.top = `${Math.max(6, Math.min(y + 14, innerHeight - box.height - 6))}px`;
}
const hideTip = () => { $('tip').hidden = true; };
function trialTip(x, y, i) {
  const pairs = [['state', stateWords(i)]];
  for (const [name, values] of T.measured) pairs.push([name, fmt(values[i])]);
  const params = T.params.filter(([, values]) => values[i] !== null && values[i] !== undefined);
  for (const [name, values] of params.slice(0, 9)) pairs.push([name, fmt(values[i])]);
  const hidden = params.length - 9;
  showTip(x, y, `Trial ${T.number[i]}`, pairs, hidden > 0 ? `and ${count(hidden, 'parameter')} more: click` : '');
}
function stateWords(i) {
  if (T.feasible[i] === false) return `${T.state[i]}, beyond a constraint`;
  return T.front[i] ? `${T.state[i]}, ${SEVERAL ? 'on the Pareto front' : 'the best'}` : T.state[i];
}

// Everything of one trial.
function showTrial(i) {
  hideTip();
  const rows = [['state', stateWords(i)]];
  const put = (name, value) => { if (value !== null && value !== undefined && value !== '') rows.push([name, value]); };
  put('reason', T.reason[i]);
  for (const [name, values] of T.measured) put(name, fmt(values[i]));
  put('steps', fmt(T.steps[i]));
  put('time', span(T.seconds[i]));
  put('begun', stamp(T.started[i]));
  if (isNumber(T.ended[i])) put('ended', stamp(T.ended[i]));
  put('target', T.target[i]);
  put('attempts', fmt(T.attempts[i]));
  if (isNumber(T.twin[i])) put('same point as', `trial ${T.twin[i]}`);
  const params = T.params.filter(([, values]) => values[i] !== null && values[i] !== undefined);
  const list = (pairs) => el('table', {}, el('tbody', {}, pairs.map(([name, value]) => el('tr', {}, el('td', {class: 'name'}, name), el('td', {}, value)))));
  const dialog = $('detail');
  dialog.replaceChildren(
    el('div', {class: 'head'}, el('h2', {id: 'detail-title'}, `Trial ${T.number[i]}`), el('button', {type: 'button', onclick: () => dialog.close()}, 'Close')),
    list(rows), params.length ? el('h3', {css: {'margin-top': '16px'}}, 'Parameters') : '', list(params.map(([name, values]) => [name, fmt(values[i])])),
    el('p', {class: 'note under'}, `Again alone: hpcmass sweep rerun ${STUDY.name} ${T.number[i]}`));
  dialog.showModal();
}

// Sections with what stands over them.
function section(id, title, note, ...tools) {
  const box = el('section', {id, 'aria-labelledby': `${id}-title`}, el('div', {class: 'head'}, el('div', {},
    el('h2', {id: `${id}-title`}, title), note ? el('p', {class: 'note'}, note) : null), tools.length ? el('div', {class: 'tools'}, tools) : null));
  $('main').append(box);
  $('nav').append(el('a', {href: `#${id}`}, title));
  return box;
}
const message = (box, text) => box.append(el('p', {class: 'message'}, text));
const choice = (label, options, change, chosen = 0) => el('label', {}, label, el('select', {onchange: (e) => change(Number(e.target.value))},
  options.map((text, i) => el('option', {value: i, selected: i === chosen}, text))));
const tick = (label, checked, change) => el('label', {}, el('input', {type: 'checkbox', checked, onchange: (e) => change(e.target.checked)}), label);
