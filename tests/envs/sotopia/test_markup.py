"""Mark-up of profiles, against sotopia's way to render it with lxml, over generated spellings."""

import io
import random

import pytest

from epo_jax.envs.sotopia.markup import ENVIRONMENT, MarkupError, visible

VIEWERS = ('agent_0', 'agent_1', ENVIRONMENT)
HINTS = ('extra_info', 'clarification_hint', 'strategy_hint')


def words(text):
    return text.split()


def rendered(text, viewer):
    """Return what sotopia renders of a text for a viewer: `<root>` is put around it, and lxml repairs it if it must."""
    etree = pytest.importorskip('lxml.etree')
    try:
        root = etree.fromstring(f'<root>{text}</root>')
    except etree.XMLSyntaxError:
        escaped = text.replace('&', '&amp;')
        root = etree.parse(io.StringIO(f'<root>{escaped}</root>'), etree.XMLParser(recover=True)).getroot()
    if viewer == ENVIRONMENT:
        return ''.join(root.itertext(etree.Element, etree.Entity))

    def show(element):
        shown = element.text or ''
        for child in element:
            if child.tag in ('root', 'p', *HINTS) and child.get('viewer', viewer) == viewer:
                shown += show(child)
            shown += child.tail or ''
        return shown

    return show(root)


def element(rng, depth, secrets, around=()):
    """Return an element, or a few words, in a random spelling.

    Args:
      rng: source of the spelling.
      depth: how deep elements may be nested.
      secrets: set to which (word, viewer) is added for every word that a viewer may not read.
      around: the viewers of the elements around it, '' where nobody but the judge reads them.
    """
    if depth == 0 or rng.random() < 0.3:
        word = f'word{rng.randrange(10 ** 6):06}'
        secrets |= {(word, viewer) for viewer in VIEWERS[:2] if set(around) - {viewer}}
        return rng.choice((word, f' {word} ', f'{word},\n'))
    name = rng.choice(('p', 'p', *HINTS, 'secret', 'b', 'P', 'x:p'))
    if name == 'x:p':
        name = 'x.p'  # a prefix would need a declaration
    blank = lambda least='': rng.choice((least, least, ' ', '\n', '\t  '))
    attribute = lambda key, value: f'{blank(" ")}{key}{blank()}={blank()}' + rng.choice(('"{}"', "'{}'")).format(value)
    viewer = rng.choice((None, *VIEWERS, 'human', 'agent_2'))
    attributes = [attribute('viewer', viewer)] * (viewer is not None) + [attribute('id', 'a>b')] * rng.randrange(2)
    rng.shuffle(attributes)
    around += () if viewer is None else (viewer,)
    around += () if name in ('p', *HINTS) else ('',)
    content = ''.join(element(rng, depth - 1, secrets, around) for _ in range(rng.randrange(1, 4)))
    return f'<{name}{"".join(attributes)}{blank()}>{content}</{name}{blank()}>'


def document(seed):
    rng, secrets = random.Random(seed), set()
    text = ' '.join(element(rng, 3, secrets) for _ in range(3))
    return rng, f'First. {text} Last.', secrets


def test_well_formed_texts_are_read_as_sotopia_reads_them():
    hidden = 0
    for seed in range(500):
        _, text, secrets = document(seed)
        hidden += len(secrets)
        for viewer in VIEWERS:
            assert words(visible(text, viewer)) == words(rendered(text, viewer)), text
            assert not {word for word, other in secrets if other == viewer and word in visible(text, viewer)}, text
        assert not {word for word, _ in secrets if word in visible(text, '')}, text
    assert hidden > 1000


def damage(rng, text):
    """Return a text with one of its tags misspelled or left out."""
    change = rng.choice(('end', 'begin', 'quote', 'unquote', 'blank', 'bracket', 'case', 'cut', 'attribute', 'ampersand'))
    places = {'end': '</', 'begin': '<', 'quote': '"', 'blank': '<', 'bracket': '>', 'attribute': 'viewer'}
    at = rng.choice([i for i in range(len(text)) if text.startswith(places.get(change, ''), i)] or [0])
    if change == 'end':
        return text[:at] + text[text.find('>', at) + 1:]
    if change in ('quote', 'bracket'):
        return text[:at] + text[at + 1:]
    if change in ('blank', 'begin'):
        return text[:at + 1] + ' ' + text[at + 1:] if change == 'blank' else text[:at] + text[at + 1:]
    if change == 'attribute':
        return text[:at] + 'Viewer' + text[at + 6:] if at else text
    return {'unquote': text.replace('"', '').replace("'", ''), 'case': text.replace('viewer', 'VIEWER'),
            'cut': text[:at], 'ampersand': text.replace(' Last', ' & <3 Last')}[change]


def test_no_misspelling_shows_a_player_what_is_not_for_that_player():
    refused = 0
    for seed in range(2000):
        rng, text, secrets = document(seed)
        text = damage(rng, text)
        for viewer in VIEWERS[:2]:
            try:
                shown = visible(text, viewer)
            except MarkupError:
                refused += 1
            else:
                assert not {word for word, other in secrets if other == viewer and word in shown}, text
    assert 0 < refused < 3600


@pytest.mark.parametrize('text, seat, judge', [
    ("A <p viewer='environment'>S</p> B", 'A  B', 'A S B'),
    ('A <p viewer=environment>S</p> B', 'A  B', 'A S B'),
    ('A <p id="1" viewer = "environment" >S</p > B', 'A  B', 'A S B'),
    ('A <P Viewer="environment">S</P> B', 'A  B', 'A S B'),
    ('A <p viewer="&#101;nvironment">S</p> B', 'A  B', 'A S B'),
    ('A <secret>S</secret> B', 'A  B', 'A S B'),
    ('A <extra_info viewer="agent_1">S</extra_info> B', 'A  B', 'A S B'),
    ('A <p viewer="environment">S <p viewer="agent_0">T</p> U</p> B', 'A  B', 'A S T U B'),
    ('A <p viewer="environment">S B', 'A ', 'A S B'),
    ('<p viewer="environment">S</p>', '', 'S'),
    ('A <!-- S --> B', 'A  B', 'A  B'),
    ('A <![CDATA[x < y]]> B', 'A x < y B', 'A x < y B'),
    ('A <extra_info>S<extra_info> B', 'A S B', 'A S B'),
    ('A &lt;b&gt; &amp; B & C', 'A <b> & B & C', 'A <b> & B & C'),
    ('I <3 you; 3 < 5', 'I <3 you; 3 < 5', 'I <3 you; 3 < 5')])
def test_spellings(text, seat, judge):
    assert (visible(text, 'agent_0'), visible(text, ENVIRONMENT)) == (seat, judge)


@pytest.mark.parametrize('text, message', [
    ('A < p viewer="environment">S</p> B', 'is not a complete tag'),
    ('A <p viewer="environment>S</p> B', 'is not a complete tag'),
    ('A <p viewer="environment"', 'is not a complete tag'),
    ('A <!-- S', 'is not a complete tag'),
    ('A <p viewer="judge">S</p> B', 'the viewer must be environment, agent_0 or agent_1'),
    ('A <p viewer="">S</p> B', 'the viewer must be'),
    ('A <p viewer="agent_0" viewer="environment">S</p> B', 'the viewer must be'),
    ('A <p view="environment">S</p> B', 'names a viewer in another attribute'),
    ('A <extra_info><p viewer="environment">S</extra_info> B', '</extra_info> is not where the last element ends'),
    ('A <p viewer="environment"/>S</p> B', '</p> ends an element that was not begun'),
    ('A S</p> B', '</p> ends an element that was not begun'),
    ('A <name> B', '<name> has no end'),
    ('A p viewer="environment" S B', 'mentions a viewer outside of a tag')])
def test_unclear_mark_up_is_refused(text, message):
    with pytest.raises(MarkupError, match=message):
        visible(text, 'agent_0')
