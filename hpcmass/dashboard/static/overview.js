// A little of everything, each with the way to more.
import {chip, el, fmt, problem, section, tile, to} from './dom.js';
import {deploymentList} from './deployments.js';
import {modelList} from './models.js';
import {runList} from './runs.js';
import {studyList} from './studies.js';

export const overview = {
  title: 'Overview',
  path: () => 'overview',
  draw: ({runs, studies, models, deployments}) => {
    const part = (id, title, found, list) => section(id, title, found.error ? '' : el('a', {href: to(id), 'data-key': `all ${id}`}, 'All'), found.error ? problem(`It cannot be read: ${found.error}`) : list());
    const active = studies.error ? 0 : studies.studies.filter((one) => one.state === 'running').length;
    const served = deployments.error ? [] : deployments.deployments.filter((one) => one.state !== 'ENDED');
    const value = (found, read) => found.error ? chip('UNKNOWN') : read();
    return [
      el('dl', {class: 'tiles'},
        tile('Runs under way', value(runs, () => fmt(runs.counts.RUNNING)), runs.error ? '' : `of ${fmt(runs.total)}${runs.unread ? `, ${fmt(runs.unread)} not read yet` : ''}`),
        tile('Failed runs', value(runs, () => fmt(runs.counts.FAILED)), runs.error || !runs.counts.UNKNOWN ? '' : `and ${fmt(runs.counts.UNKNOWN)} unknown`),
        tile('Sweeps under way', value(studies, () => fmt(active)), studies.error ? '' : `of ${fmt(studies.total)}`),
        tile('Versions', value(models, () => fmt(models.total)), 'in the catalogue'),
        tile('Deployments', value(deployments, () => fmt(served.length)), served.some((one) => one.state !== 'READY') ? `${fmt(served.filter((one) => one.state === 'READY').length)} ready` : '')),
      part('runs', 'Runs', runs, () => runList(runs.runs)),
      part('studies', 'Sweeps', studies, () => studyList(studies.studies)),
      part('models', 'Models', models, () => modelList(models.versions)),
      part('deployments', 'Deployments', deployments, () => deploymentList(deployments.deployments)),
    ];
  },
};
