// Scales: from values to 0…1, with ticks that fit.
function linear(low, high) {
  if (!(high > low)) { const pad = Math.abs(low) * 0.05 || 0.5; low -= pad; high += pad; }
  const map = (v) => (v - low) / (high - low);
  return {kind: 'linear', low, high, map, invert: (x) => low + x * (high - low), ticks: (n) => evenly(low, high, n)};
}
function evenly(low, high, n) {
  const raw = (high - low) / Math.max(1, n), power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].find((s) => s * power >= raw * 0.999) * power;
  const digits = Math.max(0, Math.min(12, -Math.floor(Math.log10(step) + 1e-9) + (String(step / power).startsWith('2.5') ? 1 : 0)));
  const ticks = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-9; k++) {
    const v = k * step, size = Math.max(Math.abs(low), Math.abs(high));
    ticks.push([v, size >= 1e6 || (step < 1e-5 && step > 0) ? (Math.abs(v) < step / 2 ? '0' : Number(v.toPrecision(6)).toExponential().replace('e+', 'e')) : v.toFixed(digits)]);
  }
  return ticks;
}
function logarithmic(low, high) {
  if (!(high > low)) { low /= 1.5; high *= 1.5; }
  const a = Math.log(low), b = Math.log(high);
  return {kind: 'log', low, high, map: (v) => (Math.log(v) - a) / (b - a), invert: (x) => Math.exp(a + x * (b - a)), ticks: (n) => {
    const first = Math.ceil(Math.log10(low) - 1e-9), last = Math.floor(Math.log10(high) + 1e-9);
    if (last - first < 1) {
      const inside = [];
      for (let e = Math.floor(Math.log10(low)); e <= last; e++) for (const m of [1, 1.5, 2, 3, 5, 7]) if (m * 10 ** e >= low * 0.999 && m * 10 ** e <= high * 1.001) inside.push([m * 10 ** e, power(m * 10 ** e)]);
      return inside.length >= 2 ? inside.filter((_, i) => i % Math.ceil(inside.length / Math.max(2, n)) === 0) : [[low, power(low)], [high, power(high)]];
    }
    const every = Math.max(1, Math.ceil((last - first + 1) / Math.max(1, n)));
    const ticks = [];
    for (let e = first; e <= last; e += every) ticks.push([10 ** e, power(10 ** e)]);
    return ticks;
  }};
}
function power(v) {
  if (v >= 0.001 && v < 1e5) return String(Number(v.toPrecision(3)));
  return Number(v.toPrecision(3)).toExponential().replace('e+', 'e');
}
function categories(values) {
  const places = new Map(values.map((v, i) => [v, i]));
  const n = values.length;
  return {kind: 'category', values, map: (v) => places.has(v) ? (places.get(v) + 0.5) / n : NaN, invert: (x) => values[Math.min(n - 1, Math.max(0, Math.floor(x * n)))],
    ticks: () => values.map((v) => [v, fmt(v)])};
}
function times(low, high) {
  const base = linear(low, Math.max(high, low + 0.5));
  const steps = [0.1, 0.25, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 21600, 43200, 86400, 172800, 604800, 1209600, 2592000];
  return {...base, kind: 'time', ticks: (n) => {
    const length = base.high - base.low, step = steps.find((s) => length / s <= n) || Math.ceil(length / n / 2592000) * 2592000;
    const zone = new Date(base.low * 1000).getTimezoneOffset() * 60, ticks = [];
    for (let k = Math.ceil((base.low - zone) / step); k * step + zone <= base.high; k++) ticks.push([k * step + zone, clock(k * step + zone, step)]);
    return ticks;
  }};
}
function clock(t, step) {
  const at = new Date(t * 1000), two = (v) => String(v).padStart(2, '0');
  const day = at.toLocaleDateString(undefined, {day: 'numeric', month: 'short'}), hm = `${two(at.getHours())}:${two(at.getMinutes())}`;
  if (step >= 86400 || (step >= 3600 && hm === '00:00')) return day;
  if (step >= 60) return hm;
  return `${hm}:${two(at.getSeconds())}${step < 1 ? (t % 1).toFixed(step === 0.25 ? 2 : 1).slice(1) : ''}`;
}
// The scale of a parameter: as the space has it, else as its values are.
function scaleOf(name, values, pad = 0) {
  const one = STUDY.space[name] || {};
  const seen = values.filter((v) => v !== null && v !== undefined);
  if (one.type === 'categorical' || seen.some((v) => typeof v !== 'number')) {
    const all = [...(one.choices || []), ...seen];
    return categories([...new Set(all)].slice(0, 200));
  }
  let low = isNumber(one.low) ? one.low : Infinity, high = isNumber(one.high) ? one.high : -Infinity;
  for (const v of seen) { if (v < low) low = v; if (v > high) high = v; }
  if (!Number.isFinite(low)) { low = 0; high = 1; }
  if (one.log && low > 0) { const more = (high / low) ** pad; return logarithmic(low / more, high * more); }
  const scale = linear(low - pad * (high - low), high + pad * (high - low)), step = one.step || 1;
  if (one.type === 'int') {
    const all = Math.floor((high - low) / step) + 1;
    // Whole numbers only, and where there are few, all that can be.
    scale.ticks = (n) => all <= 12 ? Array.from({length: all}, (_, i) => [low + i * step, fmt(low + i * step)]).filter((_, i) => i % Math.ceil(all / Math.max(4, n)) === 0)
      : evenly(scale.low, scale.high, n).filter(([v]) => Number.isInteger(v)).map(([v]) => [v, fmt(v)]);
  }
  return scale;
}
// The scale of values. A few that lie far out on the bad side are drawn at the edge, lest the rest be a line.
function scaleOfValues(values, sign, {log = false, clip = true} = {}) {
  const seen = values.filter(isNumber).sort((a, b) => a - b);
  if (!seen.length) return linear(0, 1);
  let low = seen[0], high = seen[seen.length - 1];
  if (log && low > 0) return logarithmic(low * 0.97, high * 1.03);
  if (clip && seen.length >= 10) {
    const at = (q) => seen[Math.round(q * (seen.length - 1))];
    const reach = (at(0.9) - at(0.1)) || (at(0.95) - at(0.05));
    if (reach > 0 && sign > 0 && high > at(0.9) + 3 * reach) high = seen.filter((v) => v <= at(0.9) + 1.5 * reach).pop();
    if (reach > 0 && sign < 0 && low < at(0.1) - 3 * reach) low = seen.find((v) => v >= at(0.1) - 1.5 * reach);
  }
  const pad = (high - low) * 0.06;
  return linear(low - pad, high + pad);
}
