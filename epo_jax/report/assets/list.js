// The list of episodes: filters, search, order, choice by pointer and keyboard.

const form = document.getElementById('filters');
const list = document.getElementById('list');
const PAGE = 100; // entries that are added at once
let matching = [], shown = 0, current = null, searching = 0;

function fillFilters() {
  for (const name of ['run', 'file', 'condition', 'category']) {
    const values = data.index[name].values, select = form.elements[name];
    select.append(element('option', {value: ''}, 'any'));
    values.forEach((value, code) => select.append(element('option', {value: code},
      name === 'run' ? data.runs[value] : value === null || value === '' ? 'none' : String(value))));
    select.parentElement.hidden = values.length < 2;
  }
}

function passes(n, {codes, truncated, low, high}) {
  const score = index.score[n];
  return codes.every(([name, code]) => data.index[name].codes[n] === code)
    && (truncated === '' || index.truncated[n] === (truncated === 'yes'))
    && (low === null || (score !== null && score >= low)) && (high === null || (score !== null && score <= high));
}

function textOf(episode) {
  return [episode.situation, ...episode.seats.flatMap((seat) => [seat.name, seat.goal]),
    ...episode.turns.flatMap((turn) => [turn.strategy, turn.line])].filter(Boolean).join('\n').toLowerCase();
}

// Calls done with the episodes that hold all words, block by block, so that the page stays usable meanwhile.
function search(candidates, words, done) {
  const ticket = ++searching, wanted = new Set(candidates), found = new Set();
  let b = 0;
  const next = () => {
    if (ticket !== searching) return; // another search has begun
    const until = performance.now() + 30;
    for (; b < blocks.length && performance.now() < until; b += 1) {
      readBlock(b, false).forEach((episode, i) => {
        const n = data.starts[b] + i;
        if (!wanted.has(n)) return;
        const text = textOf(episode);
        if (words.every((word) => text.includes(word))) found.add(n);
      });
    }
    if (b < blocks.length) setTimeout(next);
    else done(candidates.filter((n) => found.has(n)));
  };
  next();
}

function ordered(numbers, order) {
  const score = (n, missing) => (index.score[n] === null ? missing : index.score[n]);
  if (order === 'scenario') return numbers.sort((a, b) => String(index.scenario[a]).localeCompare(String(index.scenario[b])) || a - b);
  if (order === 'low') return numbers.sort((a, b) => score(a, 9) - score(b, 9) || a - b);
  if (order === 'high') return numbers.sort((a, b) => score(b, -9) - score(a, -9) || a - b);
  return numbers;
}

function applyFilters() {
  const value = (name) => form.elements[name].value;
  const bound = (name) => (value(name) === '' ? null : Number(value(name)));
  const filters = {truncated: value('truncated'), low: bound('low'), high: bound('high'),
    codes: ['run', 'file', 'condition', 'category'].flatMap((name) => (value(name) === '' ? [] : [[name, Number(value(name))]]))};
  const candidates = index.id.map((_, n) => n).filter((n) => passes(n, filters));
  const words = value('search').toLowerCase().split(/\s+/).filter(Boolean);
  const finish = (numbers) => { matching = ordered(numbers, value('order')); showList(); };
  if (words.length) search(candidates, words, finish);
  else { searching += 1; finish(candidates); }
}

function showList() {
  document.getElementById('count').textContent = `${matching.length.toLocaleString('en')} of ${
    index.id.length.toLocaleString('en')} episodes.`;
  list.replaceChildren();
  shown = 0;
  extendList();
  if (!matching.includes(current)) open(matching.length ? matching[0] : null);
  else markCurrent();
}

function extendList() {
  for (const n of matching.slice(shown, shown + PAGE)) {
    list.append(element('div', {role: 'option', id: `option-${n}`, 'aria-selected': 'false'},
      element('div', {class: 'title', dir: 'auto'}, index.title[n] || `episode ${index.episode[n]}`),
      element('div', {class: 'about'}, element('bdi', {}, [data.runs.length > 1 && data.runs[index.run[n]], index.file[n],
        index.condition[n]].filter(Boolean).join(' · ')),
      element('span', {class: 'score'}, index.truncated[n] ? 'truncated' : scoreText(n)))));
  }
  shown = Math.min(shown + PAGE, matching.length);
}

function markCurrent() {
  list.querySelectorAll('[aria-selected="true"]').forEach((node) => node.setAttribute('aria-selected', 'false'));
  const place = matching.indexOf(current);
  if (place < 0) return;
  while (shown <= place) extendList();
  const node = document.getElementById(`option-${current}`);
  node.setAttribute('aria-selected', 'true');
  list.setAttribute('aria-activedescendant', node.id);
  if (node.offsetTop < list.scrollTop) list.scrollTop = node.offsetTop;
  const below = node.offsetTop + node.offsetHeight - list.clientHeight;
  if (below > list.scrollTop) list.scrollTop = below;
}

function moveInList(key) {
  const place = matching.indexOf(current), last = matching.length - 1;
  const next = {ArrowDown: place + 1, ArrowUp: place - 1, PageDown: place + 10, PageUp: place - 10, Home: 0, End: last}[key];
  if (next === undefined || last < 0) return false;
  choose(matching[Math.min(Math.max(next, 0), last)]);
  return true;
}
