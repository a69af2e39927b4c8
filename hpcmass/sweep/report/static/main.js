// The head of the page, and all its parts.
function overview() {
  document.title = `${STUDY.name}: hpcmass study`;
  $('name').textContent = STUDY.name;
  const box = section('overview', 'Overview', null);
  box.classList.add('plain');
  box.querySelector('.head').remove();
  box.removeAttribute('aria-labelledby');
  box.setAttribute('aria-label', 'Overview');
  const tile = (name, value, note, id, words) => el('div', {class: 'tile'}, el('dt', {}, name), el('dd', {id, class: words ? 'words' : null}, value), note ? el('p', {}, note) : null);
  const begins = T.started.filter(isNumber), low = begins.reduce((a, b) => Math.min(a, b), Infinity);
  const ends = D.time.spans.reduce((a, s) => Math.max(a, s[2]), -Infinity), ended = N - (COUNTS.running || 0) - (COUNTS.waiting || 0) - (COUNTS.paused || 0) - (COUNTS.lost || 0) - (COUNTS.uncounted || 0);
  const wall = ends > low ? ends - low : null;
  const tiles = [];
  if (SEVERAL) tiles.push(tile('Pareto front', D.front.length ? count(D.front.length, 'trial') : 'none yet', STUDY.objectives.map(([n, d]) => `${n} (${d})`).join(', '), 'best', !D.front.length));
  else {
    const i = D.front[0], [name, direction] = STUDY.objectives[0];
    tiles.push(tile(`best ${name}`, i === undefined ? 'none yet' : fmt(measured(name)[i]), i === undefined ? `to ${direction}` : [el('a', {href: '#trials', onclick: (e) => { e.preventDefault(); showTrial(i); }}, `trial ${T.number[i]}`), `, ${direction}`], 'best', i === undefined));
  }
  tiles.push(tile('trials', `${fmt(ended)} of ${fmt(STUDY.planned)}`, STUDY.driver ? `driven by ${STUDY.driver}` : 'no driver at work', 'counted'));
  const idle = Object.values(D.time.targets), busy = idle.reduce((a, t) => a + t.busy_s, 0), there = idle.reduce((a, t) => a + t.there_s, 0);
  tiles.push(tile('slots in use', there > 0 ? percent(busy / there) : 'not known', there > 0 ? `${count(D.time.lanes.length, 'slot')} on ${count(idle.length, 'target')}` : null, 'used', !(there > 0)));
  tiles.push(tile('time', wall === null ? 'not known' : span(wall), wall && ended ? `${fmt(Number((ended / wall * (wall < 7200 ? 60 : 3600)).toPrecision(3)))} trials ${wall < 7200 ? 'a minute' : 'an hour'}` : null, 'wall', wall === null));
  const [node] = nodeHours(), limit = STUDY.budget.node_hours;
  tiles.push(tile('node-hours', hours(node), isNumber(limit) ? `of a budget of ${fmt(limit)} h (${percent(node / 3600 / limit)})` : 'no budget set', 'node-hours', !isNumber(node)));
  box.append(el('dl', {class: 'tiles'}, tiles));
  const shown = STATES.filter((s) => COUNTS[s]), whole = Math.max(N, 1);
  box.append(el('div', {class: 'states', 'aria-hidden': 'true'}, shown.map((s) => el('i', {css: {width: `${100 * COUNTS[s] / whole}%`, background: `var(--${['complete', 'pruned', 'failed', 'running'].includes(s) ? s : 'waiting'})`}}))),
    el('ul', {class: 'key', id: 'counts'}, shown.map((s) => el('li', {'data-state': s}, mark(s), el('b', {}, fmt(COUNTS[s])), s))));
  const beyond = T.feasible.filter((f) => f === false).length;
  const facts = [`sampler ${STUDY.sampler}`, `pruner ${STUDY.pruner}`, `seed ${STUDY.seed}`, `${count(STUDY.parallel, 'trial')} at once`];
  if (STUDY.constraints.length) facts.push(`constraints ${STUDY.constraints.join('; ')}` + (beyond ? ` (${count(beyond, 'complete trial')} beyond)` : ''));
  if (STUDY.budget.wall) facts.push(`wall time ${isNumber(D.usage.wall_s) ? span(D.usage.wall_s) : 'not known'} of ${STUDY.budget.wall}`);
  if (isNumber(STUDY.budget.value)) facts.push(`${fmt(STUDY.budget.value)} is enough`);
  box.append(el('p', {class: 'note under'}, facts.join(' · ')));
  if (D.usage.ended && !STUDY.driver) box.append(el('p', {class: 'note'}, `Ended: ${D.usage.ended}`));
}
function theme() {
  const button = $('theme'), dark = matchMedia('(prefers-color-scheme: dark)');
  const now = () => document.documentElement.dataset.theme || (dark.matches ? 'dark' : 'light');
  const tell = () => { button.textContent = now() === 'dark' ? 'Light' : 'Dark'; };
  const all = () => { tell(); PLOTS.forEach((redraw) => redraw()); };
  button.addEventListener('click', () => { document.documentElement.dataset.theme = now() === 'dark' ? 'light' : 'dark'; all(); });
  dark.addEventListener('change', all);
  tell();
}
overview();
for (const part of [history, front, importances, parallel, slices, curves, timeline, cost, failures, trialTable]) {
  // A part that cannot be drawn does not take the others with it.
  try { part(); } catch (error) { console.error(error); $('main').append(el('section', {}, el('p', {class: 'message'}, `This part could not be drawn: ${error.message}`))); }
}
theme();
$('foot').append(el('p', {}, `Made ${stamp(STUDY.made)} by hpcmass ${STUDY.version} from the study's folder. Times are this browser's.`));
$('detail').addEventListener('click', (event) => { if (event.target === $('detail')) $('detail').close(); });
addEventListener('scroll', hideTip, {passive: true});
document.documentElement.dataset.ready = 'yes';
