// History, importances, slices, the front.
function history() {
  let k = 0, log = false, byTime = false;
  const timed = T.ended.some(isNumber);
  const box = section('history', 'History', null,
    SEVERAL ? choice('objective', STUDY.objectives.map((one) => one[0]), (v) => { k = v; p.redraw(); }) : null,
    timed ? choice('by', ['number', 'time of the end'], (v) => { byTime = v === 1; p.redraw(); }) : null,
    measured(STUDY.objectives[0][0]).every((v) => !isNumber(v) || v > 0) ? tick('log', false, (v) => { log = v; p.redraw(); }) : null);
  const shown = ['complete', 'running', 'pruned', 'failed'].filter((s) => COUNTS[s]);
  const legend = el('ul', {class: 'key'}, shown.map((s) => el('li', {}, mark(s), s)), el('li', {}, mark('best'), 'best so far'));
  box.append(legend);
  const beyond = el('p', {class: 'note'});
  if (!N) { message(box, 'There is no trial yet.'); legend.remove(); return; }
  let points = [];
  const p = plot(box, {
    label: `Value of each trial, and the best so far; ${N} trials. The table of trials has the numbers.`,
    view(w) {
      const values = measured(STUDY.objectives[k][0]);
      const place = (i) => byTime ? T.ended[i] : T.number[i];
      const y = scaleOfValues(values.filter((_, i) => T.state[i] !== 'failed'), signOf(k), {log});
      const at = T.number.map((_, i) => place(i)).filter(isNumber);
      const low = at.reduce((a, b) => Math.min(a, b), Infinity), high = at.reduce((a, b) => Math.max(a, b), -Infinity);
      const pad = Math.max(1, (high - low) * 0.015);
      const x = byTime ? times(low, high) : linear(low - pad, high + pad);
      if (!byTime) { const all = x.ticks; x.ticks = (n) => all(n).filter(([v]) => v >= 0 && Number.isInteger(v)); }
      return {height: w < 500 ? 290 : 360, x, y, values, place, yName: `${STUDY.objectives[k][0]} (${STUDY.objectives[k][1]})`, xName: byTime ? 'time' : 'trial'};
    },
    draw(c, g) {
      const view = g.view, values = view.values, r = dotSize(N), sign = signOf(k);
      let out = 0;
      points = [];
      for (const state of ['failed', 'pruned', 'waiting', 'running', 'complete']) {
        c.strokeStyle = c.fillStyle = stateColour(state); c.lineWidth = 1.4; c.globalAlpha = dotAlpha(N);
        for (let i = 0; i < N; i++) {
          const s = ['lost', 'uncounted', 'paused'].includes(T.state[i]) ? 'waiting' : T.state[i], at = view.place(i);
          if (s !== state || !isNumber(at)) continue;
          const known = isNumber(values[i]) && s !== 'failed';
          if (!known && s !== 'failed') continue;
          let y = known ? g.Y(values[i]) : g.bottom - 5;
          if (known && (y > g.bottom || y < g.top)) { out++; y = y > g.bottom ? g.bottom - 2 : g.top + 2; }
          points.push({x: g.X(at), y, trial: i});
          drawMark(c, T.feasible[i] === false ? 'beyond' : s, g.X(at), y, s === 'complete' ? r : r * 0.9);
        }
      }
      c.globalAlpha = 1; c.strokeStyle = colour('best'); c.lineWidth = 2; c.beginPath();
      const order = T.number.map((_, i) => i).filter((i) => T.state[i] === 'complete' && T.feasible[i] !== false && isNumber(values[i]) && isNumber(view.place(i)));
      order.sort((a, b) => view.place(a) - view.place(b));
      let best = null;
      for (const i of order) {
        const X = g.X(view.place(i));
        if (best === null) { best = values[i]; c.moveTo(X, g.Y(best)); continue; }
        if (sign * values[i] < sign * best) { c.lineTo(X, g.Y(best)); best = values[i]; c.lineTo(X, g.Y(best)); }
      }
      if (best !== null) { c.lineTo(g.right, g.Y(best)); c.stroke(); }
      beyond.textContent = out ? `${count(out, 'value')} beyond the axis, drawn at its edge.` : '';
    },
    near: (mx, my) => nearest(points, mx, my),
  });
  box.append(beyond);
}

function importances() {
  const box = section('importances', 'Importances', 'How much each parameter matters to be among the best trials (PED-ANOVA): shares of 1.');
  const grid = box.appendChild(el('div', {class: 'two'}));
  for (const one of D.importances) {
    const part = grid.appendChild(el('div', {}, SEVERAL ? el('h3', {}, one.objective) : null));
    if (one.message) { part.append(el('p', {class: 'message'}, one.message)); continue; }
    const most = Math.max(...one.values.map(([, v]) => v));
    part.append(el('div', {class: 'bars', role: 'list'}, one.values.slice(0, 24).map(([name, v]) => [
      el('div', {class: 'name', role: 'listitem'}, name), el('div', {class: 'track', 'aria-hidden': 'true'}, el('div', {class: 'fill', css: {width: `${100 * v / most}%`}})),
      el('div', {class: 'amount'}, v < 0.005 ? '< 0.01' : v.toFixed(2))])));
    part.append(el('p', {class: 'note under'}, `from ${count(one.trials, 'complete trial')}` + (one.values.length > 24 ? `; ${one.values.length - 24} more below 0.01` : '')));
  }
}

function slices() {
  let k = 0;
  const box = section('slices', 'Slices', 'Each parameter against the objective; stronger colours are later trials.',
    SEVERAL ? choice('objective', STUDY.objectives.map((one) => one[0]), (v) => { k = v; all.forEach((p) => p.redraw()); }) : null);
  const grid = box.appendChild(el('div', {class: 'grid'})), all = [];
  const shown = T.params.filter(([, values]) => values.some((v) => v !== null && v !== undefined)).slice(0, 36);
  if (!shown.length || !COUNTS.complete && !COUNTS.pruned) { message(box, 'No trial has a value yet.'); return; }
  for (const [name, column] of shown) {
    const part = grid.appendChild(el('div', {}, el('h3', {class: 'name'}, name)));
    let points = [];
    all.push(plot(part, {
      label: `${name} against the objective`,
      view(w) {
        const values = measured(STUDY.objectives[k][0]);
        return {height: Math.round(Math.min(230, w * 0.72)), x: scaleOf(name, column, 0.03), y: scaleOfValues(values.filter((_, i) => T.state[i] !== 'failed'), signOf(k)), values, top: 8};
      },
      draw(c, g) {
        const view = g.view, shade = ramp(), r = Math.max(1.5, dotSize(N) - 0.8), category = view.x.kind === 'category';
        const step = (g.right - g.left) / (category ? view.x.values.length : 1);
        points = []; c.globalAlpha = dotAlpha(N);
        for (let i = 0; i < N; i++) {
          if (T.state[i] === 'failed' || !isNumber(view.values[i]) || column[i] === null || column[i] === undefined) continue;
          // Of a category the points lie side by side, always in the same way.
          const aside = category ? (((i * 0.618034) % 1) - 0.5) * Math.min(40, step * 0.55) : 0;
          const x = g.X(column[i]) + aside, y = Math.min(g.bottom - 1, Math.max(g.top + 1, g.Y(view.values[i])));
          if (!Number.isFinite(x)) continue;
          c.fillStyle = c.strokeStyle = shade(0.25 + 0.75 * (N > 1 ? i / (N - 1) : 1)); c.lineWidth = 1.2;
          drawMark(c, T.state[i], x, y, r);
          points.push({x, y, trial: i});
        }
        c.globalAlpha = 1;
        for (const i of D.front) {
          if (!isNumber(view.values[i]) || column[i] === null || column[i] === undefined) continue;
          const mine = points.find((q) => q.trial === i);
          if (!mine) continue;
          c.strokeStyle = colour('best'); c.lineWidth = 2; c.beginPath(); c.arc(mine.x, mine.y, r + 3, 0, 7); c.stroke();
        }
      },
      near: (mx, my) => nearest(points, mx, my),
    }));
  }
  box.append(el('p', {class: 'note under'}, SEVERAL ? 'Ringed: the Pareto front.' : 'Ringed: the best trial.'));
}

function front() {
  if (!SEVERAL) return;
  const names = STUDY.objectives.map((one) => one[0]);
  let a = 0, b = 1;
  const box = section('front', 'Pareto front', `${count(D.front.length, 'trial')} that no other is as good as in everything and better in something.`,
    names.length > 2 ? [choice('across', names, (v) => { a = v; p.redraw(); }, 0), choice('up', names, (v) => { b = v; p.redraw(); }, 1)] : null);
  let points = [];
  const p = plot(box, {
    label: 'The trials by two objectives, with the Pareto front',
    view(w) {
      const xs = measured(names[a]), ys = measured(names[b]);
      return {height: w < 500 ? 320 : 420, x: scaleOfValues(xs, signOf(a)), y: scaleOfValues(ys, signOf(b)), xs, ys,
        xName: `${names[a]} (${STUDY.objectives[a][1]})`, yName: `${names[b]} (${STUDY.objectives[b][1]})`};
    },
    draw(c, g) {
      const view = g.view, r = dotSize(N);
      const put = (i) => {
        const x = Math.min(g.right, Math.max(g.left, g.X(view.xs[i]))), y = Math.min(g.bottom, Math.max(g.top, g.Y(view.ys[i])));
        points.push({x, y, trial: i}); return [x, y];
      };
      points = []; c.globalAlpha = 0.45; c.fillStyle = c.strokeStyle = colour('waiting'); c.lineWidth = 1.4;
      for (let i = 0; i < N; i++) if (!T.front[i] && T.state[i] === 'complete' && isNumber(view.xs[i]) && isNumber(view.ys[i])) drawMark(c, T.feasible[i] === false ? 'beyond' : 'complete', ...put(i), r);
      c.globalAlpha = 1;
      if (names.length === 2 && D.front.length > 1) {
        const line = D.front.filter((i) => isNumber(view.xs[i]) && isNumber(view.ys[i])).sort((i, j) => signOf(a) * (view.xs[i] - view.xs[j]));
        c.strokeStyle = colour('best'); c.lineWidth = 1.5; c.beginPath();
        line.forEach((i, n) => { const x = g.X(view.xs[i]), y = g.Y(view.ys[i]); if (n) { c.lineTo(x, g.Y(view.ys[line[n - 1]])); c.lineTo(x, y); } else c.moveTo(x, y); });
        c.stroke();
      }
      c.fillStyle = colour('best');
      for (const i of D.front) if (isNumber(view.xs[i]) && isNumber(view.ys[i])) drawMark(c, 'complete', ...put(i), Math.max(3.2, r + 0.8));
    },
    near: (mx, my) => nearest(points, mx, my),
  });
  box.append(el('ul', {class: 'key'}, el('li', {}, svg('svg', {width: 12, height: 12, 'aria-hidden': 'true'}, svg('circle', {cx: 6, cy: 6, r: 4.5, css: {fill: 'var(--best)'}})), 'front'),
    el('li', {}, mark('waiting'), 'beyond a constraint'), el('li', {}, svg('svg', {width: 12, height: 12, 'aria-hidden': 'true'}, svg('circle', {cx: 6, cy: 6, r: 4, css: {fill: 'var(--waiting)'}})), 'other complete trials')));
}
