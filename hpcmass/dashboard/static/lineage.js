// A version's lineage as a picture: what was before on the left, what was made of it on the right.
import {el, svg, to} from './dom.js';

const WIDE = 184, HIGH = 46, GAP_X = 54, GAP_Y = 14;
const WORDS = {dataset: 'data set', run: 'run', weights: 'weights', version: 'model', alias: 'alias', deployment: 'deployment'};

// Columns: the longest way from what nothing was before; a circle, which no honest record has, ends the walk.
function columns(nodes, edges) {
  const place = new Map(nodes.map((one) => [one.key, 0]));
  for (let round = 0; round < nodes.length; round++) {
    let moved = false;
    for (const {from, to: target} of edges) {
      const wanted = place.get(from) + 1;
      if (from !== target && wanted > place.get(target) && wanted < nodes.length) { place.set(target, wanted); moved = true; }
    }
    if (!moved) break;
  }
  // What begins a line stands right before the first that was made of it.
  for (const one of nodes) {
    const after = edges.filter((edge) => edge.from === one.key).map((edge) => place.get(edge.to));
    if (!edges.some((edge) => edge.to === one.key) && after.length) place.set(one.key, Math.max(0, Math.min(...after) - 1));
  }
  const listed = [];
  for (const one of nodes) (listed[place.get(one.key)] ||= []).push(one);
  return listed.filter(Boolean);
}

export function lineage(graph) {
  if (!graph || !graph.nodes) return el('p', {class: 'message'}, 'Its lineage is not known.');
  const known = new Set(graph.nodes.map((one) => one.key));
  const edges = graph.edges.filter((edge) => known.has(edge.from) && known.has(edge.to));
  const listed = columns(graph.nodes, edges), at = new Map();
  listed.forEach((column, x) => {
    if (x > 0) column.sort((a, b) => middle(a, edges, at) - middle(b, edges, at));
    column.forEach((one, y) => at.set(one.key, {x, y}));
  });
  const most = Math.max(...listed.map((column) => column.length));
  const wide = listed.length * (WIDE + GAP_X) - GAP_X + 8, high = most * (HIGH + GAP_Y) - GAP_Y + 8;
  const left = (key) => 4 + at.get(key).x * (WIDE + GAP_X);
  const top = (key) => {
    const {x, y} = at.get(key);
    return 4 + y * (HIGH + GAP_Y) + (most - listed[x].length) * (HIGH + GAP_Y) / 2;
  };
  const root = svg('svg', {class: 'graph', width: wide, height: high, viewBox: `0 0 ${wide} ${high}`, role: 'group', 'aria-label': 'Lineage'});
  for (const edge of edges) {
    const x1 = left(edge.from) + WIDE, y1 = top(edge.from) + HIGH / 2, x2 = left(edge.to), y2 = top(edge.to) + HIGH / 2;
    const bend = Math.max(24, Math.abs(x2 - x1) / 2);
    root.append(svg('path', {class: 'edge', d: `M${x1} ${y1}C${x1 + bend} ${y1} ${x2 - bend} ${y2} ${x2} ${y2}`}, svg('title', {}, edge.as)));
  }
  for (const one of graph.nodes) root.append(node(one, left(one.key), top(one.key), one.key === graph.root));
  const box = el('div', {class: 'scroll', tabindex: 0, role: 'region', 'aria-label': 'Lineage, drawn'}, root);
  // Where it does not fit, what was asked for is what is seen first.
  requestAnimationFrame(() => { if (!box.scrollLeft && at.has(graph.root)) box.scrollLeft = left(graph.root) + WIDE / 2 - box.clientWidth / 2; });
  return box;
}

const middle = (one, edges, at) => {
  const before = edges.filter((edge) => edge.to === one.key && at.has(edge.from)).map((edge) => at.get(edge.from).y);
  return before.length ? before.reduce((a, b) => a + b, 0) / before.length : 99;
};

function node(one, x, y, root) {
  const name = String(one.kind === 'run' ? one.label.split('/').pop() : one.kind === 'dataset' && one.name || one.label);
  const short = name.length > 23 ? `${name.slice(0, 22)}…` : name;
  const box = svg('g', {class: `node ${one.kind}${root ? ' root' : ''}${one.note ? ' odd' : ''}`, transform: `translate(${x} ${y})`},
    svg('title', {}, one.note ? `${one.label}: ${one.note}` : one.label),
    svg('rect', {width: WIDE, height: HIGH, rx: 7}),
    svg('text', {x: 12, y: 18, class: 'kind'}, (WORDS[one.kind] || one.kind) + (one.note ? ` · ${one.note.split(':')[0].slice(0, 18)}` : '')),
    svg('text', {x: 12, y: 35}, short));
  const address = {version: () => to('models', one.label), deployment: () => to('deployments', one.label), alias: () => to('models', one.label), run: () => one.at ? to(...one.at) : null}[one.kind];
  const href = address && !one.note && !root ? address() : null;
  return href ? svg('a', {href}, box) : box;
}
