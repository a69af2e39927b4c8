// Curves and points as SVG, with axes, a legend, and what is under the pointer.
import {el, fmt, isNumber, span, svg} from './dom.js';

const SERIES = ['var(--c0)', 'var(--c1)', 'var(--c2)', 'var(--c3)', 'var(--c4)', 'var(--c5)'];
export const colourOf = (place) => SERIES[place % SERIES.length];

export function ticks(low, high, wanted) {
  const raw = (high - low) / Math.max(1, wanted), power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((one) => one * power).find((one) => one >= raw * 0.999) || raw;
  const found = [];
  for (let at = Math.ceil(low / step - 1e-9) * step; at <= high + step * 1e-9; at += step) found.push(Math.abs(at) < step * 1e-9 ? 0 : at);
  return found;
}

function extent(values, pad) {
  let low = Infinity, high = -Infinity;
  for (const v of values) if (isNumber(v)) { low = Math.min(low, v); high = Math.max(high, v); }
  if (low > high) return [0, 1];
  if (low === high) { const by = Math.abs(low) * 0.05 || 0.5; return [low - by, high + by]; }
  const by = (high - low) * pad;
  return [low - by, high + by];
}

// series: [{name, x, y, colour, line, points}]; options: height, xName, yName, log, zero, label, xText, rule
export function plot(series, options) {
  const box = el('figure', {class: 'chart'});
  const draw = () => {
    const wide = Math.max(260, Math.round(box.clientWidth) || 600);
    if (box.dataset.wide === String(wide)) return;
    box.dataset.wide = wide;
    box.replaceChildren(picture(series, {...options, wide}), legend(series));
  };
  new ResizeObserver(draw).observe(box);
  return box;
}

function legend(series) {
  if (series.length < 2) return '';
  return el('figcaption', {}, el('ul', {class: 'key'}, series.map((one) => el('li', {}, el('i', {class: one.points ? 'line point' : 'line', css: {background: one.colour}}), el('span', {class: 'name'}, one.name)))));
}

function picture(series, {wide, height = 220, xName, yName, log, zero, label, xText = fmt, yText = fmt, rule}) {
  const L = 58, R = 14, T = 12, B = 36, right = wide - R, bottom = height - B;
  const scale = (v) => log ? (v > 0 ? Math.log10(v) : NaN) : v;
  const [x0, x1] = extent(series.flatMap((one) => one.x), 0);
  let [y0, y1] = extent([...series.flatMap((one) => one.y.map(scale)), ...(isNumber(rule) ? [scale(rule)] : [])], 0.06);
  if (zero && !log) y0 = Math.min(0, y0);
  if (zero && y0 < 0 && series.every((one) => one.y.every((v) => !(v < 0)))) y0 = 0;
  const X = (v) => L + (v - x0) / (x1 - x0) * (right - L), Y = (v) => bottom - (scale(v) - y0) / (y1 - y0) * (bottom - T);
  const root = svg('svg', {class: 'plotted', viewBox: `0 0 ${wide} ${height}`, width: wide, height, role: 'img', 'aria-label': label});
  for (const at of ticks(y0, y1, 4)) {
    const y = bottom - (at - y0) / (y1 - y0) * (bottom - T);
    root.append(svg('path', {class: 'rule', d: `M${L} ${y}H${right}`}), svg('text', {x: L - 8, y: y + 4, 'text-anchor': 'end'}, yText(log ? Number((10 ** at).toPrecision(2)) : Number(at.toPrecision(6)))));
  }
  for (const at of ticks(x0, x1, Math.max(2, Math.floor(wide / 130)))) {
    root.append(svg('text', {x: X(at), y: bottom + 17, 'text-anchor': 'middle'}, xText(at)));
  }
  root.append(svg('path', {class: 'base', d: `M${L} ${bottom}H${right}`}));
  root.append(svg('text', {x: right, y: height - 4, 'text-anchor': 'end', class: 'axis'}, xName || ''));
  if (yName) root.append(svg('text', {x: L + 4, y: T + 2, class: 'axis'}, yName));
  if (isNumber(rule)) root.append(svg('path', {class: 'goal', d: `M${L} ${Y(rule)}H${right}`}), svg('text', {x: L + 6, y: Y(rule) - 5, class: 'axis'}, `goal ${yText(rule)}`));
  for (const one of series) {
    const places = one.x.map((x, i) => [X(x), Y(one.y[i])]).filter(([, y]) => Number.isFinite(y));
    if (one.points) for (const [x, y] of places) root.append(svg('circle', {cx: x.toFixed(1), cy: y.toFixed(1), r: places.length < 60 ? 4 : 2.6, class: 'dot', css: {fill: one.colour}}));
    else if (places.length === 1) root.append(svg('circle', {cx: places[0][0], cy: places[0][1], r: 3, css: {fill: one.colour}}));
    else if (places.length) root.append(svg('path', {class: 'curve', d: path(places, one.step), css: {stroke: one.colour}}));
  }
  pointing(root, series, {X, Y, L, right, T, bottom, xName, xText, yText});
  return root;
}

function path(places, step) {
  return places.map(([x, y], i) => i === 0 ? `M${x.toFixed(1)} ${y.toFixed(1)}` : step ? `H${x.toFixed(1)}V${y.toFixed(1)}` : `L${x.toFixed(1)} ${y.toFixed(1)}`).join('');
}

// The nearest value of each series is told beside the pointer.
function pointing(root, series, {X, L, right, T, bottom, xName, xText, yText}) {
  const line = svg('path', {class: 'pointed', d: ''}), tip = document.getElementById('tip');
  const leave = () => { line.setAttribute('d', ''); tip.hidden = true; };
  const area = svg('rect', {x: L, y: T, width: Math.max(0, right - L), height: bottom - T, fill: 'transparent'});
  area.addEventListener('pointermove', (event) => {
    const box = root.getBoundingClientRect(), at = (event.clientX - box.left) * root.viewBox.baseVal.width / box.width;
    const near = series.map((one) => {
      let best = -1;
      for (let i = 0; i < one.x.length; i++) if (isNumber(one.y[i]) && (best < 0 || Math.abs(X(one.x[i]) - at) < Math.abs(X(one.x[best]) - at))) best = i;
      return best < 0 ? null : {one, x: one.x[best], y: one.y[best], tell: one.tell && one.tell[best]};
    }).filter(Boolean);
    if (!near.length) return;
    const x = near.reduce((a, b) => Math.abs(X(a.x) - at) <= Math.abs(X(b.x) - at) ? a : b).x;
    line.setAttribute('d', `M${X(x)} ${T}V${bottom}`);
    tip.replaceChildren(el('b', {}, near[0].tell || `${xName} ${xText(x)}`), el('table', {}, el('tbody', {}, near.map((n) => el('tr', {}, el('td', {}, n.one.name), el('td', {}, yText(n.y)))))));
    tip.hidden = false;
    const left = event.clientX + 16 + tip.offsetWidth > innerWidth ? event.clientX - tip.offsetWidth - 12 : event.clientX + 16;
    tip.style.left = `${Math.max(4, left)}px`;
    tip.style.top = `${Math.min(innerHeight - tip.offsetHeight - 6, event.clientY + 14)}px`;
  });
  area.addEventListener('pointerleave', leave);
  root.append(line, area);
}

// A curve in a line of a table.
export function spark(values, {wide = 96, high = 24, label = ''} = {}) {
  const kept = values.filter(isNumber);
  if (kept.length < 2) return el('span', {class: 'soft'}, '–');
  const [low, top] = extent(kept, 0.08);
  const places = kept.map((v, i) => [2 + i / (kept.length - 1) * (wide - 4), high - 2 - (v - low) / (top - low) * (high - 4)]);
  return svg('svg', {class: 'spark', width: wide, height: high, viewBox: `0 0 ${wide} ${high}`, role: 'img', 'aria-label': label}, svg('path', {d: path(places)}));
}

export const bar = (share, label) => el('span', {class: 'progress', role: 'img', 'aria-label': label}, el('i', {css: {width: `${Math.round(1000 * Math.max(0, Math.min(1, share))) / 10}%`}}));
export {span};
