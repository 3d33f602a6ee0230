// One plot: series over a shared x axis, bands between pairs of series, a table of all values.

const DASHES = [[], [8, 4], [2, 3], [10, 3, 2, 3], [5, 2], [1, 2], [12, 4], [3, 6]];
const LIGHT = ['#0072b2', '#c04f00', '#00805c', '#b0569a', '#a06a00', '#2f8fc4', '#555555', '#7a4fc0'];
const DARK = ['#6fb7ee', '#ff9e5e', '#4fd1a5', '#e8a6cc', '#f0c14b', '#a5d8ff', '#c0c0c0', '#bda4f2'];
const dark = matchMedia('(prefers-color-scheme: dark)');
const drawn = new Set(); // functions that draw a plot again

dark.addEventListener('change', () => drawn.forEach((draw) => draw()));

function styled(name) { return getComputedStyle(document.documentElement).getPropertyValue(name).trim(); }

// series: [{label, y, style, width, faint, hidden}]; bands: [[high, low, style]], numbers of series
function plotInto(parent, {title, note, unit, x, series, bands = [], log = false}) {
  const holder = element('div', {class: 'plot', tabindex: 0, role: 'img',
    'aria-label': `${title}: arrow keys move the cursor; the table of values follows`});
  const values = element('details', {ontoggle: () => values.open && values.children.length === 1 && values.append(
    valueTable(unit, x, series))}, element('summary', {}, 'Values'));
  parent.append(element('figure', {class: 'chart'}, element('figcaption', {}, title), element('p', {}, note), holder,
    values));
  // Intervals of few seeds are wide, so the lines set the range of the axis.
  const lines = series.filter((one) => !one.hidden).flatMap((one) => one.y).filter((v) => v !== null);
  const lowest = Math.min(...lines), highest = Math.max(...lines);
  const room = 0.08 * (highest - lowest) || 0.1 * Math.abs(highest) || 1;
  const positive = series.every((one) => one.y.every((v) => v === null || v > 0));
  let plot = null;
  const draw = () => {
    if (plot) plot.destroy();
    const colors = dark.matches ? DARK : LIGHT;
    const axis = {stroke: styled('--muted'), grid: {stroke: styled('--line'), width: 1}, ticks: {show: false}, font: '12px system-ui'};
    const styles = series.map((one) => {
      const color = colors[one.style % colors.length] + (one.faint ? '70' : '');
      return {label: one.label, stroke: color, width: one.hidden ? 0 : one.width || 2, dash: DASHES[one.style % DASHES.length],
        spanGaps: true, points: {show: one.hidden ? false : x.length < 40, size: 5},
        value: (_, v, s, i) => (i === null || i === undefined ? '' : legendText(series, s - 1, i))};
    });
    plot = new uPlot({
      width: Math.max(holder.clientWidth, 200), height: 220,
      scales: {x: {time: false}, y: log && positive ? {distr: 3} : {range: [lowest - room, highest + room]}},
      axes: [{...axis, size: 34, incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5, 1e6]},
             {...axis, size: 58, values: (_, ticks) => ticks.map((v) => (v === null ? '' : number(v)))}],
      legend: {live: true, markers: {width: 0}}, cursor: {drag: {x: true, y: false}, points: {size: 7}},
      series: [{label: unit, value: (_, v) => (v ?? '')}, ...styles],
      bands: bands.map(([high, low, style]) => ({series: [high + 1, low + 1], fill: colors[style % colors.length] + '2e'})),
    }, [x, ...series.map((one) => one.y)], holder);
    const rows = holder.querySelectorAll('.u-legend .u-series');
    series.forEach((one, s) => {
      rows[s + 1].hidden = Boolean(one.hidden);
      rows[s + 1].querySelector('.u-marker').style.background = dashes(styles[s]);
    });
  };
  const move = (step) => {
    const at = plot.cursor.idx;
    const next = Math.min(Math.max(at === null || at === undefined ? 0 : at + step, 0), x.length - 1);
    plot.setCursor({left: plot.valToPos(x[next], 'x'), top: 20});
  };
  holder.addEventListener('keydown', (event) => {
    const step = {ArrowLeft: -1, ArrowRight: 1}[event.key];
    if (step && plot) { event.preventDefault(); move(step); }
  });
  const watch = new IntersectionObserver((seen) => { // drawn when it comes into view
    if (!seen.some((entry) => entry.isIntersecting)) return;
    watch.disconnect();
    draw();
    drawn.add(draw);
    new ResizeObserver(() => plot.setSize({width: Math.max(holder.clientWidth, 200), height: 220})).observe(holder);
  }, {rootMargin: '200px'});
  watch.observe(holder);
}

// The marker of the legend has the dashes of the line.
function dashes({stroke, dash}) {
  let at = 0;
  const parts = dash.map((length, i) => `${i % 2 ? 'transparent' : stroke} ${at}px ${at += length}px`);
  return parts.length ? `repeating-linear-gradient(to right, ${parts.join(', ')})` : stroke;
}

// A mean is followed by its interval, the two hidden series after it.
function legendText(series, s, i) {
  const shown = number(series[s].y[i] ?? null, 4);
  if (!(series[s + 1] || {}).hidden || series[s].y[i] === null) return shown;
  return `${shown} [${number(series[s + 1].y[i], 4)}, ${number(series[s + 2].y[i], 4)}]`;
}

function valueTable(unit, x, series) {
  const cell = (v) => element('td', {}, v === null || v === undefined ? '–' : number(v, 5));
  return element('div', {class: 'scroll', tabindex: 0}, element('table', {},
    element('thead', {}, element('tr', {}, element('th', {}, unit), ...series.map((one) => element('th', {}, one.label)))),
    element('tbody', {}, ...x.map((at, i) => element('tr', {}, element('th', {}, String(at)),
      ...series.map((one) => cell(one.y[i])))))));
}
