"""Real SOTOPIA dialogues as raw rows. They have no strategies, so the lines of one character are used instead.

The data is beside the repository; tests that need it are skipped if it is missing.
"""

import json
import pathlib
import re

FOLDER = pathlib.Path(__file__).parents[2] / 'shared/data/sotopia/episodes'


def dialogues():
    """(scenario, (name, name), (goal, goal), [(name, line)], goal score of each or None) of every dialogue."""
    for line in (FOLDER / 'scored_episodes_20.jsonl').read_text().splitlines():
        row = json.loads(line)
        names = list(row['social_goals'])
        lines = [(message[0], message[2].removeprefix('said: ').strip('"'))
                 for step in row['raw_messages'] for message in step
                 if message[0] != 'Environment' and message[2].startswith('said: ')]
        goals = tuple(row['social_goals'][name] for name in names)
        yield row['scenario'], tuple(names), goals, lines, tuple(reward[1]['goal'] for reward in row['raw_rewards'])
    for line in (FOLDER / 'human_eval_dialogues.jsonl').read_text().splitlines():
        row = json.loads(line)
        text = row['rewards_prompt']
        names = re.search(r'Participants: (.+?) and (.+)\n', text).groups()
        goals = tuple(re.search(rf"^{re.escape(name)}'s goal: (.*)$", text, re.MULTILINE)[1] for name in names)
        lines = re.findall(r'^(.+?) said: "(.*)"$', text, re.MULTILINE)
        scores = row.get('gpt4_scores')
        scores = tuple(scores[f'agent{i}']['goal'] for i in (1, 2)) if scores else (None, None)
        yield re.search(r'Scenario: (.*)\n', text)[1], names, goals, lines, scores


def raw_row(scenario, names, goals, lines, scores, seat=0):
    """One side of a dialogue in ShareGPT form; None where this side says nothing."""
    own, other = names[seat], names[1 - seat]
    heard = [f"You are {own} and talk with {other}.\nSituation: {scenario}\nYour goal: {goals[seat]}"]
    messages = []
    for name, line in lines:
        if name == own and heard:
            messages += [{'from': 'human', 'value': '\n'.join(heard)}, {'from': 'gpt', 'value': line}]
            heard = []
        elif name == own:  # twice in a row
            messages[-1]['value'] += f' {line}'
        else:
            heard.append(f'{name}: {line}')
    return {'conversations': messages, 'score': scores[seat]} if messages else None
