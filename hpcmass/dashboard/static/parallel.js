// Trials as lines over one axis a parameter, coloured from the worst to the best.
import {el, fmt, isNumber, note, svg} from './dom.js';

const MOST_AXES = 8, HIGH = 240, T = 26, B = 22;

// trials: [number, order, state, value, feasible, params]
export function parallel(trials, [metric, direction]) {
  const kept = trials.filter((t) => t[2] === 'complete' && isNumber(t[3]));
  const names = [...new Set(kept.flatMap((t) => Object.keys(t[5])))].slice(0, MOST_AXES);
  if (kept.length < 2 || !names.length) return note('Too few complete trials to draw.');
  const sign = direction === 'minimize' ? 1 : -1;
  // The best last, so that it lies on top.
  const ordered = [...kept].sort((a, b) => sign * (b[3] - a[3]));
  const axes = [...names.map((name) => axis(name, kept.map((t) => t[5][name]))), axis(metric, kept.map((t) => t[3]))];
  const box = el('figure', {class: 'chart'});
  const draw = () => {
    const wide = Math.max(axes.length * 84, Math.round(box.clientWidth) || 600);
    if (box.dataset.wide === String(wide)) return;
    box.dataset.wide = wide;
    box.replaceChildren(el('div', {class: 'scroll', tabindex: 0, role: 'region', 'aria-label': 'Parameters of the trials, drawn'}, picture(ordered, axes, wide)),
      el('figcaption', {}, el('span', {class: 'scale'}, 'worst', el('i', {}), 'best')));
  };
  new ResizeObserver(draw).observe(box);
  return box;
}

function axis(name, values) {
  const numbers = values.filter(isNumber);
  if (numbers.length < values.filter((v) => v !== undefined && v !== null).length) {
    const texts = [...new Set(values.filter((v) => v !== undefined && v !== null).map(String))].sort();
    return {name, low: texts[0], high: texts[texts.length - 1], at: (v) => v === undefined || v === null ? NaN : texts.length > 1 ? texts.indexOf(String(v)) / (texts.length - 1) : 0.5};
  }
  const low = Math.min(...numbers), high = Math.max(...numbers);
  const log = low > 0 && high > 20 * low, scale = log ? Math.log : (v) => v;
  return {name, low: fmt(low), high: fmt(high), at: (v) => !isNumber(v) ? NaN : high === low ? 0.5 : (scale(v) - scale(low)) / (scale(high) - scale(low))};
}

function picture(trials, axes, wide) {
  const x = (place) => 8 + place * (wide - 16) / (axes.length - 1), y = (share) => HIGH - B - share * (HIGH - T - B);
  const root = svg('svg', {class: 'plotted parallel', viewBox: `0 0 ${wide} ${HIGH}`, width: wide, height: HIGH, role: 'img', 'aria-label': `${trials.length} trials over ${axes.map((one) => one.name).join(', ')}`});
  trials.forEach((t, place) => {
    const values = axes.map((one, i) => one.at(i === axes.length - 1 ? t[3] : t[5][one.name]));
    let d = '';
    values.forEach((v, i) => { if (isNumber(v)) d += `${i > 0 && isNumber(values[i - 1]) ? 'L' : 'M'}${x(i).toFixed(1)} ${y(v).toFixed(1)}`; });
    const share = trials.length > 1 ? place / (trials.length - 1) : 1;
    root.append(svg('path', {d, class: place === trials.length - 1 ? 'top' : '', css: {stroke: `var(--r${Math.min(3, Math.floor(share * 4))})`}}, svg('title', {}, `trial ${t[0]}: ${fmt(t[3])}`)));
  });
  axes.forEach((one, place) => {
    const anchor = place === 0 ? 'start' : place === axes.length - 1 ? 'end' : 'middle', at = place === 0 ? 4 : place === axes.length - 1 ? wide - 4 : x(place);
    const [side, end] = place === axes.length - 1 ? [-6, 'end'] : [6, 'start'];
    const name = one.name.length > 16 ? `${one.name.slice(0, 15)}…` : one.name;
    root.append(svg('path', {class: 'axis', d: `M${x(place)} ${T}V${HIGH - B}`}), svg('text', {x: at, y: 11, 'text-anchor': anchor, class: 'name'}, name, svg('title', {}, one.name)),
      svg('text', {x: x(place) + side, y: T + 4, 'text-anchor': end}, one.high), svg('text', {x: x(place) + side, y: HIGH - B, 'text-anchor': end}, one.low));
  });
  return root;
}
