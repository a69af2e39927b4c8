// Asks again while the page is seen: what has not changed is neither sent nor drawn.

const EVERY_MS = 2000, SLOWEST_MS = 30000;

export class Live {
  // told(data, error): with the data when it changed; with an error when it cannot be had.
  constructor(told, heard) {
    this.told = told;
    this.heard = heard; // 'live', 'lost', 'paused'
    this.path = null;
    this.turn = 0;
    document.addEventListener('visibilitychange', () => { if (!document.hidden) this.now(); });
  }

  ask(path) {
    this.path = path;
    this.tag = null;
    this.last = null;
    this.now();
  }

  now() {
    clearTimeout(this.timer);
    this.turn += 1;
    this.waits = EVERY_MS;
    if (this.path !== null) this.round(this.turn);
  }

  async round(turn) {
    if (document.hidden) { this.heard('paused'); return; }
    const began = performance.now();
    try {
      const answer = await fetch(`api/${this.path}`, {headers: this.tag ? {'If-None-Match': this.tag} : {}, cache: 'no-store'});
      const body = answer.status === 304 ? null : await answer.json();
      if (turn !== this.turn) return;
      this.heard(answer.status === 401 ? 'out' : 'live');
      if (answer.ok) { this.tag = answer.headers.get('ETag'); this.last = null; this.told(body, null); }
      else if (answer.status !== 304 && answer.status !== 401) this.fail(body.hint ? `${body.error}: ${body.hint}` : body.error);
      this.waits = EVERY_MS;
    } catch {
      if (turn !== this.turn) return;
      this.heard('lost');
      this.waits = Math.min(SLOWEST_MS, this.waits * 2);
    }
    // A folder that answers slowly is asked more seldom.
    const took = performance.now() - began;
    this.timer = setTimeout(() => this.round(turn), Math.max(this.waits, 4 * took));
  }

  fail(text) {
    this.tag = null;
    if (this.last !== text) { this.last = text; this.told(null, text || 'it cannot be read'); }
  }
}
