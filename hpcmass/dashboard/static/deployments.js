// Deployments: replicas with their latency, how the traffic is split, what the monitor says.
import {ago, chip, el, facts, fmt, isNumber, ms, note, percent, plural, problem, rate, section, table, tile, to} from './dom.js';
import {bar, colourOf, plot} from './plot.js';

const over = (one) => isNumber(one.p99_ms) && isNumber(one.slo_p99_ms) && one.p99_ms > one.slo_p99_ms;
const latency = (value, goal) => el('span', {class: isNumber(value) && isNumber(goal) && value > goal ? 'over' : ''}, ms(value), isNumber(value) && isNumber(goal) && value > goal ? el('span', {class: 'unseen'}, ' above its goal') : null);

export function deploymentList(rows) {
  if (!rows.length) return note('Nothing is deployed: hpcmass deploy NAME@ALIAS does that.');
  return el('ul', {class: 'list', 'data-list': 'deployments'}, rows.map((one) => el('li', {},
    el('div', {class: 'first'}, el('a', {class: 'name', href: to('deployments', one.name), 'data-key': `deployment ${one.name}`}, one.name), chip(one.state), one.drift && one.drift.drifted ? chip('drift') : null),
    el('div', {class: 'middle'}, one.model ? el('a', {class: 'metric name', href: to('models', one.model)}, one.model) : null,
      one.state === 'ENDED' ? null : [el('span', {class: 'metric'}, plural(one.ready, 'replica'), el('span', {class: 'soft'}, isNumber(one.wanted) ? ` of ${fmt(one.wanted)}` : '')),
        el('span', {class: 'metric'}, rate(one.rate)), el('span', {class: 'metric'}, el('span', {class: 'soft'}, 'p99 '), latency(one.p99_ms, one.slo_p99_ms))],
      one.reason ? el('span', {class: 'reason'}, one.reason) : null),
    el('div', {class: 'last soft'}, one.heard ? ago(one.heard) : ''))));
}

export const list = {
  title: 'Deployments',
  path: () => 'deployments',
  draw: (data) => section('deployments', 'Deployments', plural(data.deployments.length, 'deployment'), deploymentList(data.deployments)),
};

export const one = {
  title: (args) => args[0],
  path: (args) => `deployments/${encodeURIComponent(args[0])}`,
  back: () => [to('deployments'), 'Deployments'],
  draw: (found) => [
    found.reason ? problem(found.reason) : null,
    el('dl', {class: 'tiles'},
      tile('State', chip(found.state), found.heard ? ['heard ', ago(found.heard)] : 'never heard', {id: 'state'}),
      tile('Replicas', el('span', {}, fmt(found.ready), el('small', {}, isNumber(found.wanted) ? ` of ${fmt(found.wanted)}` : '')), found.bounds.length ? `${found.bounds.map(fmt).join(' to ')} allowed` : '', {id: 'ready'}),
      tile('Requests', rate(found.rate), isNumber(found.queue) ? `${fmt(found.queue)} waiting` : ''),
      tile('p99', latency(found.p99_ms, found.slo_p99_ms), isNumber(found.slo_p99_ms) ? `goal ${ms(found.slo_p99_ms)}` : '', {id: 'p99', class: over(found) ? 'tile late' : 'tile'}),
      tile('p50', ms(found.p50_ms), ''),
      tile('Errors', fmt(found.errors), '')),
    course(found),
    replicas(found),
    traffic(found),
    monitored(found),
    section('about', 'About', '', found.note ? el('p', {class: 'headline'}, found.note) : null, facts({model: found.model ? el('a', {href: to('models', found.model)}, found.model) : null, follows: found.follow, before: found.previous, site: found.site, targets: found.targets.join(', '), address: found.url, generation: found.generation, 'asked by': found.by, asked: found.created ? ago(found.created) : null})),
    found.events.length ? section('events', 'What happened', 'the newest first', table([['when', (e) => ago(e.time)], ['what', (e) => e.kind], ['facts', (e) => Object.entries(e.facts).map(([k, v]) => `${k} ${fmt(v)}`).join(', '), 'long']], found.events, {'aria-label': 'Events'})) : null,
  ],
};

function course(found) {
  const at = found.course.filter((moment) => isNumber(moment[0]));
  if (at.length < 3) return section('course', 'Latency', '', note('It is drawn as this page watches.'));
  const x = at.map((moment) => moment[0]), clock = (t) => new Date(t * 1000).toLocaleTimeString([], {hour: '2-digit', minute: '2-digit', second: '2-digit'});
  return section('course', 'Latency', 'since this dashboard watches', el('div', {class: 'charts'},
    el('div', {class: 'one'}, el('h3', {}, 'Milliseconds'), plot([{name: 'p99', colour: colourOf(1), x, y: at.map((m) => m[3])}, {name: 'p50', colour: colourOf(0), x, y: at.map((m) => m[2])}],
      {height: 210, xName: 'time', zero: true, xText: clock, yText: ms, rule: found.slo_p99_ms, label: `Latency; p99 is ${ms(found.p99_ms)} now`})),
    el('div', {class: 'one'}, el('h3', {}, 'Requests a second'), plot([{name: 'rate', colour: colourOf(2), x, y: at.map((m) => m[1])}], {height: 210, xName: 'time', zero: true, xText: clock, label: `Requests; ${rate(found.rate)} now`}))));
}

function traffic(found) {
  const {split, canary} = found;
  if (split.length < 2 && !canary) return null;
  const side = canary ? `on trial: ${canary.model}, which is to have ${percent(canary.share)}` : '';
  return section('split', 'Traffic', side, el('div', {class: 'bars'}, split.map(([version, share, count]) => [el('span', {class: 'name'}, `${version} (${plural(count, 'replica')})`), bar(share || 0, percent(share)), el('span', {class: 'amount'}, percent(share))])));
}

function replicas(found) {
  const most = Math.max(1, ...found.replicas.map((one) => one.p99_ms || 0));
  return section('replicas', 'Replicas', found.mind || plural(found.replicas.length, 'replica'), found.replicas.length ? table([
    ['replica', (r) => r.id], ['state', (r) => chip(r.state || 'UNKNOWN')], ['version', (r) => [r.model || r.version || '–', r.track === 'canary' ? el('span', {class: 'tag'}, 'canary') : null]], ['where', (r) => [r.node, r.target].filter(Boolean).join(' · ') || '–'], ['job', (r) => r.job || '–', 'num'],
    ['in flight', (r) => fmt(r.in_flight), 'num'], ['rate', (r) => rate(r.rate), 'num'], ['weight', (r) => fmt(r.weight), 'num'],
    ['p99', (r) => el('span', {class: 'stepped'}, isNumber(r.p99_ms) ? bar(r.p99_ms / most, '') : null, latency(r.p99_ms, found.slo_p99_ms)), 'num']], found.replicas, {'aria-label': 'Replicas'}) : note('It has none now.'));
}

const JUDGED = {drift: 'It has drifted from its training data.', clean: 'No drift from its training data.', 'too little': 'Too little was seen to say.'};

function monitored(found) {
  const {drift, alerts} = found;
  if (!drift && !(alerts && alerts.length)) return null;
  if (drift && drift.error) return section('drift', 'Monitor', '', problem(drift.error));
  const told = (alerts || []).map((one) => problem([one.text, one.when ? [' (', ago(one.when), ')'] : '']));
  if (!drift) return section('drift', 'Monitor', '', told);
  const look = drift.drifted ? 'drift' : drift.state === 'clean' ? 'COMPLETED' : 'waiting';
  return section('drift', 'Monitor', drift.when ? [`version ${drift.version}, judged `, ago(drift.when)] : '', told,
    el('p', {class: 'headline'}, chip(look, JUDGED[drift.state] || drift.state), drift.why ? el('span', {class: 'soft'}, ` ${drift.why}`) : null),
    drift.features.length ? table([['feature', (f) => f.name], ['found', (f) => chip(f.drifted ? 'drift' : 'COMPLETED', f.drifted ? 'drifted' : 'as trained')], ['test', (f) => f.test || '–'], ['effect', (f) => fmt(f.effect), 'num'],
      ['least effect that counts', (f) => fmt(f.floor), 'num'], ['p', (f) => fmt(isNumber(f.p) ? Number(f.p.toPrecision(2)) : f.p), 'num']], drift.features, {'aria-label': 'Features'}) : null);
}
