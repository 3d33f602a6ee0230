// What is open, its address in the page, and the keys.

const reader = document.getElementById('reader');
let other = null; // the episode beside the current one

function open(n, beside = null) {
  current = n;
  other = beside;
  show();
  markCurrent();
}

function choose(n) { // from the list; a comparison goes on with the same two iterations or conditions
  go(n, other === null ? null : counterpart(n, other));
}

function go(n, beside = null) { // what a person chose is in the address
  open(n, beside);
  history.replaceState(null, '', `#e${index.id[n]}${other === null ? '' : `,e${index.id[other]}`}`);
}

function show() {
  if (current === null) {
    reader.replaceChildren(element('p', {class: 'muted'}, 'No episode matches.'));
    return;
  }
  const parts = other === null ? readOne(current) : readTwo(current, other);
  reader.replaceChildren(scenarioBar(), ...parts.filter(Boolean));
}

function scenarioBar() { // steps through the episodes of a scenario, and what to compare with
  const same = sameScenario(current), place = same.indexOf(current);
  if (same.length < 2) return element('p', {class: 'muted'}, 'The only episode of this scenario here.');
  const step = (by, text) => element('button', {type: 'button', disabled: same[place + by] === undefined,
    onclick: () => stepScenario(by)}, text);
  const choice = element('select', {id: 'beside', onchange: () => go(current, choice.value === '' ? null : Number(choice.value))},
    element('option', {value: ''}, 'nothing'), ...same.filter((n) => n !== current).map((n) => element('option', {value: n},
      nameOf(n) + (sameKeys(n, current) ? ' (same random keys)' : ''))));
  choice.value = other === null ? '' : String(other);
  return element('div', {class: 'bar'}, step(-1, '← Earlier'), step(1, 'Later →'),
    element('span', {class: 'muted'}, `${place + 1} of ${same.length} of this scenario`),
    element('label', {}, 'Compare with', choice));
}

function stepScenario(by) {
  const same = sameScenario(current), next = same[same.indexOf(current) + by];
  if (next !== undefined) go(next);
}

function openAddress() {
  const [first, second] = location.hash.slice(1).split(',').map((name) => byId.get(Number(name.replace(/^e/, ''))));
  if (!/^#e\d+/.test(location.hash) || first === undefined) return false;
  if (!matching.includes(first)) form.reset();
  open(first, second === undefined ? null : second);
  return true;
}

function onKey(event) {
  const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName);
  if (event.ctrlKey || event.metaKey || event.altKey || (typing && event.key !== 'Escape')) return;
  const act = {
    '/': () => form.elements.search.focus(),
    '[': () => stepScenario(-1),
    ']': () => stepScenario(1),
    c: () => document.getElementById('beside')?.focus(),
    Escape: () => (typing ? list.focus() : other !== null && go(current)),
  }[event.key];
  if (!act || (current === null && event.key !== '/' && !typing)) return;
  event.preventDefault();
  act();
}

if (data.curves) drawCurves();
if (data.shares) drawShares();
if (form && index.id.length) {
  fillFilters();
  let waiting = 0;
  form.addEventListener('submit', (event) => event.preventDefault());
  form.addEventListener('input', () => { clearTimeout(waiting); waiting = setTimeout(applyFilters, 150); });
  form.addEventListener('reset', () => setTimeout(applyFilters));
  list.addEventListener('click', (event) => {
    const option = event.target.closest('[role="option"]');
    if (option) choose(Number(option.id.slice('option-'.length)));
  });
  list.addEventListener('scroll', () => {
    if (list.scrollTop + list.clientHeight > list.scrollHeight - 200) extendList();
  });
  list.addEventListener('keydown', (event) => {
    if (event.key === 'Enter') reader.focus();
    if (event.key === 'Enter' || moveInList(event.key)) event.preventDefault();
  });
  document.addEventListener('keydown', onKey);
  addEventListener('hashchange', () => { if (openAddress()) document.getElementById('episodes').scrollIntoView(); });
  matching = index.id.map((_, n) => n);
  openAddress();
  const beside = other;
  applyFilters();
  if (beside !== null) open(current, beside);
}
