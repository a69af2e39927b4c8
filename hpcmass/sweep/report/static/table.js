// Failures, and the table of all trials.
function failures() {
  const all = D.failures.reduce((sum, one) => sum + one.trials.length, 0);
  const box = section('failures', 'Failures', all ? `${count(all, 'trial')} failed; alike ones stand together.` : null);
  if (!all) message(box, 'No trial failed.');
  else kinds(box);
  if (D.attempts.causes.length) {
    box.append(el('h3', {css: {'margin-top': '18px'}}, 'Attempts that ended early'), el('div', {class: 'scroll'}, el('table', {id: 'attempts'},
      el('thead', {}, el('tr', {}, ['cause', 'attempts', 'cost no retry', 'tried again'].map((t, i) => el('th', {scope: 'col', class: i ? 'num' : null}, t)))),
      el('tbody', {}, D.attempts.causes.map(([cause, ...counts]) => el('tr', {}, el('td', {class: 'name'}, cause), counts.map((n) => el('td', {class: 'num'}, fmt(n)))))))));
    box.append(el('p', {class: 'note under'}, `of ${count(D.attempts.ended, 'attempt')}`));
  }
}
function kinds(box) {
  const causes = new Map();
  for (const one of D.failures) causes.set(one.cause, (causes.get(one.cause) || 0) + one.trials.length);
  const most = Math.max(...causes.values());
  box.append(el('div', {class: 'bars', css: {'margin-bottom': '14px'}}, [...causes].sort((x, y) => y[1] - x[1]).map(([cause, n]) => [el('div', {class: 'name'}, cause),
    el('div', {class: 'track', 'aria-hidden': 'true'}, el('div', {class: 'fill', css: {width: `${100 * n / most}%`, background: 'var(--failed)'}})), el('div', {class: 'amount'}, fmt(n))])));
  for (const one of D.failures) {
    const shown = one.trials.slice(0, 12);
    box.append(el('div', {class: 'fail'}, el('div', {class: 'line'}, el('span', {class: 'count'}, `${one.trials.length} ×`), el('strong', {class: 'name'}, one.cause),
      el('span', {class: 'links'}, shown.map((n) => el('button', {type: 'button', onclick: () => showTrial(n)}, `trial ${n}`)), one.trials.length > 12 ? `and ${fmt(one.trials.length - 12)} more` : '')),
    el('div', {class: 'text'}, one.text), one.hint ? el('p', {class: 'note'}, one.hint) : null,
    one.traceback ? el('details', {}, el('summary', {}, `Traceback of trial ${one.trials[0]}, rank ${fmt(one.rank)}${one.host ? ` on ${one.host}` : ''}`), el('pre', {tabindex: 0}, one.traceback)) : null));
  }
}

function trialTable() {
  const PAGE = 50;
  const columns = [{name: 'trial', get: (i) => T.number[i]}, {name: 'state', get: (i) => T.state[i], show: (i) => chip(T.state[i], T.feasible[i] === false ? `${T.state[i]}, beyond` : SEVERAL && T.front[i] ? `${T.state[i]}, front` : T.state[i])}];
  for (const [name, values] of T.measured) columns.push({name, get: (i) => values[i], number: true});
  for (const [name, values] of T.params) columns.push({name, get: (i) => values[i], number: values.every((v) => v === null || typeof v === 'number')});
  columns.push({name: 'time', get: (i) => T.seconds[i], show: (i) => isNumber(T.seconds[i]) ? span(T.seconds[i]) : '–', number: true}, {name: 'attempts', get: (i) => T.attempts[i], number: true});
  if (T.target.some((t) => t)) columns.push({name: 'target', get: (i) => T.target[i]});
  if (T.reason.some((r) => r)) columns.push({name: 'reason', get: (i) => T.reason[i], long: true});
  let by = 2, up = signOf(0) === 1, page = 0, state = 0, words = '', rows = [];
  const states = ['all', ...STATES.filter((s) => COUNTS[s])];
  const box = section('trials', 'Trials', null, choice('state', states, (v) => { state = v; page = 0; fillRows(); }),
    el('label', {}, el('span', {}, 'find'), el('input', {type: 'search', size: 14, oninput: (e) => { words = e.target.value.toLowerCase(); page = 0; fillRows(); }})));
  const heads = columns.map((column, n) => el('th', {scope: 'col', class: column.number ? 'num' : null}, el('button', {type: 'button', class: 'name', title: column.name, onclick: () => {
    up = by === n ? !up : true; by = n; page = 0; fillRows();
  }}, column.name)));
  const body = el('tbody'), said = el('span', {id: 'rows-said', 'aria-live': 'polite'});
  const turn = (d) => () => { page += d; fillRows(); };
  const back = el('button', {type: 'button', onclick: turn(-1)}, 'Previous'), on = el('button', {type: 'button', onclick: turn(1)}, 'Next');
  box.append(el('div', {class: 'scroll', tabindex: 0, role: 'region', 'aria-label': 'Table of trials'}, el('table', {class: 'rows', id: 'rows'}, el('thead', {}, el('tr', {}, heads)), body)), el('div', {class: 'pages'}, back, on, said));
  function fillRows() {
    rows = T.number.map((_, i) => i).filter((i) => (!state || T.state[i] === states[state]) && (!words || columns.some((column) => { const v = column.get(i); return v !== null && v !== undefined && String(v).toLowerCase().includes(words); })));
    const get = columns[by].get, way = up ? 1 : -1, none = (v) => v === null || v === undefined;
    rows.sort((i, j) => {
      const a = get(i), b = get(j);
      if (none(a) || none(b)) return none(a) - none(b) || i - j; // what is not known comes last, either way
      return (typeof a === 'number' && typeof b === 'number' ? a - b : String(a).localeCompare(String(b))) * way || i - j;
    });
    page = Math.max(0, Math.min(page, Math.ceil(rows.length / PAGE) - 1));
    heads.forEach((head, n) => { if (n === by) head.setAttribute('aria-sort', up ? 'ascending' : 'descending'); else head.removeAttribute('aria-sort'); });
    body.replaceChildren(...rows.slice(page * PAGE, (page + 1) * PAGE).map((i) => el('tr', {'data-trial': T.number[i], onclick: () => showTrial(i)}, columns.map((column, n) =>
      el('td', {class: column.number ? 'num' : column.long ? 'long' : null}, n === 0 ? el('button', {type: 'button', 'aria-label': `Trial ${T.number[i]} in full`}, fmt(T.number[i])) : column.show ? column.show(i) : column.long ? cut(column.get(i) ?? '', 160) : fmt(column.get(i)))))));
    const first = rows.length ? page * PAGE + 1 : 0, last = Math.min(rows.length, (page + 1) * PAGE);
    said.textContent = rows.length === N ? `${fmt(first)}–${fmt(last)} of ${fmt(N)}` : `${fmt(first)}–${fmt(last)} of ${fmt(rows.length)} found (${fmt(N)} in all)`;
    back.disabled = page === 0; on.disabled = last >= rows.length;
  }
  fillRows();
}
