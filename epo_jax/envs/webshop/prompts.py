"""Every text that a model reads in WebShop; training, evaluation and serving use the same texts.

They give the same information as EPO's WebShop prompts, in the same places, in our own words.
"""

from typing import Sequence

from epo_jax.envs.webshop.pages import BUY, text

THOUGHT, ACTION, OBSERVATION = 'Thought:', 'Action:', 'Observation:'

UNREADABLE = 'This is no action. Write search[keywords] or click[value].'

_MAX_WORDS = 8     # of a piece on a short page
_RULES = (
    'The shop is read as text: pages are made of pieces, parted by [SEP]. There are two actions. search[keywords] '
    'finds products; it starts from the page with Search. click[value] clicks on something that the page shows: a '
    'product by its number, a value of an option such as a colour or a size, Description, Features or Reviews, '
    f'< Prev, Next >, Back to Search, or {BUY}. A product must be of the kind that is asked for, have the attributes '
    f'and options that are asked for, and cost less than the limit. Options are chosen one click each, before {BUY}. '
    'What a page does not offer cannot be clicked: then nothing happens, and the turn is lost.')

# A worked example: (thought, action, resulting page).
_TASK = 'i need a dishwasher safe coffee mug in dark green, 12 ounce, and price lower than 20.00 dollars'
_SHORT_TASK = 'dishwasher safe coffee mug with color: dark green, and price lower than 20.00 dollars'
_EXAMPLE = (
    ('Few words that name the kind and what matters most should find it.',
     'search[dishwasher safe coffee mug dark green]',
     f'Instruction: [SEP] {_TASK} [SEP] Back to Search [SEP] Page 1 (Total results: 50) [SEP] Next > [SEP] E7QX2MUG '
     '[SEP] Hillcrest Stoneware Mug, Dishwasher Safe [SEP] $14.5 [SEP] E5TTPCUP [SEP] Glass Tea Cup Set of 6 [SEP] '
     '$31.0'),
    ('The first result is a mug, safe for the dishwasher, and below the limit; the second is neither.',
     'click[E7QX2MUG]',
     f'Instruction: [SEP] {_TASK} [SEP] Back to Search [SEP] < Prev [SEP] color [SEP] sand [SEP] dark green [SEP] '
     'size [SEP] 8 ounce [SEP] 12 ounce [SEP] Hillcrest Stoneware Mug, Dishwasher Safe [SEP] Price: $14.5 [SEP] '
     'Rating: 4.5 [SEP] Description [SEP] Features [SEP] Reviews [SEP] Buy Now'),
    ('Both wanted options are offered. First the color.', 'click[dark green]', 'The same page is shown.'),
    ('Now the size.', 'click[12 ounce]', 'The same page is shown.'),
    ('Everything fits and the options are chosen, so it can be bought.', 'click[Buy Now]', ''))


def strategist_opening(instruction: str, page: str, short: bool) -> str:
    """Return the strategist's first message."""
    if short:
        return '\n'.join((
            'You plan for a shopper in a web shop, who searches, opens a product, chooses its options and buys it.',
            f'The shopper wants: {instruction}',
            'Before each action, write one short sentence: what to do next and why. For example: "Search for the '
            'product in a few words." or "It fits, so choose the size."', f'{OBSERVATION} {page}'))
    return '\n'.join((
        'You plan for a shopper in a web shop, who follows an instruction. ' + _RULES,
        f'Before each action you see the page. Write what it tells about the goal and what to do next, in one or two '
        f'sentences, as "{THOUGHT} ...". The shopper reads your thought and then acts.',
        'An example:', f'{OBSERVATION} WebShop [SEP] Instruction: [SEP] {_TASK} [SEP] Search', _format_example(),
        'Your task:', f'{OBSERVATION} {page}'))


def actor_opening(instruction: str, page: str, advised: bool, short: bool) -> str:
    """Return the actor's first message."""
    if short:
        return '\n'.join((
            f'You shop in a web shop with search[...] and click[...]. Search, open a fitting product by its number, '
            f'click the options you want, then click[{BUY}]. Write one action, as "{ACTION} ..."'
            + ('; a thought tells you what to do.' if advised else '.'),
            'For example:', f'You want: Find me {_SHORT_TASK}', f'{ACTION} {_EXAMPLE[0][1]}',
            'Now you.', f'You want: {instruction}', f'{OBSERVATION} {page}'))
    order = ('In every turn you read the page and a thought about it, which you may follow. '
             if advised else 'In every turn you read the page. ')
    return '\n'.join((
        'You are a shopper in a web shop and follow an instruction. ' + _RULES,
        f'{order}Answer with one action and nothing else, as "{ACTION} search[...]" or "{ACTION} click[...]".',
        'An example:', f'{OBSERVATION} WebShop [SEP] Instruction: [SEP] {_TASK} [SEP] Search', _format_example(advised),
        'Your task:', f'{OBSERVATION} {page}'))


def _format_example(thoughts: bool = True) -> str:
    lines = []
    for thought, action, page in _EXAMPLE:
        lines += ([f'{THOUGHT} {thought}'] if thoughts else []) + [f'{ACTION} {action}']
        lines += [f'{OBSERVATION} {page}'] if page else []
    return '\n'.join(lines)


def page(pieces: Sequence[str], short: bool) -> str:
    """Return a page as the models read it: in full, or without the instruction and with every piece cut short."""
    if not short:
        return text(pieces)
    if 'Instruction:' in pieces:
        at = pieces.index('Instruction:')
        pieces = [*pieces[:at], *pieces[at + 2:]]
    return '; '.join(_shorten(piece) for piece in pieces if piece.strip())


def _shorten(piece: str) -> str:
    words = piece.split()
    return ' '.join(words[:_MAX_WORDS]) + (' ...' if len(words) > _MAX_WORDS else '')


def line(action: str, observation: str) -> str:
    """Return one entry of the transcript: an action and its observation."""
    return f'{ACTION} {action}\n{OBSERVATION} {observation}'


def judge_opening(instruction: str) -> str:
    """Return the part of the judge's message that precedes the transcript."""
    return '\n'.join((
        'Read this visit to a web shop and judge how well the shopper does what the instruction asks for: a product '
        'of the right kind, with the attributes and options asked for, below the price limit, bought.',
        f"The shopper's goal: {instruction}", 'The visit:'))
