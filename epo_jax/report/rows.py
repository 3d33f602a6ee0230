"""The display form of a row of a file of conversations: raw, labeled, prepared or recorded, see `data.sharegpt`.

The assistant's messages are strategies. The user's message after a strategy tells what followed from it.
"""

from typing import Any, Mapping, Optional

from epo_jax.data.sharegpt import BEST, Layout, messages
from epo_jax.report.sources import EpisodeFile, ReportError

KNOWN = {'id', 'score', 'outcome', 'domain', 'location', 'arm', 'goal', 'strategist', 'turns', 'ids', 'turn', 'logprob',
         'messages', 'location_missing'}


def display(row: Mapping[str, Any], number: int, run: int, file: EpisodeFile) -> dict[str, Any]:
    """Return the display form of a row, see `report.episodes`.

    Args:
      row: the row.
      number: of the row in its file, from 1.
      run: number of the file in the report.
      file: where it comes from.

    Raises:
      ReportError: the row is no conversation.
    """
    layout = file.layout or Layout()
    observed = layout.messages not in row
    try:
        situation, turns = _observed(row) if observed else _advised(row, layout)
    except (ValueError, TypeError) as error:
        raise ReportError(f'{file.path}, row {number}: {error}') from error
    for t, turn in enumerate(turns if 'logprob' in row else ()):
        sampled = [i for i, at in enumerate(row['turn']) if at == t]
        turn['tokens'] = [[row['ids'][i] for i in sampled], [row['logprob'][i] for i in sampled]]
    facts = {name: value for name, value in row.items() if name not in KNOWN | {layout.messages}}
    if row.get('location_missing'):
        facts['label missing'] = row['location_missing']
    if 'score' in row:
        facts['score'] = row['score']
    score = _score(row)
    seat = {'name': 'strategist', 'goal': row.get('goal'), 'strategist': row.get('strategist'), 'tested': False,
            'notes': {}} | ({} if score is None else {'outcome': score})
    return {
        'run': run, 'file': file.label, 'iteration': None, 'episode': number, 'scenario': str(row.get('id', number)),
        'category': row.get('domain'), 'condition': row.get('arm', ''), 'score': score, 'truncated': False,
        'failure': None, 'keys': None, 'situation': situation, 'facts': facts, 'seats': [seat], 'turns': turns}


def _advised(row: Mapping[str, Any], layout: Layout) -> tuple[str, list[dict[str, Any]]]:
    """Return the opening and the turns of a conversation with strategies."""
    texts = messages(row, layout)
    located = row.get('location')
    turns = []
    for i in range(1, len(texts), 2):
        turn = {'seat': 0, 'strategy': texts[i][layout.content],
                'line': texts[i + 1][layout.content] if i + 1 < len(texts) else None}
        if located is not None:
            turn['critical'] = float(i in located)
        if texts[i].get('score') is not None:
            turn['weight'] = float(texts[i]['score'])
        turns.append(turn)
    return texts[0][layout.content], turns


def _observed(row: Mapping[str, Any]) -> tuple[Optional[str], list[dict[str, Any]]]:
    """Return the opening and the turns of recorded messages without strategies; no turns where only scores are kept."""
    texts = [(str(role), str(text)) for role, text in row.get('messages', ())]
    if not texts and 'outcome' not in row:
        raise ValueError('it is neither a conversation nor a recorded outcome')
    return None, [{'seat': 0, 'speaker': role, 'strategy': None, 'line': text} for role, text in texts]


def _score(row: Mapping[str, Any]) -> Optional[float]:
    """Return the outcome in [0, 1], None if it is missing or its scale is unknown."""
    if isinstance(row.get('outcome'), (int, float)):
        return float(row['outcome'])
    if isinstance(row.get('score'), (int, float)) and row.get('domain') in BEST:
        return row['score'] / BEST[row['domain']]
    return None
