// When which slot worked on what; how much of their time was used; what it cost.
function timeline() {
  const W = D.time;
  let from = null, to = null;
  const again = el('button', {type: 'button', disabled: true, onclick: () => { from = to = null; again.disabled = true; both(); }}, 'Whole time');
  const box = section('time', 'Time line', 'A row a slot, a bar a trial. Drag to look closer.', again);
  if (!W.spans.length) { message(box, 'No trial has begun yet.'); return; }
  const low = Math.min(W.spans.reduce((a, s) => Math.min(a, s[1]), Infinity), ...W.blocks.map((b) => b[2] ?? Infinity));
  const high = W.spans.reduce((a, s) => Math.max(a, s[2]), -Infinity);
  const view = () => times(from ?? low, to ?? high);
  const targets = Object.keys(W.targets), lanes = W.lanes.length;
  const rows = targets.map((name) => {
    const one = W.targets[name];
    return el('tr', {}, el('td', {class: 'name'}, name), el('td', {class: 'num'}, fmt(one.slots)), el('td', {class: 'num'}, fmt(one.trials)), el('td', {class: 'num'}, hours(one.busy_s)),
      el('td', {class: 'num', 'data-used': name}, percent(one.used)), el('td', {class: 'num'}, one.used === null ? 'not known' : percent(Math.max(0, 1 - one.used))));
  });
  box.append(el('div', {class: 'scroll'}, el('table', {id: 'targets'}, el('thead', {}, el('tr', {}, ['target', 'slots', 'starts', 'busy', 'in use', 'idle'].map((t, i) => el('th', {scope: 'col', class: i ? 'num' : null}, t)))), el('tbody', {}, rows))));
  box.append(el('h3', {css: {'margin-top': '18px'}}, 'Trials at work'));
  // Steps of how many trials run, by target.
  const edges = new Map(targets.map((name) => [name, []]));
  for (const [lane, begin, end] of W.spans) edges.get(W.lanes[lane][0]).push([begin, 1], [end, -1]);
  const steps = new Map([...edges].map(([name, list]) => {
    let n = 0;
    return [name, list.sort((p, q) => p[0] - q[0] || p[1] - q[1]).map(([t, d]) => [t, n += d])];
  }));
  const most = Math.max(1, [...steps.values()].reduce((sum, list) => sum + list.reduce((m, [, n]) => Math.max(m, n), 0), 0));
  const left = () => Math.min(190, Math.max(46, ...W.lanes.map(([, label]) => textWidth(cut(label, 24)) + 14)));
  const narrow = (w) => w < 560;
  const style = (n) => colour(['complete', 'running', 'pruned', 'best', 'accent', 'waiting'][n % 6]);
  const area = plot(box, {
    label: 'How many trials ran at each time',
    view: (w) => ({height: 130, x: view(), y: linear(0, most), left: narrow(w) ? 30 : left(), top: 8}),
    draw(c, g) {
      const columns = Math.max(1, Math.floor(g.right - g.left)), x = view(), base = new Float64Array(columns + 1);
      targets.forEach((name, n) => {
        const list = steps.get(name);
        let i = 0, now = 0;
        c.fillStyle = style(n); c.globalAlpha = 0.75; c.beginPath(); c.moveTo(g.left, g.Y(0));
        const tops = [];
        for (let px = 0; px <= columns; px++) {
          const t = x.invert(px / columns);
          while (i < list.length && list[i][0] <= t) now = list[i++][1];
          tops.push(base[px] + now);
        }
        tops.forEach((v, px) => c.lineTo(g.left + px, g.Y(v)));
        for (let px = columns; px >= 0; px--) c.lineTo(g.left + px, g.Y(base[px]));
        c.closePath(); c.fill();
        tops.forEach((v, px) => { base[px] = v; });
      });
      c.globalAlpha = 1;
    },
  });
  if (targets.length > 1) box.append(el('ul', {class: 'key'}, targets.map((name, n) => el('li', {}, svg('svg', {width: 12, height: 12, 'aria-hidden': 'true'}, svg('rect', {width: 12, height: 12, rx: 2, css: {fill: `var(--${['complete', 'running', 'pruned', 'best', 'accent', 'waiting'][n % 6]})`}})), el('span', {class: 'name'}, name)))));
  const row = lanes > 120 ? Math.max(2, 620 / lanes) : lanes > 40 ? 9 : 16;
  // A heading over each target's rows, and over each block's.
  const places = []; let y = 4, target = null, block = null;
  const heads = [];
  W.lanes.forEach(([name, , job], lane) => {
    if (name !== target || (lanes <= 60 && job !== block)) {
      if (target !== null) y += 6;
      heads.push([y + 13, job && lanes <= 60 ? `${name} · block ${job}` : name, job]);
      y += 20; target = name; block = job;
    }
    places[lane] = y; y += row;
  });
  const height = y + 6;
  const blocks = new Map(W.blocks.map((b) => [b[0], b]));
  const byLane = Array.from({length: lanes}, () => []);
  W.spans.forEach((s) => byLane[s[0]].push(s));
  const gantt = plot(box, {
    label: `${count(W.spans.length, 'bar')} on ${count(lanes, 'slot')}; the table above has how much of the time was used`,
    view: (w) => ({height: height + 24, x: view(), left: narrow(w) ? 30 : left(), top: 0}),
    draw(c, g) {
      c.fillStyle = colour('grid');
      W.lanes.forEach((lane, n) => {
        const b = blocks.get(lane[2]);
        const [p, q] = b && isNumber(b[3]) ? [b[3], b[4]] : [Math.min(...byLane[n].map((s) => s[1])), byLane[n].reduce((m, s) => Math.max(m, s[2]), 0)];
        const x = Math.max(g.left, g.X(p));
        c.fillRect(x, places[n] + (row > 5 ? 2 : 0), Math.max(0, Math.min(g.right, g.X(q)) - x), row > 5 ? row - 3 : row - 0.5);
      });
      for (const state of STATES) {
        c.fillStyle = stateColour(state);
        for (const [lane, begin, end, trial] of W.spans) {
          if (T.state[trial] !== state) continue;
          const x = Math.max(g.left, g.X(begin)), u = Math.min(g.right, g.X(end));
          if (u < g.left || x > g.right) continue;
          const wide = Math.max(0.7, u - x - (u - x > 4 ? 1 : 0));
          c.fillRect(x, places[lane] + (row > 5 ? 2 : 0), wide, row > 5 ? row - 3 : row - 0.5);
        }
      }
      c.strokeStyle = colour('failed'); c.lineWidth = 2;
      for (const [lane, , end, , lost] of W.spans) if (lost && end >= view().low && end <= view().high) { const x = g.X(end); c.beginPath(); c.moveTo(x, places[lane]); c.lineTo(x, places[lane] + row); c.stroke(); }
    },
    after(over, g) {
      for (const [at, text] of heads) over.append(svg('text', {x: 0, y: at, class: 'name', css: {'font-weight': 600}}, cut(text, Math.floor(g.w / 7.5))));
      if (!narrow(g.w) && row >= 14) W.lanes.forEach(([, label], n) => over.append(svg('text', {x: g.left - 8, y: places[n] + row / 2 + 4, 'text-anchor': 'end'}, cut(label, 24))));
      for (const [job, , submitted, first] of W.blocks) {
        const head = heads.find((h) => h[2] === job && job);
        if (!head || !isNumber(submitted) || !isNumber(first)) continue;
        const x = Math.max(g.left, g.X(submitted)), u = Math.min(g.right, g.X(first));
        if (u - x > 3) over.append(svg('line', {x1: x, x2: u, y1: head[0] + 4, y2: head[0] + 4, 'stroke-dasharray': '3 3', css: {stroke: 'var(--soft)'}}, svg('title', {}, 'waiting in the queue')));
      }
    },
    near(mx, my, g) {
      const lane = places.findIndex((p) => my >= p && my < p + row);
      if (lane < 0 || mx < g.left) return null;
      const t = view().invert((mx - g.left) / (g.right - g.left)), slack = (view().high - view().low) * 2 / (g.right - g.left);
      const found = byLane[lane].find((s) => t >= s[1] - slack && t <= s[2] + slack);
      if (!found) return null;
      const [, begin, end, trial, lost] = found, [name, label, job] = W.lanes[lane];
      return {trial, tip: (u, v) => showTip(u, v, `Trial ${trial}`, [['target', name], ['slot', label], ...(job ? [['block', job]] : []), ['begun', stamp(begin)], ['took', span(end - begin)], ['state', stateWords(trial)], ...(lost ? [['worker', 'lost']] : [])])};
    },
  });
  const both = () => { area.redraw(); gantt.redraw(); };
  zoomable([area, gantt], view, (a, b) => { from = a; to = b; again.disabled = false; both(); });
  const shown = STATES.filter((s) => COUNTS[s] && s !== 'waiting');
  box.append(el('ul', {class: 'key'}, shown.map((s) => el('li', {}, svg('svg', {width: 14, height: 10, 'aria-hidden': 'true'}, svg('rect', {width: 14, height: 10, rx: 2, css: {fill: `var(--${['complete', 'pruned', 'failed', 'running'].includes(s) ? s : 'waiting'})`}})), s)),
    el('li', {}, svg('svg', {width: 14, height: 10, 'aria-hidden': 'true'}, svg('rect', {width: 14, height: 10, rx: 2, css: {fill: 'var(--grid)'}})), 'idle')));
  box.append(el('p', {class: 'note under'}, 'A slot is taken to be there from the first trial of its block to the last one (on one machine: of the study). ',
    W.assumed ? 'Which slot some trials had is not on record: their rows are laid out by time.' : ''));
}
function zoomable(plots, view, zoom) {
  for (const p of plots) {
    p.box.style.cursor = 'crosshair';
    p.box.addEventListener('pointerdown', (event) => {
      const g = p.frame(), [start] = p.at(event);
      if (event.pointerType === 'touch' || !g || start < g.left) return;
      event.preventDefault();
      const mark = p.over.appendChild(svg('rect', {class: 'brush', y: 0, height: g.bottom, x: start, width: 0}));
      let end = start;
      const move = (e) => { end = Math.min(g.right, Math.max(g.left, p.at(e)[0])); mark.setAttribute('x', Math.min(start, end)); mark.setAttribute('width', Math.abs(end - start)); };
      const up = () => {
        removeEventListener('pointermove', move); removeEventListener('pointerup', up); mark.remove();
        p.box.dragged = Math.abs(end - start) > 5;
        setTimeout(() => { p.box.dragged = false; }, 0);
        if (!p.box.dragged) return;
        const at = (x) => view().invert((x - g.left) / (g.right - g.left));
        zoom(at(Math.min(start, end)), at(Math.max(start, end)));
      };
      addEventListener('pointermove', move); addEventListener('pointerup', up);
    });
  }
}

// Node-hours by the best word there is on them, and whose word it is.
function nodeHours() {
  if (isNumber(D.usage.node_s) && D.usage.node_s > 0) {
    const more = D.usage.reserved_s > 0 ? `; ${hours(D.usage.reserved_s)} more reserved` : '';
    return [D.usage.node_s, (D.usage.node_s > D.usage.local_node_s ? 'of blocks, as Slurm accounts them' : 'of this machine, while drivers worked') + more];
  }
  if (isNumber(D.cost.node_s)) return [D.cost.node_s, 'of blocks, from their first trial to the last'];
  if (isNumber(D.attempts.node_s)) return [D.attempts.node_s, "the trials' shares of nodes"];
  return [null, 'nobody wrote them down'];
}
function cost() {
  const C = D.cost, all = Object.values(C.by_state_s).reduce((a, b) => a + b, 0);
  const box = section('cost', 'Cost', 'What the trials took, by what came of them.');
  const tile = (name, value, note) => el('div', {class: 'tile'}, el('dt', {}, name), el('dd', {class: value === 'not known' ? 'words' : null, 'data-cost': name}, value), note ? el('p', {}, note) : null);
  const price = Object.entries(C.node_s_by_target).reduce((sum, [name, s]) => name in C.price ? sum + C.price[name] * s / 3600 : NaN, 0);
  const [node, whose] = nodeHours();
  box.append(el('dl', {class: 'tiles'},
    tile('trial-hours', hours(all), 'all slots together'),
    tile('node-hours', hours(node), whose),
    tile('processor time', hours(C.cpu_s), C.cpu_s === null ? 'no worker wrote it down' : C.cpu_unknown ? `of ${count(N - C.cpu_unknown, 'trial')}; of ${fmt(C.cpu_unknown)} it is not known` : 'of the workers and what they started on their nodes'),
    Number.isFinite(price) && Object.keys(C.price).length ? tile('price', fmt(price), "in the site's unit") : null));
  if (!all) return;
  box.append(el('div', {class: 'bars', css: {'margin-top': '16px'}}, Object.entries(C.by_state_s).filter(([, s]) => s > 0).sort((x, y) => y[1] - x[1]).map(([state, s]) => [
    el('div', {}, chip(state)), el('div', {class: 'track', title: hours(s)}, el('div', {class: 'fill', css: {width: `${100 * s / all}%`, background: `var(--${['complete', 'pruned', 'failed', 'running'].includes(state) ? state : 'waiting'})`}})),
    el('div', {class: 'amount'}, percent(s / all))])));
}
