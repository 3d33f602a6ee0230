"""Assemble the report as one HTML file that needs nothing else, and write it.

Model text is data. It is in the page only as text that Jinja has escaped, or as JSON in which no character can end a
script, and the scripts of the page insert it as text. A content security policy allows these scripts by their hash and
no others, and no network.
"""

import base64
import hashlib
import json
from pathlib import Path
import re
from typing import Any, Iterator, Mapping, Optional, Sequence

import jinja2

from epo_jax.report import episodes as records, rows, selfplay, strategies
from epo_jax.report.curves import curves
from epo_jax.report.sample import sample
from epo_jax.report.settings import reproduction, settings
from epo_jax.report.sources import Source, read_source
from epo_jax.report.tables import arms, evaluations, protocol_warning
from epo_jax.report.tokens import token_texts
from epo_jax.runtime.files import write_atomically

SIZE = 20_000_000  # bytes of the embedded episodes
BLOCK = 250_000    # bytes of JSON that the page parses at once
HERE = Path(__file__).parent
SCRIPTS = ('base', 'plot', 'curves', 'words', 'turns', 'reader', 'list', 'start')
CODED = ('run', 'file', 'iteration', 'scenario', 'category', 'condition', 'keys')  # columns with few different values

# What JSON must not spell out inside of HTML: ends of scripts, separators of lines, and halves of surrogate pairs.
_UNSAFE = re.compile('[<>&\u2028\u2029\ud800-\udfff]')


def write_report(paths: Sequence[str], out: str, size: int = SIZE) -> None:
    """Write the report of runs, evaluations, traffic or files of conversations.

    Args:
      paths: see `sources.read_source`.
      out: the HTML file; it is replaced at once.
      size: number of bytes of the embedded episodes, at most.

    Raises:
      InputError: a path holds nothing to report on, or a file is damaged.
    """
    write_atomically(out, build(paths, size).encode('utf-8'))


def build(paths: Sequence[str], size: int = SIZE) -> str:
    """Return the report as HTML; see `write_report`."""
    sources = _distinct([read_source(path) for path in paths])
    found, outcomes = _episodes(sources)
    embedded = sample(found, size)
    kinds, why = strategies.cluster(found, [source.name for source in sources])
    evaluated = [evaluations(source) for source in sources]
    finals = [found[0] for found in evaluated if found]
    data = {
        'runs': [source.name for source in sources], 'curves': curves(sources), 'index': _index(embedded),
        'shares': kinds and kinds.shares, 'tokens': [
            token_texts(source.config, [e for e in embedded if e['run'] == r]) for r, source in enumerate(sources)]}
    blocks = list(_blocks(embedded))
    data['starts'] = [start for start, _ in blocks]
    return _render({
        'title': ', '.join(source.name for source in sources), 'sources': sources, 'evaluated': evaluated,
        'arms': [arms(found) for found in outcomes], 'warning': protocol_warning(finals),
        'payoffs': [_payoff(found, r) for r in range(len(sources))], 'kinds': kinds, 'why': why,
        'curves': data['curves'] is not None, 'total': len(found), 'embedded': {e['id'] for e in embedded},
        'settings': [source.config and settings(source.config) for source in sources],
        'reproduction': [source.config and reproduction(source) for source in sources],
        'data': to_json(data), 'blocks': [text for _, text in blocks]})


def _distinct(sources: Sequence[Source]) -> list[Source]:
    """Return the sources with names that differ: the last parts of their paths, as many as are needed."""
    paths = [source.path.resolve().parts for source in sources]
    short = lambda r, n: '/'.join(paths[r][-n:])
    names = []
    for r in range(len(paths)):
        n = next((n for n in range(1, len(paths[r])) if all(
            short(r, n) != short(o, n) for o in range(len(paths)) if paths[o] != paths[r])), len(paths[r]))
        names.append(short(r, n))
    return [Source(**{**vars(source), 'name': name}) for source, name in zip(sources, names)]


def _episodes(sources: Sequence[Source]) -> tuple[list[dict[str, Any]], list[dict[str, list[float]]]]:
    """Return all episodes in display form, with numbers as their `id`, and the outcomes of recorded traffic by arm."""
    found: list[dict[str, Any]] = []
    outcomes: list[dict[str, list[float]]] = []
    for r, source in enumerate(sources):
        arms: dict[str, list[float]] = {'observe': [], 'advise': []}
        for file in source.files:
            for number, row in enumerate(file.read(), 1):
                if file.layout is None:
                    episode = records.display(row, r, file, source.config)
                else:
                    episode = rows.display(row, number, r, file)
                    if row.get('arm') in arms and episode['score'] is not None:
                        arms[row['arm']].append(episode['score'])
                found.append(episode | {'id': len(found)})
        outcomes.append(arms)
    return found, outcomes


def _payoff(episodes: Sequence[Mapping[str, Any]], run: int) -> Optional[selfplay.Payoff]:
    """Return the pay-off matrix of the last evaluation of a run."""
    own = [e for e in episodes if e['run'] == run and e['keys'] is not None]
    return selfplay.payoff([e for e in own if e['file'] == own[-1]['file']])


def _index(episodes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what the list shows and filters, by column; those of CODED as values and codes."""
    def coded(name: str) -> dict[str, Any]:
        values: dict[str, tuple[int, Any]] = {}
        codes = [values.setdefault(json.dumps(e[name]), (len(values), e[name]))[0] for e in episodes]
        return {'values': [value for _, value in values.values()], 'codes': codes}

    return {name: coded(name) for name in CODED} | {
        'id': [e['id'] for e in episodes], 'episode': [e['episode'] for e in episodes],
        'score': [e['score'] for e in episodes], 'truncated': [e['truncated'] for e in episodes],
        'title': [_title(e) for e in episodes]}


def _title(episode: Mapping[str, Any]) -> str:
    text = episode['situation'] or next((turn['line'] for turn in episode['turns'] if turn['line']), '') or ''
    text = ' '.join(str(text).split())
    return text if len(text) <= 110 else text[:109] + '…'


def _blocks(episodes: Sequence[Mapping[str, Any]]) -> Iterator[tuple[int, str]]:
    """Yield JSON lists of episodes, each with the number of its first one."""
    start, size, texts = 0, 0, []
    for n, episode in enumerate(episodes):
        shown = {name: episode[name] for name in ('situation', 'facts', 'failure', 'seats', 'turns')}
        texts.append(to_json(shown))
        size += len(texts[-1])
        if size >= BLOCK or n == len(episodes) - 1:
            yield start, f'[{",".join(texts)}]'
            start, size, texts = n + 1, 0, []


def to_json(value: Any) -> str:
    """Return JSON that can stand in a script element; halves of surrogate pairs are escaped, as JSON allows.

    Raises:
      ValueError: a number is not finite.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(',', ':'))
    return _UNSAFE.sub(lambda match: f'\\u{ord(match[0]):04x}', text)


def _render(values: Mapping[str, Any]) -> str:
    read = lambda path: (HERE / path).read_text(encoding='utf-8')
    vendor = read('vendor/uPlot.iife.min.js')
    own = '\n'.join(read(f'assets/{name}.js') for name in SCRIPTS)
    scripts = [vendor, f"(() => {{\n'use strict';\n{own}\n}})();"]
    policy = ' '.join(f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
                      for script in scripts)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE / 'assets'), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, finalize=_clean)
    return environment.get_template('page.html').render(
        {**values, 'scripts': scripts, 'policy': policy, 'license': read('vendor/uPlot.LICENSE'),
         'style': read('vendor/uPlot.min.css') + read('assets/style.css')})


def _clean(value: Any) -> Any:
    """Replace halves of surrogate pairs, which UTF-8 cannot represent, in text of the template."""
    return re.sub('[\ud800-\udfff]', '\ufffd', value) if type(value) is str else value
