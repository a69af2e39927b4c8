// Texts that do not stand out from what is behind them by 4.5 to 1 (3 to 1 where they are large), as JSON.
() => {
  const rgb = (text) => { const m = text.match(/[\d.]+/g).map(Number); return m.length < 4 ? [...m, 1] : m; };
  const lum = (c) => c.slice(0, 3).map((v) => { v /= 255; return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; }).reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (node) => { for (; node; node = node.parentElement) { const c = rgb(getComputedStyle(node).backgroundColor); if (c[3] > 0.5) return c; } return [255, 255, 255]; };
  const weak = [], walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let text; (text = walk.nextNode());) {
    const node = text.parentElement, style = getComputedStyle(node);
    if (!text.textContent.trim() || !node.getClientRects().length || ['TITLE', 'NOSCRIPT', 'SCRIPT'].includes(node.tagName) || node.closest('.skip, .unseen, :disabled')) continue;
    const a = lum(rgb(node.namespaceURI.endsWith('svg') ? style.fill : style.color)), b = lum(behind(node));
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), large = parseFloat(style.fontSize) >= 24 || (parseFloat(style.fontSize) >= 18.6 && style.fontWeight >= 700);
    if (ratio < (large ? 3 : 4.5)) weak.push([text.textContent.trim().slice(0, 40), Number(ratio.toFixed(2))]);
  }
  return JSON.stringify(weak);
}
