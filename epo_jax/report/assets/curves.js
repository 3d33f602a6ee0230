// The curves of all runs: thin lines for runs of which there is a mean over seeds, and that mean with its interval.

function drawCurves() {
  const {unit, charts, runs, bands} = data.curves;
  const used = runs.filter((run) => run.x.length);
  const x = [...new Set(used.flatMap((run) => run.x))].sort((a, b) => a - b);
  const place = new Map(x.map((at, i) => [at, i]));
  const spread = (from, y) => {
    const values = new Array(x.length).fill(null);
    from.forEach((at, i) => { values[place.get(at)] = y[i]; });
    return values;
  };
  const short = (metric) => metric.slice(metric.indexOf('/') + 1);
  const more = document.getElementById('more-charts');
  for (const chart of charts) {
    const series = [], shaded = [];
    let style = 0;
    for (const metric of chart.metrics) {
      const several = chart.metrics.length > 1;
      const label = (name) => (runs.length === 1 ? metric : several ? `${name}, ${short(metric)}` : name);
      for (const band of bands) {
        if (!band.y[metric]) continue;
        const [mean, low, high] = band.y[metric].map((y) => spread(band.x, y));
        shaded.push([series.length + 2, series.length + 1, style]);
        series.push({label: label(band.name), y: mean, style, width: 3}, {label: 'low', y: low, style, hidden: true},
          {label: 'high', y: high, style, hidden: true});
        style += 1;
      }
      runs.forEach((run, r) => {
        const faint = bands.some((band) => band.runs.includes(r));
        if (!run.y[metric] || (faint && several)) return; // too many lines for one plot
        series.push({label: label(run.name), y: spread(run.x, run.y[metric]), style, faint, width: faint ? 1.5 : 2});
        style += 1;
      });
    }
    plotInto(chart.more ? more.lastElementChild : document.getElementById('charts'),
      {title: chart.title, note: chart.note, unit, x, series, bands: shaded, log: chart.log});
  }
  if (!more.lastElementChild.children.length) more.remove();
}

function drawShares() { // how the shares of the kinds of strategies move
  for (const {name, x, y} of data.shares) {
    plotInto(document.getElementById('shares'), {
      title: data.runs.length > 1 ? `Shares in ${name}` : 'Shares over training', note: 'of the strategies of an iteration',
      unit: 'iteration', x, series: y.map((values, k) => ({label: `kind ${k + 1}`, y: values, style: k}))});
  }
}
