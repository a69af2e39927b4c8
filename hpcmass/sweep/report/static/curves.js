// Learning curves.
function curves() {
  const C = D.curves;
  const box = section('curves', 'Learning curves', C.trials.length < C.of ? `${count(C.trials.length, 'trial')} of ${fmt(C.of)}: the best, the newest, and a sample of the others.` : null,
    C.names.length > 1 ? choice('curve', C.names, (v) => { name = C.names[v]; log = false; p.redraw(); }) : null,
    C.names.length ? tick('log', false, (v) => { log = v; p.redraw(); }) : null);
  if (!C.names.length) { message(box, 'No trial has reported a value at a step yet.'); return; }
  let name = C.names[0], log = false, lines = [], lit = null;
  const best = new Set(D.front.slice(0, SEVERAL ? 12 : 1));
  const lower = (text) => STUDY.objectives.some(([n, d]) => text.endsWith(` ${n}`) && d === 'maximize') ? -1 : 1;
  const p = plot(box, {
    label: 'Learning curves of trials',
    view(w) {
      const mine = C.trials.filter(([, series]) => series[name]);
      const steps = mine.flatMap(([, s]) => s[name][0]), values = mine.flatMap(([, s]) => s[name][1]);
      const most = steps.reduce((a, b) => Math.max(a, b), 0), least = steps.reduce((a, b) => Math.min(a, b), most);
      return {height: w < 500 ? 300 : 380, x: linear(least === most ? 0 : least, most), y: scaleOfValues(values, lower(name), {log}), mine, yName: name, xName: 'step'};
    },
    draw(c, g) {
      const view = g.view, many = view.mine.length;
      lines = [];
      const put = (number, series, style, width, alpha) => {
        const path = series[0].map((s, i) => [g.X(s), Math.min(g.bottom + 4, Math.max(g.top - 4, g.Y(series[1][i])))]);
        c.strokeStyle = c.fillStyle = style; c.lineWidth = width; c.globalAlpha = alpha; c.beginPath();
        path.forEach(([x, y], i) => c[i ? 'lineTo' : 'moveTo'](x, y));
        c.stroke();
        if (path.length === 1) { c.beginPath(); c.arc(...path[0], 2.5, 0, 7); c.fill(); }
        return path;
      };
      const rank = (n) => best.has(n) ? 2 : T.state[n] === 'complete' ? 1 : 0;
      for (const [number, series] of [...view.mine].sort((x, y) => rank(x[0]) - rank(y[0]))) {
        const top = best.has(number), style = top ? colour('best') : stateColour(T.state[number]);
        lines.push({number, series: series[name], path: put(number, series[name], style, top ? 2.4 : 1.2, top ? 1 : many > 60 ? 0.4 : 0.65)});
      }
      const mine = lit === null ? null : lines.find((one) => one.number === lit);
      if (mine) put(mine.number, mine.series, colour('ink'), 2.6, 1);
      c.globalAlpha = 1;
    },
    near(mx, my) {
      let found = null, reach = 16;
      for (const one of lines) {
        for (let i = 0; i < one.path.length; i++) {
          const [x, y] = one.path[i], [u, v] = one.path[Math.min(i + 1, one.path.length - 1)];
          const part = u > x ? Math.min(1, Math.max(0, (mx - x) / (u - x))) : 0;
          const d = Math.hypot(x + (u - x) * part - mx, y + (v - y) * part - my);
          if (d < reach) { reach = d; found = {trial: one.number, at: part > 0.5 ? Math.min(i + 1, one.path.length - 1) : i, one}; }
        }
      }
      if (!found) return null;
      if (lit !== found.trial) { lit = found.trial; p.redraw(); }
      const [x, y] = found.one.path[found.at], {series} = found.one;
      return {x, y, trial: found.trial, tip: (u, v) => showTip(u, v, `Trial ${found.trial}`, [['step', fmt(series[0][found.at])], [name, fmt(series[1][found.at])], ['state', stateWords(found.trial)]])};
    },
    lost() { if (lit !== null) { lit = null; p.redraw(); } },
  });
  const shown = ['complete', 'running', 'pruned', 'failed'].filter((s) => C.trials.some(([n]) => T.state[n] === s));
  const stroke = (state) => svg('svg', {width: 16, height: 8, 'aria-hidden': 'true'}, svg('path', {d: 'M0 4H16', fill: 'none', css: {stroke: `var(--${state})`}, 'stroke-width': 2.5}));
  box.append(el('ul', {class: 'key'}, best.size ? el('li', {}, stroke('best'), SEVERAL ? 'Pareto front' : 'best') : null, shown.map((s) => el('li', {}, stroke(s), s))));
}
