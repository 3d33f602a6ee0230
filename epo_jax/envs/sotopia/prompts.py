"""Every text that a model reads in a SOTOPIA episode. The same texts serve training, evaluation and serving.

They give the information that SOTOPIA and EPO give, in the same places, in our own words.
"""

from epo_jax.envs.sotopia.actions import KINDS, WORDS, Action
from epo_jax.envs.sotopia.profiles import ACQUAINTANCE, BY_NAME, FRIEND, Character, Scenario

RELATIONSHIPS = (
    'They are strangers.', 'They know each other by name only.', 'They are acquaintances.',
    'They are friends.', 'They are a couple.', 'They are family.')

# Text around a strategy in what the actor reads.
ADVICE = ('\nAdvice:', '')

# How a strategy begins.
STRATEGY = 'Strategy:'

_EXPLAINED = {
    'speak': 'speak: what you say', 'non-verbal communication': 'gesture: a gesture or an expression',
    'action': 'act: something you do', 'leave': 'leave: you leave, and the conversation ends',
    'none': 'wait: you do nothing'}


def about_self(person: Character) -> str:
    """A character as it knows itself."""
    text = _in_public(person) + f' {person.personality}'.rstrip()
    return text + (f' Secret: {person.secret.rstrip(".")}.' if person.secret else '')


def about_other(person: Character, relationship: int) -> str:
    """A character as the partner knows it: the closer the two are, the more; never a secret."""
    if relationship < BY_NAME:
        return 'You know nothing about this person.'
    if relationship < ACQUAINTANCE:
        return f'You know the name: {person.name}.'
    text = _in_public(person)
    return text + f' {person.personality}'.rstrip() if relationship >= FRIEND else text


def _in_public(person: Character) -> str:
    noun = ' '.join(filter(None, (person.gender.lower(), person.occupation)))
    return f'{person.name} is a {person.age}-year-old {noun}. {person.public_info}'.strip()


def context(scenario: Scenario, seat: int, short: bool = False) -> str:
    """What one seat knows before anything is said: situation, itself, the partner, its goal."""
    own, other = scenario.characters[seat], scenario.characters[1 - seat]
    if short:
        return '\n'.join((
            f'Situation: {scenario.text}',
            f"{own.first_name}'s goal: {scenario.goals[seat]}"))
    relation = RELATIONSHIPS[scenario.relationship] + (f' {scenario.story}' if scenario.story else '')
    return '\n'.join((
        f'Situation: {scenario.text}',
        f'{own.first_name} and {other.first_name}: {relation}',
        f'About {own.first_name}: {about_self(own)}',
        f'About {other.first_name}: {about_other(other, scenario.relationship)}',
        f"{own.first_name}'s private goal: {scenario.goals[seat]}",
        f"{other.first_name}'s goal: unknown"))


def strategist_opening(scenario: Scenario, seat: int, short: bool = False) -> str:
    """The strategist's first message, up to the dialogue."""
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
    """The actor's first message, up to the dialogue."""
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
    """How a reply begins that can only be speech."""
    return f'{name} said: "'


def line(name: str, action: Action) -> str:
    """One line of the transcript: what everybody sees of an action."""
    return {
        'speak': f'{speech(name)}{action.argument}"',
        'non-verbal communication': f'{name} [gesture] {action.argument}',
        'action': f'{name} [action] {action.argument}',
        'leave': f'{name} left the conversation.',
        'none': f'{name} did nothing.',
    }[action.kind]


def choices(allowed: tuple[str, ...]) -> tuple[str, ...]:
    """What a reply may begin with when its kind is chosen first."""
    return tuple(f'{word}:' for word, kind in WORDS.items() if kind in allowed)


def judge_opening(scenario: Scenario, seat: int) -> str:
    """The judge's message up to the dialogue: it sees everything, both goals included."""
    own, other = scenario.characters[seat], scenario.characters[1 - seat]
    return '\n'.join((
        f'Read this conversation between {own.first_name} and {other.first_name} and judge how well '
        f'{own.first_name} reaches the goal.',
        f'Situation: {scenario.judge_text or scenario.text}',
        f'{own.first_name} and {other.first_name}: {RELATIONSHIPS[scenario.relationship]}',
        f"{own.first_name}'s goal: {scenario.goals[seat]}",
        f"{other.first_name}'s goal: {scenario.goals[1 - seat]}",
        'Conversation:'))
