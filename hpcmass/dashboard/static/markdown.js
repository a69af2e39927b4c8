// The part of Markdown that model cards use, as nodes: what it does not know stays text, and markup is text.
import {el} from './dom.js';

const ESCAPED = /\\([\\`*_{}[\]()#+\-.!|<>&~])/g;
const plain = (text) => text.replace(ESCAPED, '$1').replace(/&(lt|gt|amp|quot|#39|#x27);/g, (whole, name) => ({lt: '<', gt: '>', amp: '&', quot: '"', '#39': "'", '#x27': "'"})[name]);

function inline(text) {
  const parts = [];
  let rest = text;
  for (let found; (found = /(?<!\\)(?:(`+)(.+?)\1|\*\*(.+?)(?<!\\)\*\*)/.exec(rest));) {
    parts.push(plain(rest.slice(0, found.index)), found[1] ? el('code', {}, found[2]) : el('b', {}, plain(found[3])));
    rest = rest.slice(found.index + found[0].length);
  }
  return [...parts, plain(rest)];
}

const cells = (line) => line.trim().replace(/^\||(?<!\\)\|$/g, '').split(/(?<!\\)\|/).map((cell) => inline(cell.trim()));

export function markdown(text) {
  const lines = text.split('\n'), into = el('div', {class: 'markdown'});
  if (lines[0] === '---') lines.splice(0, lines.indexOf('---', 1) + 1); // what machines read of it
  while (lines.length) {
    const line = lines.shift();
    let found;
    if (!line.trim()) continue;
    if ((found = /^(`{3,})\s*(\w*)/.exec(line))) {
      const code = [];
      while (lines.length && !lines[0].startsWith(found[1])) code.push(lines.shift());
      lines.shift();
      if (found[2] !== 'mermaid') into.append(el('pre', {tabindex: 0}, code.join('\n'))); // the lineage is drawn above
    } else if ((found = /^(#{1,6})\s+(.*)/.exec(line))) into.append(el(`h${Math.min(6, found[1].length + 2)}`, {}, inline(found[2])));
    else if (line.trim().startsWith('|') && /^\s*\|?[\s:|-]+\|?\s*$/.test(lines[0] || '')) {
      lines.shift();
      const rows = [];
      while (lines.length && lines[0].trim().startsWith('|')) rows.push(cells(lines.shift()));
      into.append(el('div', {class: 'scroll', tabindex: 0}, el('table', {}, el('thead', {}, el('tr', {}, cells(line).map((cell) => el('th', {scope: 'col'}, cell)))), el('tbody', {}, rows.map((row) => el('tr', {}, row.map((cell) => el('td', {}, cell))))))));
    } else if (/^\s*[-*]\s+/.test(line)) {
      const items = [line];
      while (lines.length && /^\s*[-*]\s+/.test(lines[0])) items.push(lines.shift());
      into.append(el('ul', {}, items.map((item) => el('li', {}, inline(item.replace(/^\s*[-*]\s+/, ''))))));
    } else {
      const part = [line];
      while (lines.length && lines[0].trim() && !/^(#|`{3}|\||\s*[-*]\s)/.test(lines[0])) part.push(lines.shift());
      into.append(el('p', {}, inline(part.join(' '))));
    }
  }
  return into;
}
