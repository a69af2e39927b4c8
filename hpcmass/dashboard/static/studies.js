// The sweeps: how each stands, its history, its parameters against what came out.
import {ago, chip, el, facts, fmt, isNumber, note, pages, plural, problem, section, span, table, tile, to} from './dom.js';
import {parallel} from './parallel.js';
import {bar, plot, spark} from './plot.js';

const LIMIT = 25, OUTCOMES = ['complete', 'pruned', 'failed'];

const metricOf = (study) => study.objectives && study.objectives[0] ? study.objectives[0][0] : 'value';
const bestText = (study) => study.best ? fmt(study.best.value) : '–';
const counts = (study) => el('ul', {class: 'key'}, [...OUTCOMES.filter((state) => study.counts[state]).map((state) => el('li', {}, chip(state), el('b', {}, fmt(study.counts[state])))),
  study.running_count ? el('li', {}, chip('running'), el('b', {}, fmt(study.running_count))) : null, study.waiting ? el('li', {}, chip('waiting'), el('b', {}, fmt(study.waiting))) : null]);
const lasting = (study) => el('span', {class: 'stepped'}, bar(study.done / Math.max(1, study.planned), `${fmt(study.done)} of ${fmt(study.planned)} trials`), el('span', {class: 'of'}, `${fmt(study.done)} / ${fmt(study.planned)}`));

export function studyList(rows) {
  if (!rows.length) return note('There is no sweep yet: hpcmass sweep job.toml begins one.');
  return el('ul', {class: 'list', 'data-list': 'studies'}, rows.map((study) => el('li', {},
    el('div', {class: 'first'}, el('a', {class: 'name', href: to('studies', study.name), 'data-key': `study ${study.name}`}, study.name), chip(study.state, study.state === 'unread' ? 'not read yet' : undefined)),
    study.counts ? [el('div', {class: 'middle'}, lasting(study), el('span', {class: 'metric'}, el('span', {class: 'soft'}, 'best ', el('span', {class: 'name'}, metricOf(study))), ' ', bestText(study)),
      study.counts.failed ? el('span', {class: 'metric soft'}, `${fmt(study.counts.failed)} failed`) : null),
    el('div', {class: 'last'}, spark(study.course, {label: 'the best value so far'}))] : el('div', {class: 'middle'}, el('span', {class: 'reason'}, study.reason || '')))));
}

export const list = {
  title: 'Sweeps',
  path: (_, query) => `studies?${new URLSearchParams({limit: LIMIT, offset: query.offset || 0, q: query.q || ''})}`,
  tools: (query, go) => el('label', {}, 'Name', el('input', {type: 'search', value: query.q || '', placeholder: 'a part of it', oninput: (event) => go({q: event.target.value, offset: 0}, true)})),
  draw: (data, {go}) => section('studies', 'Sweeps', plural(data.total, 'study', 'studies'), studyList(data.studies), pages(data, LIMIT, (offset) => go({offset}))),
};

export const one = {
  title: (args) => args[0],
  path: (args, query) => `studies/${encodeURIComponent(args[0])}?${new URLSearchParams({limit: LIMIT, offset: query.offset || 0, state: query.state || ''})}`,
  back: () => [to('studies'), 'Sweeps'],
  draw: (study, {go, query}) => {
    if (!study.counts) return section('standing', 'This study cannot be read', '', problem(study.reason));
    const metric = metricOf(study);
    return [
      el('dl', {class: 'tiles'},
        tile(['Best ', el('span', {class: 'name'}, metric)], bestText(study), study.best ? ['trial ', el('a', {href: to('studies', study.name, study.best.number)}, fmt(study.best.number))] : 'none yet', {id: 'best'}),
        tile('Trials', el('span', {}, fmt(study.done), el('small', {}, ` of ${fmt(study.planned)}`)), bar(study.done / Math.max(1, study.planned), 'how much is done'), {id: 'done'}),
        tile('Running', fmt(study.running_count), study.workers ? `${fmt(study.workers)} workers of late` : ''),
        tile('Pace', study.per_s ? `${fmt(Number((study.per_s * 60).toPrecision(2)))} / min` : '–', study.node_s ? `${fmt(Number((study.node_s / 3600).toPrecision(2)))} node hours` : ''),
        tile('Driver', chip(study.state), study.driver || study.ended || 'nobody drives it')),
      counts(study),
      history(study, metric),
      section('parameters', 'Parameters', study.points.trials.length < study.points.of ? `${fmt(study.points.trials.length)} of ${fmt(study.points.of)} trials` : '', parallel(study.points.trials, study.objectives[0]),
        study.best ? [el('h3', {}, 'Of the best trial'), facts(study.best.params)] : null),
      study.running.length ? section('running', 'Running', '', table([
        ['trial', (t) => el('a', {href: to('studies', study.name, t.number), 'data-key': `trial ${t.number}`}, fmt(t.number)), 'num'],
        ['step', (t) => t.total_steps ? `${fmt(t.step)} / ${fmt(t.total_steps)}` : fmt(t.step), 'num'], [metric, (t) => fmt(t.value), 'num'],
        ['on', (t) => t.target || '–'], ['since', (t) => ago(t.since)]], study.running, {'aria-label': 'Running trials'})) : null,
      Object.keys(study.causes).length ? section('causes', 'Attempts that ended early', '', table([['cause', ([name]) => name], ['attempts', ([, n]) => fmt(n), 'num']], Object.entries(study.causes), {'aria-label': 'Causes'})) : null,
      trials(study, metric, go, query),
    ];
  },
};

function history(study, metric) {
  const drawn = study.points.trials.filter((t) => isNumber(t[3]));
  const report = el('a', {href: `api/studies/${encodeURIComponent(study.name)}/report`, target: '_blank', rel: 'noopener'}, 'Full report');
  if (drawn.length < 2) return section('history', 'History', report, note('Too few trials to draw.'));
  const pick = (state) => drawn.filter((t) => t[2] === state);
  const sign = study.objectives[0][1] === 'minimize' ? 1 : -1, best = {x: [], y: []};
  for (const t of pick('complete')) if (t[4] && (!best.y.length || sign * t[3] < sign * best.y[best.y.length - 1])) { best.x.push(t[1]); best.y.push(t[3]); }
  if (best.x.length) { best.x.push(drawn[drawn.length - 1][1]); best.y.push(best.y[best.y.length - 1]); }
  const points = (state, name) => ({name: state, points: true, colour: `var(--${name})`, x: pick(state).map((t) => t[1]), y: pick(state).map((t) => t[3]), tell: pick(state).map((t) => `trial ${t[0]}`)});
  const series = [points('complete', 'complete'), points('pruned', 'pruned'), {name: 'best so far', step: true, colour: 'var(--best)', ...best}].filter((one) => one.x.length);
  const log = drawn.every((t) => t[3] > 0) && Math.max(...drawn.map((t) => t[3])) > 50 * Math.min(...drawn.map((t) => t[3]));
  return section('history', 'History', report, plot(series, {height: 250, log, xName: 'trials counted', yName: metric, label: `${metric} of ${drawn.length} trials; the best is ${bestText(study)}`}));
}

function trials(study, metric, go, query) {
  const found = study.trials, names = [...new Set(found.rows.flatMap((t) => Object.keys(t.params)))].slice(0, 8);
  const chosen = el('label', {}, 'State ', el('select', {'data-key': 'state', onchange: (event) => go({state: event.target.value, offset: 0})},
    [['', 'all'], ...OUTCOMES.map((s) => [s, s])].map(([value, text]) => el('option', {value, selected: value === (query.state || '')}, text))));
  const columns = [
    ['trial', (t) => el('a', {href: to('studies', study.name, t.number), 'data-key': `row ${t.number}`}, fmt(t.number)), 'num'], ['state', (t) => chip(t.state)],
    [metric, (t) => fmt(t.value), 'num'], ...names.map((name) => [name, (t) => fmt(t.params[name]), 'num']), ['took', (t) => span(t.seconds), 'num'], ['reason', (t) => t.reason || '', 'long']];
  return section('trials', 'Trials', chosen, found.rows.length ? table(columns, found.rows, {'aria-label': 'Trials'}) : note('There is no such trial.'), pages(found, LIMIT, (offset) => go({offset})));
}
