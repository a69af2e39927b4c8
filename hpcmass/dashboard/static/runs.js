// The runs: a list with its filters, and one in full.
import {ago, chip, el, facts, fmt, note, pages, plural, problem, section, span, tile, to} from './dom.js';
import {bar, colourOf, plot} from './plot.js';

const LIMIT = 50, STATES = ['RUNNING', 'COMPLETED', 'FAILED', 'STOPPED', 'CREATED', 'UNKNOWN'];

const best = (metrics) => Object.entries(metrics || {}).slice(0, 3).map(([name, value]) => el('span', {class: 'metric'}, el('span', {class: 'name soft'}, name), ' ', fmt(value)));
export const stepped = (run) => run.total_steps
  ? el('span', {class: 'stepped'}, bar(run.step / run.total_steps, `${fmt(run.step)} of ${fmt(run.total_steps)} steps`), el('span', {class: 'of'}, `${fmt(run.step)} / ${fmt(run.total_steps)}`))
  : el('span', {class: 'of'}, run.step ? `${fmt(run.step)} steps` : '–');

export function runList(rows) {
  if (!rows.length) return note('There is no such run.');
  return el('ul', {class: 'list', 'data-list': 'runs'}, rows.map((run) => el('li', {},
    el('div', {class: 'first'}, el('a', {class: 'name', href: to('runs', run.name), 'data-key': `run ${run.name}`}, run.name),
      chip(run.damaged ? 'damaged' : run.state, run.damaged ? 'unknown' : undefined)),
    el('div', {class: 'middle'}, run.state === 'RUNNING' || run.state === 'STOPPED' ? stepped(run) : null, best(run.metrics), run.reason && run.state !== 'COMPLETED' ? el('span', {class: 'reason'}, run.reason) : null),
    el('div', {class: 'last soft'}, run.updated ? ago(run.updated) : run.started ? ago(run.started) : 'not started'))));
}

export const list = {
  title: 'Runs',
  path: (_, query) => `runs?${new URLSearchParams({limit: LIMIT, offset: query.offset || 0, state: query.state || '', q: query.q || ''})}`,
  tools: (query, go) => [
    el('label', {}, 'Name', el('input', {type: 'search', value: query.q || '', placeholder: 'a part of it', oninput: (event) => go({q: event.target.value, offset: 0}, true)})),
    el('label', {}, 'State', el('select', {onchange: (event) => go({state: event.target.value, offset: 0})},
      [['', 'all'], ...STATES.map((state) => [state, state.toLowerCase()])].map(([value, text]) => el('option', {value, selected: value === (query.state || '')}, text)))),
  ],
  draw: (data, {go}) => section('runs', 'Runs', [plural(data.found, 'run'), data.unread ? `, ${fmt(data.unread)} not read yet` : ''],
    el('ul', {class: 'key'}, STATES.filter((s) => data.counts[s]).map((s) => el('li', {}, chip(s), el('b', {}, fmt(data.counts[s]))))),
    data.total || data.unread ? runList(data.runs) : note('There is no run yet: hpcmass train job.toml makes one.'), pages({...data, total: data.found}, LIMIT, (offset) => go({offset}))),
};

// Curves of one metric together: its training and its validation.
function charts(curves) {
  const grouped = new Map();
  for (const one of curves) {
    const [kind, ...rest] = one.name.split(' '), name = rest.join(' ');
    if (!grouped.has(name)) grouped.set(name, []);
    grouped.get(name).push({name: kind, x: one.steps, y: one.values});
  }
  return [...grouped].sort((a, b) => (a[0] !== 'loss') - (b[0] !== 'loss')).map(([name, found]) => el('div', {class: 'one'}, el('h3', {class: 'name'}, name),
    plot(found.sort((a, b) => a.name < b.name ? 1 : -1).map((one, i) => ({...one, colour: colourOf(i)})), {height: 210, xName: 'step', label: `${name} by step: ${found.map((one) => `${one.name} ends at ${fmt(one.y[one.y.length - 1])}`).join(', ')}`})));
}

export const one = {
  title: (args) => args.length > 1 ? `Trial ${args[1]} of ${args[0]}` : args[0],
  path: (args) => args.length > 1 ? `studies/${args.map(encodeURIComponent).join('/')}` : `runs/${encodeURIComponent(args[0])}`,
  back: (args) => args.length > 1 ? [to('studies', args[0]), args[0]] : [to('runs'), 'Runs'],
  draw: (run, {args}) => [
    el('dl', {class: 'tiles'},
      tile('State', chip(run.damaged ? 'damaged' : run.state, run.state.toLowerCase()), run.attempt > 1 ? `attempt ${fmt(run.attempt)}` : '', {id: 'state'}),
      tile('Step', run.step === null ? '–' : fmt(run.step), run.total_steps ? `of ${fmt(run.total_steps)}` : ''),
      Object.entries(run.metrics).slice(0, 2).map(([name, value]) => tile(el('span', {class: 'name'}, name), fmt(value), 'last validation')),
      tile('Took', run.started ? span((run.ended || run.updated || run.started) - run.started) : '–', run.started ? ['began ', ago(run.started)] : 'not started'),
      tile('Ranks', fmt(run.ranks || null), run.backend || '')),
    why(run),
    run.curves.length ? section('curves', 'Learning curves', run.whole ? '' : 'the last part of a long record', el('div', {class: 'charts'}, charts(run.curves)))
      : section('curves', 'Learning curves', '', note('Nothing was measured yet.')),
    section('about', 'About', '', facts({name: args.join('/'), folder: run.path, 'Slurm jobs': run.slurm.map((one) => `${one.job} (${one.target})`).join(', ')}),
      run.job ? el('details', {'data-key': 'job'}, el('summary', {}, 'Job file, as resolved'), el('pre', {tabindex: 0}, run.job)) : null),
  ],
};

function why(run) {
  const {headline, error, advice, pace, log} = run.why, waits = run.state === 'CREATED' && run.slurm.length;
  return section('why', 'Why', '',
    run.damaged ? problem(`Its state cannot be read: ${headline}`) : el('p', {class: 'headline'}, headline),
    waits ? el('p', {class: 'note'}, `It was given to Slurm as job ${run.slurm[run.slurm.length - 1].job}; hpcmass status asks Slurm how far it is.`) : null,
    advice && advice.length ? el('ul', {class: 'advice'}, advice.map((line) => el('li', {}, line))) : null,
    pace && pace.length ? el('ul', {class: 'advice'}, pace.map((line) => el('li', {}, line))) : null,
    error ? el('details', {'data-key': 'error', open: !error.traceback}, el('summary', {}, `${error.error} of rank ${fmt(error.rank)}${error.host ? ` on ${error.host}` : ''}`), el('pre', {tabindex: 0}, error.traceback || [error.where, error.message].filter(Boolean).join(': '))) : null,
    log ? el('details', {'data-key': 'log'}, el('summary', {}, 'End of its log'), el('pre', {tabindex: 0}, log)) : null);
}
