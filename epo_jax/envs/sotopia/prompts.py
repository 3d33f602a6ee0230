"""All texts that models read in a SOTOPIA episode.

They give the same information in the same places as the prompts of SOTOPIA and EPO, but are worded differently.
Changing any of these texts changes results.
"""

from typing import Sequence

from epo_jax.envs.sotopia.actions import KINDS, WORDS, Action
from epo_jax.envs.sotopia.profiles import ACQUAINTANCE, BY_NAME, FRIEND, Character, Scenario

RELATIONSHIPS = (
    'They are strangers.', 'They know each other by name only.', 'They are acquaintances.',
    'They are friends.', 'They are a couple.', 'They are family.')

# Text before and after a strategy in what the actor reads.
ADVICE = ('\nAdvice:', '')

# The beginning of a strategy.
STRATEGY = 'Strategy:'

_EXPLAINED = {
    'speak': 'speak: what you say', 'non-verbal communication': 'gesture: a gesture or an expression',
    'action': 'act: something you do', 'leave': 'leave: you leave, and the conversation ends',
    'none': 'wait: you do nothing'}


def about_self(person: Character) -> str:
    """Return all that a character knows of itself, its secret included."""
    text = _in_public(person) + f' {person.personality}'.rstrip()
    return text + (f' Secret: {person.secret.rstrip(".")}.' if person.secret else '')


def about_other(person: Character, relationship: int) -> str:
    """Return what the partner knows of a character: the closer they are, the more, but never the secret.

    Args:
      person: the character.
      relationship: from 0 (strangers) to 5 (family).
    """
    if relationship < BY_NAME:
        return 'You know nothing about this person.'
    if relationship < ACQUAINTANCE:
        return f'You know the name: {person.name}.'
    text = _in_public(person)
    return text + f' {person.personality}'.rstrip() if relationship >= FRIEND else text


def _in_public(person: Character) -> str:
    age = f'{person.age} years old' if person.age else ''
    facts = ', '.join(filter(None, (person.gender.lower(), age, person.occupation)))
    return f'{person.name}{f" ({facts})" if facts else ""}. {person.public_info}'.strip()


def context(scenario: Scenario, seat: int, short: bool = False) -> str:
    """Return what a seat knows before the conversation: the situation, both characters, and its own goal.

    Args:
      scenario: the scenario.
      seat: whose knowledge it is.
      short: leave out the characters and their relationship.
    """
    own, other = scenario.characters[seat], scenario.characters[1 - seat]
    text = scenario.seat_texts[seat] if scenario.seat_texts else scenario.text
    if short:
        return '\n'.join((
            f'Situation: {text}',
            f"{own.first_name}'s goal: {scenario.goals[seat]}"))
    relation = RELATIONSHIPS[scenario.relationship] + (f' {scenario.story}' if scenario.story else '')
    return '\n'.join((
        f'Situation: {text}',
        f'{own.first_name} and {other.first_name}: {relation}',
        f'About {own.first_name}: {about_self(own)}',
        f'About {other.first_name}: {about_other(other, scenario.relationship)}',
        f"{own.first_name}'s private goal: {scenario.goals[seat]}",
        f"{other.first_name}'s goal: unknown"))


def strategist_opening(scenario: Scenario, seat: int, short: bool = False) -> str:
    """Return the first message to the strategist of a seat, up to the first line of the dialogue."""
    own, other = scenario.characters[seat].first_name, scenario.characters[1 - seat].first_name
    examples = f'"Ask {other} what matters most.", "Offer {other} a fair trade." or "Give {other} one good reason."'
    if short:
        return '\n'.join((
            f'You advise {own}, who talks with {other}.', context(scenario, seat, short), 'The conversation begins.',
            f'What should {own} do next to reach the goal? Answer in one short sentence of at most 10 words. For '
            f'example: {examples}'))
    return '\n'.join((
        f'You are an expert in social strategy. You advise {own}, who talks with {other}.', context(scenario, seat),
        f'Before each of {own}\'s turns, write one strategy for what {own} should do next to reach the goal: one '
        f'short sentence of at most 10 words, such as {examples} Write only the strategy, in plain language, as '
        f'"{STRATEGY} ...". Do not be aggressive, and never repeat a strategy.',
        'The conversation begins.'))


def actor_opening(scenario: Scenario, seat: int, advised: bool, allowed: tuple[str, ...] = KINDS,
                  short: bool = False) -> str:
    """Return the first message to the actor of a seat, up to the first line of the dialogue.

    Args:
      scenario: the scenario.
      seat: the seat.
      advised: whether the seat has a strategist.
      allowed: the kinds of action that are possible.
      short: leave out the characters and the rules of conduct.
    """
    own, other = scenario.characters[seat].first_name, scenario.characters[1 - seat].first_name
    rules = [f'Speak to {other} directly in one or two natural sentences, as {own} would. Work towards your goal and '
             'do not repeat yourself.']
    if not short:
        rules.append('Keep the relationship good, learn what is useful, keep your secrets and obey the law.')
    if len(allowed) > 1:
        rules.append('You may do one thing a turn, in one of these forms: '
                     + '; '.join(_EXPLAINED[kind] for kind in KINDS if kind in allowed) + '.')
    if advised:
        rules.append('A strategist gives you private advice before your turns; you may ignore it.')
    return '\n'.join((
        f'You play {own} in a conversation with {other}.', context(scenario, seat, short), ' '.join(rules),
        'The conversation begins.'))


def speech(name: str) -> str:
    """Return the beginning of a reply that is speech."""
    return f'{name} said: "'


def line(name: str, action: Action) -> str:
    """Return the line of the transcript that shows an action to both sides."""
    return {
        'speak': f'{speech(name)}{action.argument}"',
        'non-verbal communication': f'{name} [gesture] {action.argument}',
        'action': f'{name} [action] {action.argument}',
        'leave': f'{name} left the conversation.',
        'none': f'{name} did nothing.',
    }[action.kind]


def choices(allowed: tuple[str, ...]) -> tuple[str, ...]:
    """Return the possible beginnings of a reply, one for each allowed kind of action."""
    return tuple(f'{word}:' for word, kind in WORDS.items() if kind in allowed)


def judge_opening(scenario: Scenario, seat: int) -> str:
    """Return what the judge of a seat reads before the transcript: the situation, and the goals of both sides."""
    own, other = scenario.characters[seat], scenario.characters[1 - seat]
    goals = scenario.judge_goals or scenario.goals
    return '\n'.join((
        f'Read this conversation between {own.first_name} and {other.first_name} and judge how well '
        f'{own.first_name} reaches the goal.',
        f'Situation: {scenario.judge_text or scenario.text}',
        f'{own.first_name} and {other.first_name}: {RELATIONSHIPS[scenario.relationship]}',
        f"{own.first_name}'s goal: {goals[seat]}",
        f"{other.first_name}'s goal: {goals[1 - seat]}",
        'Conversation:'))


def overview(scenario: Scenario, lines: Sequence[str]) -> str:
    """Return what the judge of both seats reads: the situation, all that each character knows and wants, and the lines.

    Args:
      scenario: the scenario.
      lines: of the transcript, without those in which somebody did nothing.
    """
    first, second = scenario.characters
    goals = scenario.judge_goals or scenario.goals
    relation = RELATIONSHIPS[scenario.relationship] + (f' {scenario.story}' if scenario.story else '')
    return '\n'.join((
        f'Situation: {scenario.judge_text or scenario.text}',
        f'{first.first_name} and {second.first_name}: {relation}',
        *(f'About {person.first_name}: {about_self(person)}' for person in (first, second)),
        *(f"{person.first_name}'s goal: {goal}" for person, goal in zip((first, second), goals, strict=True)),
        '', 'Conversation:', *(lines or ['(Nobody said or did anything.)'])))
