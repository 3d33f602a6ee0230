"""Conversations with tokenizers of the SentencePiece kind: what is joined from pieces equals transformers' whole."""

import random

import pytest
from sentencepiece_like import CONTROL, CORPUS, FORMS, TEMPLATES, write_folder
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer

from epo_jax.rewards.judge import Judge, JudgeError
from epo_jax.text import chat
from epo_jax.text.chat import chat_segments
from epo_jax.text.tokenizer import Lead, decode, encode, ids_containing, load_tokenizer

WORDS = ' '.join(CORPUS[:6]).split() + ['Ça', '日本語', '🙂', '1', '42', '\n', 'a\n\nb', '(x)', '</s>', '[INST]', '"quoted"']
EDGES = ['a', '1', '1234567', '.', '\n\nnewlines before', 'tab\there', "it's  double", 'ﬁ é', '</s> <s>', 'x' * 60]


def conversations():
    """Yield generated conversations whose messages do not begin or end with a space."""
    draw = random.Random(0)
    for _ in range(40):
        count = draw.choice((1, 3, 5))
        yield [' '.join(draw.choices(WORDS, k=draw.randint(1, 12))).strip() for _ in range(count)]
    yield from ([edge] * 3 for edge in EDGES)



@pytest.mark.parametrize('kind', ['PreTrainedTokenizerFast', 'LlamaTokenizer'])
@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('name', [*TEMPLATES, *chat.TEMPLATES])
def test_segments_equal_transformers(name, form, kind, tmp_path):
    if name == 'gemma':
        control = ('<start_of_turn>', '<end_of_turn>')
    elif name == 'llama3':
        control = ('<|start_header_id|>', '<|end_header_id|>', '<|eot_id|>')
    else:
        control = CONTROL.get(name, ())
    legacy = {'legacy': form != 'first'} if kind == 'LlamaTokenizer' else {}
    folder = write_folder(tmp_path, form, TEMPLATES.get(name), control, kind, **legacy)
    tokenizer, reference = load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    source = chat.TEMPLATES.get(name)
    segments = chat_segments(tokenizer, name if source else None)
    stripped = any(word in (source or TEMPLATES[name]) for word in ('.strip()', '|trim'))
    for talk in conversations():
        if stripped:
            talk = [text.strip() or 'x' for text in talk]
        # Control tokens in a message are ordinary text here; transformers lets a message write them.
        plain = [text.replace('</s>', 'end').replace('<s>', 'begin').replace('[INST]', 'INST') for text in talk]
        messages = [{'role': ('user', 'assistant')[i % 2], 'content': text} for i, text in enumerate(plain)]
        expected = reference.apply_chat_template(
            messages, chat_template=source, add_generation_prompt=True, tokenize=True, return_dict=False)
        assert segments.join(segments.encode(tokenizer, plain)) == list(expected), plain
        for text, ids, lead in zip(talk, segments.encode(tokenizer, talk), (segments.user_lead, segments.reply_lead) * 3):
            assert decode(tokenizer, ids, lead) == text


def test_gemma(tmp_path):
    """Gemma's tokenizer is of the same kind, but puts no space in front of a text."""
    control = ('<start_of_turn>', '<end_of_turn>')
    folder = write_folder(tmp_path, 'prepend', chat.TEMPLATES['gemma'], control)
    backend = tokenizers.Tokenizer.from_file(str(folder / 'tokenizer.json'))
    backend.normalizer = normalizers.Replace(' ', '\u2581')
    backend.pre_tokenizer = pre_tokenizers.Split(' ', 'merged_with_previous')
    backend.decoder = decoders.Sequence([decoders.Replace('\u2581', ' '), decoders.ByteFallback(), decoders.Fuse()])
    backend.save(str(folder / 'tokenizer.json'))
    tokenizer, reference = load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    segments = chat_segments(tokenizer)
    assert segments == chat_segments(tokenizer, 'gemma')
    for talk in conversations():
        plain = [text.replace('</s>', 'end').replace('<s>', 'begin') for text in talk]
        messages = [{'role': ('user', 'assistant')[i % 2], 'content': text} for i, text in enumerate(plain)]
        expected = reference.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        assert segments.join(segments.encode(tokenizer, plain)) == list(expected), plain
        for text, ids in zip(talk, segments.encode(tokenizer, talk)):
            assert decode(tokenizer, ids) == text


@pytest.mark.parametrize('form', FORMS)
def test_pieces_continue_a_text(form, tmp_path):
    tokenizer = load_tokenizer(write_folder(tmp_path, form, None))
    whole = lambda text: tokenizer(text, add_special_tokens=False)['input_ids']
    for text in (*EDGES, ' x', '  two', 'x ', ''):
        assert decode(tokenizer, encode(tokenizer, text)) == text
        if '</s>' not in text:
            assert whole('It:\n' + text) == whole('It:\n') + encode(tokenizer, text)
    assert tokenizer.convert_ids_to_tokens(encode(tokenizer, '1')) == ['1']
    assert encode(tokenizer, 'Yes', Lead(fresh=True)) == whole('Yes') == encode(tokenizer, ' Yes')
    assert tokenizer.convert_tokens_to_ids('<0x0A>') in ids_containing(tokenizer, '\n')


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('name', [*TEMPLATES, 'mistral', 'chatml'])
def test_judges_answer_in_digits(name, form, tmp_path):
    control = CONTROL.get(name, ())
    tokenizer = load_tokenizer(write_folder(tmp_path, form, TEMPLATES.get(name), control))
    segments = chat_segments(tokenizer, name if name in chat.TEMPLATES else None)
    judge = Judge(None, None, tokenizer, segments, 512)
    judge.check()
    answers, question = judge.answers(), judge.question('\nHow well?')
    messages = [{'role': 'user', 'content': 'Text.\nHow well?'}, {'role': 'assistant', 'content': None}]
    for number in (*range(10), 10):
        messages[1]['content'] = str(number)
        source = chat.TEMPLATES.get(name)
        complete = tokenizer.apply_chat_template(messages, chat_template=source, tokenize=True, return_dict=False)
        read = judge.encode('Text.', first=True) + question + answers['before']
        assert complete[:len(read)] == read
        assert complete[len(read)] == answers['digits'][1 if number == 10 else number]
    assert judge.question('\nHow well?', '1') == question + answers['before'] + answers['digits'][1:2]
    for word in ('yes', 'no'):
        texts = {tokenizer.decode([i]).strip() for i in answers[word]}
        assert texts and all(word.startswith(text.lower()) for text in texts)


def test_a_judge_that_cannot_answer_is_refused_when_it_is_built(tmp_path):
    from transformers import PreTrainedTokenizerFast

    from epo_jax.testing import byte_tokenizer
    words = tokenizers.Tokenizer(models.WordLevel({'<end>': 0, '?': 1}, unk_token='?'))
    words.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token='<end>', unk_token='?')
    segments = chat.ChatSegments((), (), (), 0, (0,))
    with pytest.raises(JudgeError, match='begins Yes and No with the same tokens'):
        Judge(None, None, tokenizer, segments, 512).check()
    byte = byte_tokenizer()
    Judge(None, None, byte, chat_segments(byte), 512).check()
    with pytest.raises(JudgeError, match='capacity of 64 tokens'):
        Judge(None, None, byte, chat_segments(byte), 64).check()
