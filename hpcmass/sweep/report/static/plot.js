// A plot: marks on a canvas, which bears ten thousand of them, axes and words in SVG over it.
const PLOTS = [];
const ruler = document.createElement('canvas').getContext('2d');
const textWidth = (text) => { ruler.font = '12px system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif'; return ruler.measureText(text).width; };

function plot(host, spec) {
  const under = svg('svg', {'aria-hidden': 'true'}), canvas = el('canvas', {'aria-hidden': 'true'}), over = svg('svg', {role: 'img', 'aria-label': spec.label || ''});
  const box = el('div', {class: 'plot'}, under, canvas, over);
  host.append(box);
  let g = null, wide = 0;
  const redraw = () => {
    const w = Math.floor(box.clientWidth);
    if (w < 40) return;
    wide = w;
    const view = spec.view(w), h = view.height;
    box.style.height = `${h}px`;
    const dpr = Math.min(3, devicePixelRatio || 1);
    canvas.width = w * dpr; canvas.height = h * dpr;
    canvas.style.width = `${w}px`; canvas.style.height = `${h}px`;
    for (const layer of [under, over]) { layer.setAttribute('width', w); layer.setAttribute('height', h); layer.replaceChildren(); }
    const c = canvas.getContext('2d');
    c.setTransform(dpr, 0, 0, dpr, 0, 0);
    c.clearRect(0, 0, w, h);
    g = frame(under, over, view, w, h);
    g.view = view;
    c.save();
    c.beginPath(); c.rect(g.left - 6, g.top - 6, g.right - g.left + 12, g.bottom - g.top + 12); c.clip();
    spec.draw(c, g);
    c.restore();
    if (spec.after) spec.after(over, g);
    g.ring = over.appendChild(svg('circle', {class: 'mark', r: 7, visibility: 'hidden'}));
  };
  const at = (event) => { const r = box.getBoundingClientRect(); return [event.clientX - r.left, event.clientY - r.top]; };
  const look = (event) => {
    if (!g || !spec.near) return null;
    const found = spec.near(...at(event), g);
    if (!found) { hideTip(); g.ring.setAttribute('visibility', 'hidden'); box.style.cursor = ''; if (spec.lost) spec.lost(); return null; }
    if (isNumber(found.x)) { g.ring.setAttribute('cx', found.x); g.ring.setAttribute('cy', found.y); g.ring.setAttribute('visibility', 'visible'); }
    box.style.cursor = found.trial === undefined ? '' : 'pointer';
    if (found.tip) found.tip(event.clientX, event.clientY); else trialTip(event.clientX, event.clientY, found.trial);
    return found;
  };
  box.addEventListener('pointermove', look);
  box.addEventListener('pointerleave', () => { hideTip(); if (g && g.ring) g.ring.setAttribute('visibility', 'hidden'); if (spec.lost) spec.lost(); });
  box.addEventListener('click', (event) => { if (box.dragged) return; const found = look(event); if (found && found.trial !== undefined) showTrial(found.trial); });
  new ResizeObserver(() => { if (Math.floor(box.clientWidth) !== wide) redraw(); }).observe(box);
  PLOTS.push(redraw);
  redraw();
  return {redraw, box, canvas, over, at, frame: () => g};
}
function frame(under, over, view, w, h) {
  const {x, y} = view, top = view.top ?? (view.yName ? 26 : 10);
  const bottom = h - (x ? 24 : 6) - (view.xName ? 18 : 0);
  const yTicks = y ? y.ticks(Math.max(2, Math.min(8, Math.floor((bottom - top) / 38)))) : [];
  const longest = Math.max(0, ...yTicks.map(([, text]) => textWidth(cut(text, 16))));
  const left = view.left ?? (y ? Math.ceil(longest) + 12 : 8), right = w - (view.right ?? 12);
  const g = {w, h, left, right, top, bottom, X: (v) => left + x.map(v) * (right - left), Y: (v) => bottom - y.map(v) * (bottom - top)};
  for (const [v, text] of yTicks) {
    const at = Math.round(g.Y(v)) + 0.5;
    under.append(svg('line', {class: 'rule', x1: left, x2: right, y1: at, y2: at}));
    over.append(svg('text', {x: left - 8, y: at + 4, 'text-anchor': 'end'}, cut(text, 16)));
  }
  over.append(svg('line', {class: 'base', x1: left, x2: right, y1: bottom + 0.5, y2: bottom + 0.5}));
  if (x) xTicks(over, x, g);
  if (view.yName) over.append(svg('text', {x: 0, y: 12, class: 'name'}, cut(view.yName, Math.floor(w / 7))));
  if (view.xName) over.append(svg('text', {x: right, y: h - 4, 'text-anchor': 'end', class: 'name'}, cut(view.xName, Math.floor(w / 7))));
  return g;
}
function xTicks(over, x, g) {
  const wide = g.right - g.left;
  let ticks = x.ticks(Math.max(2, Math.floor(wide / (x.kind === 'time' || wide > 500 ? 84 : 52))));
  const most = x.kind === 'category' ? Math.max(3, Math.floor(wide / ticks.length / 7)) : 14;
  ticks = ticks.map(([v, text]) => [g.X(v), cut(text, most)]);
  let end = -Infinity;
  for (const [at, text] of ticks) {
    const half = textWidth(text) / 2, middle = Math.max(half, Math.min(at, g.w - half));
    over.append(svg('line', {class: 'base', x1: at, x2: at, y1: g.bottom, y2: g.bottom + 4}));
    if (middle - half < end + 6) continue; // it would overlap
    over.append(svg('text', {x: middle, y: g.bottom + 18, 'text-anchor': 'middle'}, text));
    end = middle + half;
  }
}
const cut = (text, most) => { const chars = [...String(text)]; return chars.length > most ? chars.slice(0, Math.max(1, most - 1)).join('') + '…' : String(text); };
// The nearest of many points, within reach of a finger.
function nearest(points, mx, my, reach = 22) {
  let found = null, best = reach * reach;
  for (const p of points) { const d = (p.x - mx) ** 2 + (p.y - my) ** 2; if (d < best) { best = d; found = p; } }
  return found;
}
const dotSize = (n) => n > 3000 ? 1.6 : n > 600 ? 2.2 : n > 120 ? 3 : 3.8;
const dotAlpha = (n) => n > 3000 ? 0.5 : n > 600 ? 0.7 : 0.9;
