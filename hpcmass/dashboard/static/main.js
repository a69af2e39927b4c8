// The frame: which view the address names, when it is drawn again, and that nobody loses their place by that.
import {$, el, problem, tick, to} from './dom.js';
import {Live} from './live.js';
import {overview} from './overview.js';
import * as deployments from './deployments.js';
import * as models from './models.js';
import * as runs from './runs.js';
import * as studies from './studies.js';

const VIEWS = {overview: [overview, overview], runs: [runs.list, runs.one], studies: [studies.list, studies.one, runs.one], models: [models.list, models.one], deployments: [deployments.list, deployments.one]};
const NAMES = {overview: 'Overview', runs: 'Runs', studies: 'Sweeps', models: 'Models', deployments: 'Deployments'};
const HEARD = {live: 'live', paused: 'paused', lost: 'not reachable', out: 'signed out'};
let shown = null;

const live = new Live(
  (data, error) => draw(data, error),
  (how) => { $('live').dataset.how = how; $('live').lastElementChild.textContent = HEARD[how]; if (how === 'out') draw(null, 'This dashboard was started anew: open the address that it has printed.'); },
);

function parse() {
  const [path, search] = location.hash.replace(/^#\/?/, '').split('?');
  const [name, ...args] = path.split('/').map((part) => { try { return decodeURIComponent(part); } catch { return part; } });
  const found = VIEWS[name] ? name : 'overview', views = VIEWS[found];
  return {name: found, args: VIEWS[name] ? args : [], view: views[Math.min(args.length, views.length - 1)], query: Object.fromEntries(new URLSearchParams(search || ''))};
}

function open() {
  const next = parse(), same = shown && shown.name === next.name && shown.args.join('/') === next.args.join('/');
  const title = typeof next.view.title === 'function' ? next.view.title(next.args) : next.view.title;
  document.title = `${title} · hpcmass`;
  const go = (changes, quietly) => {
    const query = new URLSearchParams(Object.entries({...shown.query, ...changes}).filter(([, value]) => value));
    const address = to(next.name, ...next.args) + (String(query) ? `?${query}` : '');
    if (!quietly) { location.hash = address; return; }
    history.replaceState(null, '', address); // While somebody types, the way back has no letter after letter.
    clearTimeout(shown.typing);
    shown.query = parse().query;
    shown.typing = setTimeout(() => live.ask(shown.view.path(shown.args, shown.query)), 200);
  };
  if (!same) {
    const back = next.view.back && next.view.back(next.args);
    const tools = next.view.tools && next.view.tools(next.query, go);
    const body = el('div', {id: 'body', 'aria-busy': 'true'}, el('p', {class: 'message'}, 'Reading …'));
    $('main').replaceChildren(...(back ? [el('p', {class: 'back'}, el('a', {href: back[0]}, `← ${back[1]}`))] : []), el('h1', {class: 'view name'}, title), ...(tools ? [el('div', {class: 'tools over'}, tools)] : []), body);
    if (shown) { scrollTo(0, 0); $('main').focus({preventScroll: true}); }
    for (const link of $('nav').children) link.toggleAttribute('aria-current', link.dataset.view === next.name);
    for (const link of $('nav').querySelectorAll('[aria-current]')) { link.setAttribute('aria-current', 'page'); link.scrollIntoView({block: 'nearest', inline: 'nearest'}); }
  }
  shown = {...next, go, keep: same ? shown.keep : {}};
  $('tip').hidden = true;
  live.ask(next.view.path(next.args, next.query));
}

// Drawn anew, with what was open left open, and who was on a link left on it.
function draw(data, error) {
  const body = $('body'), was = document.activeElement, key = body.contains(was) ? was.dataset.key : null;
  const opened = new Map([...body.querySelectorAll('details[data-key]')].map((one) => [one.dataset.key, one.open]));
  const slid = new Map([...body.querySelectorAll('.scroll')].map((one, place) => [place, one.scrollLeft]));
  body.removeAttribute('aria-busy');
  if (error) { body.replaceChildren(el('section', {id: 'error'}, problem(error))); return; }
  // Old charts keep the height of the page until the new ones have theirs.
  body.style.minHeight = `${body.offsetHeight}px`;
  body.replaceChildren(...[shown.view.draw(data, shown)].flat(3).filter(Boolean));
  for (const one of body.querySelectorAll('details[data-key]')) if (opened.has(one.dataset.key)) one.open = opened.get(one.dataset.key);
  body.querySelectorAll('.scroll').forEach((one, place) => { if (slid.get(place)) one.scrollLeft = slid.get(place); });
  if (key) body.querySelector(`[data-key="${CSS.escape(key)}"]`)?.focus({preventScroll: true});
  requestAnimationFrame(() => requestAnimationFrame(() => { body.style.minHeight = ''; document.documentElement.dataset.ready = 'yes'; }));
  if (data.project) { $('project').textContent = data.project; $('project').title = data.root; $('foot').textContent = `${data.root} · hpcmass ${data.version} · reads only`; }
}

function theme() {
  const button = $('theme'), dark = () => (document.documentElement.dataset.theme || (matchMedia('(prefers-color-scheme: dark)').matches ? 'dark' : 'light')) === 'dark';
  const say = () => { button.textContent = dark() ? 'Light' : 'Dark'; };
  const kept = sessionStorage.getItem('theme');
  if (kept === 'dark' || kept === 'light') document.documentElement.dataset.theme = kept;
  button.addEventListener('click', () => { document.documentElement.dataset.theme = dark() ? 'light' : 'dark'; sessionStorage.setItem('theme', document.documentElement.dataset.theme); say(); });
  matchMedia('(prefers-color-scheme: dark)').addEventListener('change', say);
  say();
}

$('nav').replaceChildren(...Object.entries(NAMES).map(([name, text]) => el('a', {href: to(name), 'data-view': name}, text)));
theme();
addEventListener('hashchange', open);
setInterval(tick, 1000);
fetch('api/project').then((answer) => answer.json()).then((found) => { if (found.project) { $('project').textContent = found.project; $('foot').textContent = `${found.root} · hpcmass ${found.version} · reads only`; } }).catch(() => {});
open();
