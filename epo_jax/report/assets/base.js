// Elements, numbers, and the embedded data. Text of models becomes text nodes only.

const data = JSON.parse(document.getElementById('data').textContent);
const blocks = [...document.querySelectorAll('script.block')];
const parsed = new Map(); // the blocks that were read last, by number

function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith('on')) node.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value === true ? '' : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

function number(value, digits = 3) {
  if (value === null || value === undefined) return 'missing';
  if (value !== 0 && (Math.abs(value) >= 1e5 || Math.abs(value) < 1e-3)) return value.toExponential(2);
  return String(Number(value.toFixed(digits)));
}

const signed = (value) => (value > 0 ? '+' : '') + number(value);

function column(name) { // the values of a column of the index, by episode
  const found = data.index[name];
  return Array.isArray(found) ? found : found.codes.map((code) => found.values[code]);
}

function readBlock(b, keep) { // the episodes of a block; those of a few blocks are kept
  if (parsed.has(b)) return parsed.get(b);
  const episodes = JSON.parse(blocks[b].textContent);
  if (keep) {
    if (parsed.size > 7) parsed.delete(parsed.keys().next().value);
    parsed.set(b, episodes);
  }
  return episodes;
}

function readEpisode(n) {
  let b = data.starts.length - 1;
  while (data.starts[b] > n) b -= 1;
  return readBlock(b, true)[n - data.starts[b]];
}
