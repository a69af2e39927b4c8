// Parallel coordinates: a line a trial. Dragging along an axis keeps those that pass there.
function parallel() {
  let k = 0;
  const box = section('parallel', 'Parallel coordinates', 'A line a trial, the best on top. Drag along an axis to keep what passes there; click it to let go.',
    SEVERAL ? choice('colour', STUDY.objectives.map((one) => one[0]), (v) => { k = v; ranks = ranksOf(k); paint(); }) : null,
    el('button', {type: 'button', onclick: () => { kept.clear(); paint(); }}, 'Clear'));
  const order = new Map((D.importances[0].values || []).map(([name, v]) => [name, v]));
  const params = T.params.filter(([, values]) => values.some((v) => v !== null && v !== undefined))
    .sort((x, y) => (order.get(y[0]) || 0) - (order.get(x[0]) || 0)).slice(0, 20);
  const axes = [...params.map(([name, values]) => ({name, values, scale: scaleOf(name, values)})),
    ...STUDY.objectives.map(([name, direction], i) => ({name, values: measured(name), scale: scaleOfValues(measured(name).filter((_, j) => T.state[j] !== 'failed'), signOf(i)), objective: true, direction}))];
  const usable = T.number.map((_, i) => i).filter((i) => T.state[i] !== 'failed' && isNumber(measured(STUDY.objectives[0][0])[i]));
  if (!usable.length || axes.length < 2) { message(box, 'No trial has a value yet.'); return; }
  const kept = new Map(); // axis -> [low, high] of 0…1
  const status = el('p', {class: 'note under', 'aria-live': 'polite', id: 'parallel-kept'});
  let ranks = ranksOf(k), drawn = [], lit = null, width = 0;
  const scroll = box.appendChild(el('div', {class: 'scroll'})), canvas = el('canvas', {'aria-hidden': 'true'});
  const over = svg('svg', {role: 'img', 'aria-label': 'Parallel coordinates of the parameters and objectives'});
  const plane = scroll.appendChild(el('div', {class: 'plot'}, canvas, over));
  box.append(status);
  const STRONG = 250, H = 360, TOP = 40, BOTTOM = H - 34, gone = H - 12, EDGE = 46;
  const X = (a) => EDGE + a * (width - 2 * EDGE) / (axes.length - 1);
  const share = (axis, i) => { const v = axis.values[i]; 
    if (v === null || v === undefined) return NaN;
    // Lines of one category lie a little apart, so that it shows how many they are.
    const aside = axis.scale.kind === 'category' ? (((i * 0.618034) % 1) - 0.5) * 0.4 / axis.scale.values.length : 0;
    return Math.min(1, Math.max(0, axis.scale.map(v) + aside));
  };
  const Y = (s) => Number.isNaN(s) ? gone : BOTTOM - s * (BOTTOM - TOP);
  // Places of all trials on all axes, once.
  const table = axes.map((axis) => Float64Array.from(T.number, (_, i) => share(axis, i)));
  const passes = (i) => [...kept].every(([a, [low, high]]) => table[a][i] >= low && table[a][i] <= high);
  const line = (c, i) => { c.beginPath(); axes.forEach((_, a) => c[a ? 'lineTo' : 'moveTo'](X(a), Y(table[a][i]))); c.stroke(); };
  function paint() {
    width = Math.max(Math.floor(scroll.clientWidth), 60 + axes.length * 92);
    plane.style.width = `${width}px`; plane.style.height = `${H}px`;
    const dpr = Math.min(2, devicePixelRatio || 1), c = canvas.getContext('2d');
    canvas.width = width * dpr; canvas.height = H * dpr; canvas.style.width = `${width}px`; canvas.style.height = `${H}px`;
    c.setTransform(dpr, 0, 0, dpr, 0, 0);
    const shade = ramp();
    drawn = usable.filter(passes).sort((i, j) => (ranks[i] || 0) - (ranks[j] || 0));
    // Of many the best in full strength, the others as a veil, or nothing would be told apart.
    const strong = drawn.length > 2 * STRONG ? drawn.length - STRONG : 0;
    c.lineWidth = 1.2; c.strokeStyle = colour('waiting'); c.globalAlpha = Math.max(0.02, Math.min(0.3, 90 / drawn.length));
    for (const i of drawn.slice(0, strong)) line(c, i);
    c.globalAlpha = 0.85;
    drawn.slice(strong).forEach((i, n) => { c.strokeStyle = shade(strong ? n / STRONG : ranks[i] || 0); line(c, i); });
    over.setAttribute('width', width); over.setAttribute('height', H);
    over.replaceChildren();
    axes.forEach((axis, a) => axisOf(axis, a));
    over.append(lightOf(lit));
    status.textContent = kept.size ? `${count(drawn.length, 'trial')} of ${fmt(usable.length)} kept.` : `${count(usable.length, 'trial')}.`;
    if (strong) status.textContent += ` The ${STRONG} best of them in full strength.`;
  }
  function lightOf(i) {
    const d = i === null ? '' : axes.map((_, a) => `${a ? 'L' : 'M'}${X(a)} ${Y(table[a][i])}`).join('');
    return svg('path', {id: 'parallel-lit', d, fill: 'none', css: {stroke: 'var(--best)'}, 'stroke-width': 3, 'pointer-events': 'none'});
  }
  function axisOf(axis, a) {
    const x = X(a), gap = (width - 2 * EDGE) / Math.max(1, axes.length - 1);
    const group = over.appendChild(svg('g', {}));
    group.append(svg('line', {class: 'base', x1: x, x2: x, y1: TOP, y2: BOTTOM, css: {stroke: 'var(--soft)'}}));
    const most = Math.floor((a === axes.length - 1 ? Math.min(gap, 2 * EDGE) : gap) / 7.2);
    group.append(svg('text', {x, y: 14, 'text-anchor': 'middle', class: 'name', css: axis.objective ? {'font-weight': 700} : {}}, cut(axis.name, most), svg('title', {}, axis.name)));
    if (axis.objective) group.append(svg('text', {x, y: 29, 'text-anchor': 'middle'}, axis.direction));
    const ticks = axis.scale.ticks(5), every = Math.ceil(ticks.length / 14);
    ticks.forEach(([v, text], n) => {
      const y = Y(axis.scale.map(v));
      if (n % every || y < TOP - 1 || y > BOTTOM + 1) return;
      const label = svg('text', {x: x + 6, y: y + 4, class: 'tick'}, cut(text, Math.floor(gap / 8)));
      group.append(svg('line', {class: 'base', x1: x - 3, x2: x + 3, y1: y, y2: y, css: {stroke: 'var(--soft)'}}), label);
    });
    if (table[a].some((s, i) => Number.isNaN(s) && T.state[i] !== 'failed')) group.append(svg('text', {x: x + 8, y: gone + 4, class: 'tick'}, 'not there'));
    const range = kept.get(a);
    if (range) group.append(svg('rect', {class: 'brush', x: x - 9, width: 18, y: Y(range[1]), height: Math.max(2, Y(range[0]) - Y(range[1]))}));
    const grip = group.appendChild(svg('rect', {class: 'wide', x: x - 14, width: 28, y: TOP - 8, height: BOTTOM - TOP + 16, 'data-axis': axis.name}));
    grip.addEventListener('pointerdown', (event) => brush(event, a));
  }
  function brush(event, a) {
    event.preventDefault();
    const box = plane.getBoundingClientRect();
    const at = (e) => Math.min(1, Math.max(0, (BOTTOM - (e.clientY - box.top)) / (BOTTOM - TOP)));
    const from = at(event);
    let moved = false, waiting = false;
    const move = (e) => {
      const to = at(e);
      moved = moved || Math.abs(to - from) > 0.012;
      if (!moved) return;
      kept.set(a, [Math.min(from, to), Math.max(from, to)]);
      if (!waiting) { waiting = true; requestAnimationFrame(() => { waiting = false; paint(); }); }
    };
    const up = () => { removeEventListener('pointermove', move); removeEventListener('pointerup', up); if (!moved) kept.delete(a); paint(); };
    addEventListener('pointermove', move); addEventListener('pointerup', up);
    hideTip();
  }
  function under(event) {
    const r = plane.getBoundingClientRect(), mx = event.clientX - r.left, my = event.clientY - r.top;
    const a = Math.min(axes.length - 2, Math.max(0, Math.floor((mx - EDGE) / (X(1) - X(0))))), part = Math.min(1, Math.max(0, (mx - X(a)) / (X(1) - X(0))));
    let found = null, best = 10;
    for (const i of drawn) {
      const y0 = Y(table[a][i]), d = Math.abs(y0 + (Y(table[a + 1][i]) - y0) * part - my);
      if (d <= best) { best = d; found = i; }
    }
    return found;
  }
  const light = (i) => { if (i === lit) return; lit = i; $('parallel-lit')?.replaceWith(lightOf(i)); };
  plane.addEventListener('pointermove', (event) => {
    if (event.buttons) return;
    const i = under(event);
    light(i);
    if (i === null) hideTip(); else trialTip(event.clientX, event.clientY, i);
  });
  plane.addEventListener('pointerleave', () => { hideTip(); light(null); });
  plane.addEventListener('click', (event) => { if (!event.target.classList.contains('wide')) { const i = under(event); if (i !== null) showTrial(i); } });
  let seen = scroll.clientWidth;
  new ResizeObserver(() => { if (scroll.clientWidth !== seen) { seen = scroll.clientWidth; paint(); } }).observe(scroll);
  PLOTS.push(paint);
  paint();
}
