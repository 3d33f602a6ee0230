// The turns of an episode: strategy, numbers, tokens, and the line that followed.

// A text of a model; with parts of a comparison, those that differ are marked.
function said(text, parts) {
  const node = element('p', {class: 'said', dir: 'auto'});
  if (!parts) node.append(text);
  else for (const [part, differs] of parts) node.append(differs ? element('mark', {class: 'differs'}, part) : part);
  return node;
}

function numbersOf(turn) {
  const shown = [];
  const add = (name, text) => shown.push(element('span', {}, `${name} `, element('b', {}, text)));
  if ('advantage' in turn) {
    const arrow = turn.advantage > 0 ? ' ▲' : turn.advantage < 0 ? ' ▼' : '';
    add('advantage', turn.advantage === null ? 'missing' : signed(turn.advantage) + arrow);
  }
  for (const name of ['reward', 'return', 'critical', 'graded', 'weight']) {
    if (name in turn) add(name, number(turn[name]));
  }
  if (turn.potential) add('potential', turn.potential.map((value) => number(value)).join(' → '));
  return shown.length ? element('div', {class: 'numbers'}, ...shown) : null;
}

function tokensOf(turn, run) {
  if (!turn.tokens) return null;
  const [ids, logprobs] = turn.tokens, texts = data.tokens[run];
  const total = logprobs.reduce((sum, value) => sum + value, 0);
  const view = element('details', {ontoggle: () => view.open && view.children.length === 1 && view.append(
    element('div', {class: 'tokens'}, ...ids.map((id, i) => element('span', {title: `id ${id}`},
      element('bdi', {}, texts[id] ?? `#${id}`), element('small', {}, logprobs[i].toFixed(2))))))},
  element('summary', {}, `${ids.length} tokens, log-probability ${number(total, 2)}`));
  return view;
}

// largest: the largest absolute advantage of the episode, which gets the darkest shade
function turnView(turn, t, episode, run, largest, single, parts) {
  const seat = episode.seats[turn.seat] || {};
  const title = `${t + 1} · ${turn.speaker || seat.name || `seat ${turn.seat}`}`;
  const view = element('div', {class: `turn s${turn.seat}${single ? ' single' : ''}`}, element('h5', {}, title));
  const numbers = numbersOf(turn), tokens = tokensOf(turn, run);
  if (turn.strategy || numbers || tokens) {
    const sign = turn.advantage > 0 ? ' up' : turn.advantage < 0 ? ' down' : '';
    const strategy = element('div', {class: `strategy${sign}`}, said(turn.strategy || 'no strategy', parts && parts.strategy),
      numbers, tokens);
    if (sign) strategy.style.setProperty('--amount', `${Math.round(4 + 26 * Math.abs(turn.advantage) / largest)}%`);
    view.append(strategy);
  } else {
    view.classList.add('single');
  }
  if (turn.line) view.append(element('div', {class: 'line'}, said(turn.line, parts && parts.line)));
  return view;
}

function largestAdvantage(...episodes) {
  return Math.max(1e-9, ...episodes.flatMap((episode) => episode.turns.map((turn) => Math.abs(turn.advantage || 0))));
}
