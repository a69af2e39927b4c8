// The catalogue: a search, and one version in full.
import {ago, bytes, chip, el, facts, flat, fmt, isNumber, note, pages, percent, plural, problem, section, table, tile, to} from './dom.js';
import {lineage} from './lineage.js';
import {markdown} from './markdown.js';

const LIMIT = 50;
const tag = (text, kind) => el('span', {class: `tag ${kind || ''}`}, text);

export function modelList(rows, fields = []) {
  if (!rows.length) return note('No version is like that.');
  return el('ul', {class: 'list', 'data-list': 'models'}, rows.map((one) => el('li', {},
    el('div', {class: 'first'}, el('a', {class: 'name', href: to('models', one.ref), 'data-key': `model ${one.ref}`}, one.ref), one.aliases.map((alias) => tag(alias, 'alias'))),
    el('div', {class: 'middle'}, (fields.length ? fields.map((name, i) => [name, one.fields[i]]) : Object.entries(one.metrics).slice(0, 3)).map(([name, value]) => el('span', {class: 'metric'}, el('span', {class: 'name soft'}, name), ' ', fmt(value))),
      one.description ? el('span', {class: 'about'}, one.description) : null),
    el('div', {class: 'last soft'}, ago(one.created)))));
}

export const list = {
  title: 'Models',
  path: (_, query) => `models?${new URLSearchParams({limit: LIMIT, offset: query.offset || 0, q: query.q || '', sort: query.sort || ''})}`,
  tools: (query, go) => {
    const ask = (event) => { event.preventDefault(); go({q: event.currentTarget.elements.q.value, sort: event.currentTarget.elements.sort.value, offset: 0}); };
    return el('form', {class: 'tools wide', onsubmit: ask},
      el('label', {class: 'grow'}, 'Search', el('input', {type: 'search', name: 'q', value: query.q || '', spellcheck: 'false', autocapitalize: 'off', placeholder: "accuracy > 0.9 and 'production' in aliases"})),
      el('label', {}, 'Sort', el('input', {type: 'text', name: 'sort', size: 12, value: query.sort || '', spellcheck: 'false', autocapitalize: 'off', placeholder: '-created'})),
      el('button', {type: 'submit'}, 'Search'));
  },
  draw: (data, {go, query}) => section('models', 'Models', plural(data.total, 'version'),
    data.total || query.q ? modelList(data.versions, data.fields) : note('The catalogue is empty: hpcmass catalogue register RUN fills it.'), pages(data, LIMIT, (offset) => go({offset}))),
};

export const one = {
  title: (args) => args[0],
  path: (args) => `models/${encodeURIComponent(args[0])}`,
  back: () => [to('models'), 'Models'],
  draw: (model, {keep}) => {
    const metrics = measured(model);
    return [
      model.problems.map(problem),
      el('dl', {class: 'tiles'},
        tile('Version', model.ref, model.latest === model.version ? 'the newest' : model.latest ? ['newest is ', el('a', {href: to('models', `${model.name}@${model.latest}`)}, fmt(model.latest))] : ''),
        metrics.slice(0, 3).map(([name, value, low, high]) => tile(el('span', {class: 'name'}, name), fmt(value), isNumber(low) ? `${short(low)} to ${short(high)}` : '')),
        tile('Size', bytes(model.bytes), plural(model.files_count, 'file')),
        tile('Registered', ago(model.created), model.by)),
      model.description || Object.keys(model.tags).length || Object.keys(model.aliases).length ? section('about', 'About', '', model.description ? el('p', {class: 'headline'}, model.description) : null,
        el('p', {class: 'tags'}, Object.entries(model.tags).map(([name, value]) => tag(value === 1 ? name : `${name} = ${value}`))), Object.entries(model.aliases).map(aliased)) : null,
      section('lineage', 'Lineage', model.lineage.complete === false ? 'a part of it' : '', lineage(model.lineage)),
      evaluations(model),
      metrics.length ? section('metrics', 'Metrics', 'as it was registered', facts(Object.fromEntries(metrics.map(([name, value, low, high]) => [name, isNumber(low) ? range({value, low, high}) : value])))) : null,
      cardSection(model, keep),
      section('origin', 'Origin', '', facts({...flat(model.origin), run: model.run_at ? el('a', {href: to(...model.run_at)}, model.run_at.slice(1).join('/')) : model.origin.run}),
        model.job ? el('details', {'data-key': 'job'}, el('summary', {}, 'Job'), facts(flat(model.job))) : null,
        model.environment ? el('details', {'data-key': 'environment'}, el('summary', {}, 'Environment'), facts(flat(model.environment))) : null,
        el('details', {'data-key': 'files'}, el('summary', {}, plural(model.files_count, 'file')), table([['file', ([name]) => name], ['size', ([, size]) => bytes(size), 'num'], ['SHA-256', ([, , sha]) => el('code', {}, sha.slice(0, 16))]], model.files, {'aria-label': 'Files'}))),
    ];
  },
};

const short = (v) => isNumber(v) ? String(Number(v.toPrecision(4))) : '–';
const range = (m) => el('span', {}, short(m.value), m.low === null ? null : el('span', {class: 'soft'}, ` [${short(m.low)}, ${short(m.high)}]`));

// Metrics that are numbers, each with the ends of its interval where those are there.
function measured(model) {
  const all = flat(model.metrics), ends = (name) => isNumber(all[`${name}_low`]) && isNumber(all[`${name}_high`]);
  const base = (name) => name.replace(/_(low|high)$/, '');
  return Object.entries(all).filter(([name, value]) => isNumber(value) && !(base(name) !== name && ends(base(name))) && name !== 'n')
    .map(([name, value]) => [name, value, ends(name) ? all[`${name}_low`] : null, ends(name) ? all[`${name}_high`] : null]);
}

// What a promotion was held against, and what was found.
function gated(gate) {
  if (!gate || typeof gate.require !== 'string') return JSON.stringify(gate);
  const found = gate.found && isNumber(gate.found.value) ? range(gate.found) : fmt(gate.found);
  return [gate.require, ': ', found, gate.held === true ? ', held' : gate.held === false ? ', not held' : ''];
}

function aliased([name, move]) {
  return el('div', {class: 'aliased'}, tag(name, 'alias'), el('span', {}, move.why || ''), el('span', {class: 'soft'}, move.by, ', ', ago(move.when)),
    move.gates && move.gates.length ? el('ul', {class: 'advice'}, move.gates.map((gate) => el('li', {}, gated(gate)))) : null);
}

function evaluations(model) {
  if (!model.evaluations.length) return null;
  const names = [...new Set(model.evaluations.flatMap((one) => Object.keys(one.metrics)))].slice(0, 6);
  return section('evaluations', 'Evaluations', 'with their 95 % intervals', table([['on', (e) => e.data || e.dataset.slice(0, 12)], ['samples', (e) => fmt(e.n), 'num'],
    ...names.map((name) => [name, (e) => e.metrics[name] ? range(e.metrics[name]) : '–', 'num']), ['when', (e) => ago(e.created)], ...(model.evaluations.some((e) => e.why) ? [['why', (e) => e.why, 'long']] : [])], model.evaluations, {'aria-label': 'Evaluations'}));
}

// The card is made when somebody wants to see it, and kept while the page of this version is open.
function cardSection(model, keep) {
  const place = el('div', {class: 'card', 'aria-live': 'polite'});
  const show = (text) => place.replaceChildren(markdown(text));
  const open = async () => {
    if (keep.card !== undefined) { show(keep.card); return; }
    place.replaceChildren(note('Writing the card …'));
    try {
      const answer = await fetch(`api/card/${encodeURIComponent(model.ref)}`), body = await answer.json();
      if (!answer.ok) throw new Error(body.error);
      keep.card = body.markdown;
      show(keep.card);
    } catch (error) { place.replaceChildren(problem(`The card cannot be written: ${error.message}`)); }
  };
  const details = el('details', {'data-key': 'card', ontoggle: (event) => { if (event.target.open && !place.hasChildNodes()) open(); }}, el('summary', {}, 'Show it as it would be published'), place);
  return section('card', 'Model card', '', details);
}
export {chip, percent};
