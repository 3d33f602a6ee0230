// The reader: one episode, or two side by side.

const index = Object.fromEntries(['run', 'file', 'iteration', 'scenario', 'category', 'condition', 'keys', 'id', 'episode',
  'score', 'truncated', 'title'].map((name) => [name, data.index ? column(name) : []]));
const byId = new Map(index.id.map((id, n) => [id, n]));

function nameOf(n, withRun = data.runs.length > 1) {
  return [withRun && data.runs[index.run[n]], index.file[n], index.condition[n], `episode ${index.episode[n]}`]
    .filter(Boolean).join(' · ');
}

function sameScenario(n) { // the episodes of a scenario, in the order in which they were played
  return index.scenario.flatMap((scenario, other) => (scenario !== null && scenario === index.scenario[n] ? [other] : []));
}

// A conversation of a file without iterations may have no score; in a run, a score that is not there is missing.
function scoreText(n) { return index.score[n] === null && index.iteration[n] === null ? '' : number(index.score[n]); }

function sameKeys(a, b) { return index.keys[a] !== null && JSON.stringify(index.keys[a]) === JSON.stringify(index.keys[b]); }

// The episode of this scenario that is from the same run, file and condition as another one.
function counterpart(n, like) {
  const found = sameScenario(n).filter((m) => m !== n && ['run', 'file', 'condition'].every(
    (name) => index[name][m] === index[name][like]));
  return found.find((m) => sameKeys(m, n)) ?? found[0] ?? null;
}

function chips(n, episode, brief) {
  const items = [['', nameOf(n)], ['score', scoreText(n)], ['category', brief ? null : index.category[n]],
    ['scenario', brief ? null : index.scenario[n]]].filter(([, value]) => value !== null && value !== '');
  if (index.truncated[n]) items.push(['truncated', episode.failure || 'yes']);
  return element('ul', {class: 'chips'}, ...items.map(([name, value]) => element('li', {},
    name ? `${name} ` : '', element('bdi', {}, element('b', {}, String(value))))));
}

function factText(value) {
  if (value !== null && typeof value === 'object') {
    const entries = Array.isArray(value) ? value.map(factText)
      : Object.entries(value).map(([name, part]) => `${name} ${factText(part)}`);
    return entries.join(', ') || 'none';
  }
  return typeof value === 'number' ? number(value) : value === null ? 'missing' : String(value);
}

// brief: without the goal, which is shown elsewhere
function seatView(seat, s, brief) {
  const facts = Object.entries(seat).filter(([name, value]) => !['name', 'goal', 'strategist', 'outcome', 'tested', 'notes']
    .includes(name) && value !== null && value !== '');
  const notes = Object.entries(seat.notes);
  const list = (entries) => entries.map(([name, value]) => element('p', {dir: 'auto'}, element('b', {}, `${name}: `),
    factText(value)));
  return element('div', {class: `seat s${s}`},
    element('h4', {dir: 'auto'}, element('bdi', {}, seat.name || `seat ${s}`), seat.tested ? ' (tested)' : ''),
    !brief && seat.goal && element('p', {dir: 'auto'}, seat.goal),
    element('p', {class: 'muted'}, 'outcome' in seat && `outcome ${number(seat.outcome)}`,
      seat.strategist && element('span', {}, 'outcome' in seat ? ' · strategist ' : 'strategist ', element('bdi', {}, seat.strategist))),
    notes.length > 0 && element('details', {}, element('summary', {}, "Judge's notes"), ...list(notes)),
    facts.length > 0 && element('details', {}, element('summary', {}, 'More'), ...list(facts)));
}

function goalView(seat, s) {
  return element('div', {class: `seat s${s}`}, element('h4', {dir: 'auto'}, seat.name || `seat ${s}`),
    element('p', {dir: 'auto'}, seat.goal || ''));
}

function head(n, episode, brief) {
  const facts = Object.entries(episode.facts);
  return [chips(n, episode, brief),
    !brief && episode.situation && element('p', {class: 'situation', dir: 'auto'}, episode.situation),
    element('div', {class: 'seats'}, ...episode.seats.map((seat, s) => seatView(seat, s, brief || seat.goal === episode.situation))),
    facts.length > 0 && element('details', {class: 'muted'}, element('summary', {}, 'Facts'), element('dl', {class: 'facts'},
      ...facts.map(([name, value]) => element('div', {}, element('dt', {}, name), element('dd', {dir: 'auto'}, factText(value))))))];
}

function readOne(n) {
  const episode = readEpisode(n), largest = largestAdvantage(episode);
  return [...head(n, episode, false),
    ...episode.turns.map((turn, t) => turnView(turn, t, episode, index.run[n], largest, false, null))];
}

function readTwo(a, b) { // the turns of both in rows, words that differ marked
  const both = [readEpisode(a), readEpisode(b)], numbers = [a, b], largest = largestAdvantage(...both);
  const opening = (episode) => JSON.stringify([episode.situation, ...episode.seats.map((seat) => [seat.name, seat.goal])]);
  const oneOpening = opening(both[0]) === opening(both[1]);
  const rows = [element('div', {class: 'sides'}, ...both.map((episode, side) => element('div', {},
    ...head(numbers[side], episode, oneOpening).filter(Boolean))))];
  let same = 0;
  for (let t = 0; t < Math.max(both[0].turns.length, both[1].turns.length); t += 1) {
    const pair = both.map((episode) => episode.turns[t]);
    const parts = [{}, {}];
    for (const name of ['strategy', 'line']) {
      const compared = compareWords((pair[0] && pair[0][name]) || '', (pair[1] && pair[1][name]) || '');
      compared.forEach((found, side) => { parts[side][name] = pair[side] && pair[side][name] ? found : null; });
    }
    same += pair[0] && pair[1] && pair[0].strategy === pair[1].strategy && pair[0].line === pair[1].line ? 1 : 0;
    rows.push(element('div', {class: 'sides'}, ...pair.map((turn, side) => (turn
      ? turnView(turn, t, both[side], index.run[numbers[side]], largest, true, parts[side])
      : element('p', {class: 'same'}, `turn ${t + 1}: none`)))));
  }
  const facts = [sameKeys(a, b) ? 'The same scenario and random keys.' : 'The same scenario, with other random keys.',
    `${same} of ${rows.length - 1} turns are the same; differing words are underlined.`];
  return [oneOpening && both[0].situation && element('p', {class: 'situation', dir: 'auto'}, both[0].situation),
    oneOpening && element('div', {class: 'seats'}, ...both[0].seats.map(goalView)),
    element('p', {class: 'muted'}, facts.join(' ')), ...rows];
}
