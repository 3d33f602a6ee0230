"""Chat segments against the renderings of their templates, and templates that are rejected."""

import copy
import datetime

import pytest
import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from epo_jax.text.chat import ORDINARY_TEXT, TEMPLATES, ChatSegments, ChatTemplateError, chat_segments
from epo_jax.text.tokenizer import encode

LLAMA3_TOKENS = ['<|begin_of_text|>', '<|end_of_text|>', '<|start_header_id|>', '<|end_header_id|>', '<|eot_id|>']
CHATML_TOKENS = ['<|endoftext|>', '<|im_start|>', '<|im_end|>']
MISTRAL_TOKENS = ['<s>', '</s>', '[INST]', '[/INST]']

LLAMA3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim"
    " + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}")
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}")
MISTRAL_TEKKEN = (  # puts the default system prompt into the last user message
    "{{- bos_token }}{%- for message in messages %}{%- if message['role'] == 'user' %}"
    "{%- if loop.last %}{{- '[INST]Be brief.\n\n' + message['content'] + '[/INST]' }}"
    "{%- else %}{{- '[INST]' + message['content'] + '[/INST]' }}{%- endif %}"
    "{%- else %}{{- message['content'] + eos_token }}{%- endif %}{%- endfor %}")
QWEN25 = r'''
{%- if messages[0]['role'] == 'system' %}
    {{- '<|im_start|>system\n' + messages[0]['content'] + '<|im_end|>\n' }}
{%- else %}
    {{- '<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "assistant") %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}
'''
QWEN3 = r'''
{%- set ns = namespace(last_query_index=messages|length - 1) %}
{%- for message in messages %}
    {%- if message.role == "user" %}{%- set ns.last_query_index = loop.index0 %}{%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == "user" %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}
    {%- elif message.role == "assistant" %}
        {%- set content = message.content %}
        {%- set reasoning_content = '' %}
        {%- if '</think>' in message.content %}
            {%- set content = message.content.split('</think>')[-1].lstrip('\n') %}
            {%- set reasoning_content = message.content.split('</think>')[0].rstrip('\n').split('<think>')[-1] %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index %}
            {{- '<|im_start|>assistant\n<think>\n' + reasoning_content + '\n</think>\n\n' + content }}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}
'''
GEMMA_TOKENS = ['<pad>', '<eos>', '<bos>', '<start_of_turn>', '<end_of_turn>']
GEMMA3 = r'''{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- set first_user_prefix = messages[0]['content'] + '\n\n' -%}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}
    {%- set first_user_prefix = "" -%}
    {%- set loop_messages = messages -%}
{%- endif -%}
{%- for message in loop_messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("Conversation roles must alternate user/assistant/user/assistant/...") }}
    {%- endif -%}
    {%- if (message['role'] == 'assistant') -%}
        {%- set role = "model" -%}
    {%- else -%}
        {%- set role = message['role'] -%}
    {%- endif -%}
    {{ '<start_of_turn>' + role + '\n' + (first_user_prefix if loop.first else "") }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- else -%}
        {{ raise_exception("Invalid content type") }}
    {%- endif -%}
    {{ '<end_of_turn>
' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{'<start_of_turn>model
'}}
{%- endif -%}
'''
SMOLLM3 = r'''{%- if enable_thinking is not defined -%}
{%- set enable_thinking = true -%}
{%- endif -%}
{%- set reasoning_mode = "/think" if enable_thinking else "/no_think" -%}
{{- "<|im_start|>system\n" -}}
{{- "## Metadata\n\n" -}}
{%- set today = strftime_now("%d %B %Y") -%}
{{- "Today Date: " ~ today ~ "\n" -}}
{{- "Reasoning Mode: " + reasoning_mode + "\n\n" -}}
{%- for message in messages -%}
{%- set content = message.content if message.content is string else "" -%}
{%- if message.role == "user" -%}
    {{ "<|im_start|>" + message.role + "\n"  + content + "<|im_end|>\n" }}
{%- elif message.role == "assistant" -%}
    {% generation %}
    {%- if reasoning_mode == "/think" -%}
        {{ "<|im_start|>assistant\n" + content.lstrip("\n") + "<|im_end|>\n" }}
    {%- else -%}
        {{ "<|im_start|>assistant\n" + "<think>\n\n</think>\n" + content.lstrip("\n") + "<|im_end|>\n" }}
    {%- endif -%}
    {% endgeneration %}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{%- if reasoning_mode == "/think" -%}
    {{ "<|im_start|>assistant\n" }}
{%- else -%}
    {{ "<|im_start|>assistant\n" + "<think>\n\n</think>\n"  }}
{%- endif -%}
{%- endif -%}
'''
R1 = (  # opens the thinking of the next reply only
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}")


@pytest.fixture(scope='module')
def backend():
    """A small byte-level BPE tokenizer without control tokens."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    corpus = [*ORDINARY_TEXT, *(f' {text}' for text in ORDINARY_TEXT), 'user assistant system']
    tokenizer.train_from_iterator(corpus * 9, trainers.BpeTrainer(
        vocab_size=500, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    return tokenizer


@pytest.fixture
def make(backend):
    """A function that returns a tokenizer with the given control tokens and template."""
    def make(control, template, bos=None, eos=None):
        tokenizer = tokenizers.Tokenizer.from_str(backend.to_str())
        tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in control])
        return PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, chat_template=template, bos_token=bos, eos_token=eos)
    return make


def rendered(tokenizer, template, messages):
    """Return the ids of a conversation that the template renders and the tokenizer encodes as one text."""
    roles = ('user', 'assistant')
    text = tokenizer.apply_chat_template([{'role': roles[i % 2], 'content': m} for i, m in enumerate(messages)],
                                         chat_template=template, tokenize=False, add_generation_prompt=True)
    return tokenizer(text, add_special_tokens=False)['input_ids']


def appended(tokenizer, segments, messages):
    """Return the ids of the same conversation, joined from segments."""
    ids = list(segments.open)
    for i, message in enumerate(messages):
        ids += encode(tokenizer, message, segments.reply_lead if i % 2 else segments.user_lead)
        ids += segments.close if i % 2 == 0 else (*segments.before_end, segments.end, *segments.between)
    return ids


def assert_same(tokenizer, segments, template=None):
    talk = ['Shall we meet at 10?', 'Rather at 11.\nOr 12!', 'Ça marche — 🙂', 'Good', 'Bye then']
    for count in (1, 3, 5):
        assert appended(tokenizer, segments, talk[:count]) == rendered(tokenizer, template, talk[:count])
        assert appended(tokenizer, segments, talk[:count]) == segments.join(
            segments.encode(tokenizer, talk[:count]))


# Supported templates


def test_smollm2(smollm2_tokenizer):
    segments = chat_segments(smollm2_tokenizer)
    assert_same(smollm2_tokenizer, segments)
    assert smollm2_tokenizer.decode(segments.open) == (
        '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n'
        '<|im_start|>user\n')
    assert smollm2_tokenizer.decode(segments.close) == '<|im_end|>\n<|im_start|>assistant\n'
    assert smollm2_tokenizer.decode(segments.between) == '\n<|im_start|>user\n'
    assert segments.end == 2 and segments.stop == (2,)


def test_qwen25(make):
    tokenizer = make(CHATML_TOKENS, QWEN25, eos='<|endoftext|>')
    segments = chat_segments(tokenizer)
    assert_same(tokenizer, segments)
    assert 'You are Qwen' in tokenizer.decode(segments.open)
    end, eos = tokenizer.convert_tokens_to_ids(['<|im_end|>', '<|endoftext|>'])
    assert segments.end == end and segments.stop == (end, eos)


def test_llama3(make):
    """Llama 3's template strips every message, which is allowed; the built-in one does not."""
    tokenizer = make(LLAMA3_TOKENS, LLAMA3, '<|begin_of_text|>', '<|end_of_text|>')
    segments = chat_segments(tokenizer)
    assert_same(tokenizer, segments)
    assert segments == chat_segments(tokenizer, 'llama3')
    assert tokenizer.decode(segments.open) == '<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n'
    assert segments.open.count(tokenizer.bos_token_id) == 1
    assert segments.end == tokenizer.convert_tokens_to_ids('<|eot_id|>')
    assert segments.stop == (segments.end, tokenizer.eos_token_id)
    # Both templates render messages without surrounding spaces in the same way.
    tokenizer.chat_template = LLAMA3
    assert_same(tokenizer, segments)


def test_mistral(make):
    tokenizer = make(MISTRAL_TOKENS, MISTRAL, '<s>', '</s>')
    own = chat_segments(tokenizer)  # the space in '[INST] ' belongs to the token of the next word
    assert_same(tokenizer, own)
    assert (own.user_lead.space, own.reply_lead.space) == (' ', '')
    segments = chat_segments(tokenizer, 'mistral')
    assert_same(tokenizer, segments, TEMPLATES['mistral'])
    ids = dict(zip(MISTRAL_TOKENS, tokenizer.convert_tokens_to_ids(MISTRAL_TOKENS)))
    assert segments == ChatSegments(open=(ids['<s>'], ids['[INST]']), close=(ids['[/INST]'],),
                                    between=(ids['[INST]'],), end=ids['</s>'], stop=(ids['</s>'],))


def test_template_by_name_or_file(make, tmp_path):
    tokenizer = make(CHATML_TOKENS, QWEN3, eos='<|im_end|>')
    by_name = chat_segments(tokenizer, 'chatml')
    assert_same(tokenizer, by_name, TEMPLATES['chatml'])
    assert tokenizer.decode(by_name.open) == '<|im_start|>user\n'
    path = tmp_path / 'guest.jinja'
    path.write_text(TEMPLATES['chatml'].replace("message['role']", "message['role'] | replace('user', 'guest')"))
    by_path = chat_segments(tokenizer, path)
    assert tokenizer.decode(by_path.open) == '<|im_start|>guest\n'
    assert by_path == chat_segments(tokenizer, str(path)) != by_name


def test_a_tokenizer_with_several_templates(make):
    tokenizer = make(CHATML_TOKENS, {'default': TEMPLATES['chatml'], 'tool_use': LLAMA3}, eos='<|im_end|>')
    assert chat_segments(tokenizer) == chat_segments(tokenizer, 'chatml')
    tokenizer.chat_template = {'tool_use': LLAMA3}
    with pytest.raises(ChatTemplateError, match='the tokenizer has no chat template'):
        chat_segments(tokenizer)


def test_templates_that_print_the_date(make, monkeypatch):
    """The segments do not depend on the day, so that a run can be resumed on another."""
    from transformers.utils import chat_template_utils
    template = "{{ '<|im_start|>system\nToday: ' + strftime_now('%d %b %Y') + '<|im_end|>\n' }}" + TEMPLATES['chatml']
    tokenizer = make(CHATML_TOKENS, template, eos='<|im_end|>')
    today = chat_segments(tokenizer)

    class Later(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.datetime(2031, 1, 1)

    monkeypatch.setattr(chat_template_utils, 'datetime', Later)
    message = [{'role': 'user', 'content': 'Hello'}]
    assert '01 Jan 2031' in tokenizer.apply_chat_template(message, tokenize=False)
    assert chat_segments(tokenizer) == today
    assert 'Today: 26 Jul 2024' in tokenizer.decode(today.open)


def test_qwen3_without_thinking(make):
    """Before the first reply, the built-in template is Qwen3's own with enable_thinking=False."""
    own = QWEN3.replace("assistant\\n' }}\n{%- endif %}\n", "assistant\\n' }}{%- if enable_thinking is defined and "
                        "enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}\n{%- endif %}\n")
    assert own != QWEN3
    tokenizer = make(CHATML_TOKENS, own, eos='<|im_end|>')
    tokenizer.add_tokens(['<think>', '</think>'])
    segments = chat_segments(tokenizer, 'qwen3')
    assert_same(tokenizer, segments, TEMPLATES['qwen3'])
    assert tokenizer.decode(segments.close) == '<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n'
    assert segments.join(segments.encode(tokenizer, ['Hello!'])) == tokenizer.apply_chat_template(
        [{'role': 'user', 'content': 'Hello!'}], add_generation_prompt=True, enable_thinking=False, return_dict=False)


def test_gemma3(make):
    """Gemma's own template strips every message, which is allowed; the built-in one does not."""
    tokenizer = make(GEMMA_TOKENS, GEMMA3, '<bos>', '<eos>')
    own, segments = chat_segments(tokenizer), chat_segments(tokenizer, 'gemma')
    assert own == segments
    assert_same(tokenizer, segments)
    assert_same(tokenizer, segments, TEMPLATES['gemma'])
    assert tokenizer.decode(segments.open) == '<bos><start_of_turn>user\n'
    assert tokenizer.decode(segments.close) == '<end_of_turn>\n<start_of_turn>model\n'
    assert segments.stop == tuple(tokenizer.convert_tokens_to_ids(['<end_of_turn>', '<eos>']))


def test_smollm3(make):
    """Its template prints the date and keeps the reasoning of earlier replies."""
    tokenizer = make(CHATML_TOKENS, SMOLLM3, eos='<|im_end|>')
    segments = chat_segments(tokenizer)
    assert tokenizer.decode(segments.open) == (
        '<|im_start|>system\n## Metadata\n\nToday Date: 26 July 2024\nReasoning Mode: /think\n\n<|im_start|>user\n')
    assert tokenizer.decode(segments.close) == '<|im_end|>\n<|im_start|>assistant\n'
    fixed = tokenizer.chat_template.replace('strftime_now("%d %B %Y")', '"26 July 2024"')
    assert_same(tokenizer, segments, fixed)


def test_further_ends(make):
    tokenizer = make(CHATML_TOKENS, TEMPLATES['chatml'], eos='<|im_end|>')
    end, other = tokenizer.convert_tokens_to_ids(['<|im_end|>', '<|endoftext|>'])
    segments = chat_segments(tokenizer, None, (other, end))
    assert segments.end == end and segments.stop == (end, other)


# Rejected templates


@pytest.mark.parametrize('control, template, message', [
    (CHATML_TOKENS, QWEN3, r'not append-only \(test case: thinking in replies\): for a conversation of 3 message.*'
                           r'at message 2 \(assistant\)'),
    (CHATML_TOKENS, TEMPLATES['chatml'].replace("+ message['content'] +", "+ (message['content'] | trim if "
     "message['role'] == 'assistant' else message['content']) +"), r'spaces around.*at message 2 \(assistant\)'),
    (CHATML_TOKENS, R1, r'test case: growing conversations.* for a conversation of 3 .* at message 1 \(user\)'),
    (MISTRAL_TOKENS, MISTRAL_TEKKEN, r'growing conversations.* for a conversation of 3 .* at message 1 \(user\)'),
    (CHATML_TOKENS, "{{ messages | length }}" + TEMPLATES['chatml'], r'growing conversations.* 3 message'),
    (CHATML_TOKENS, TEMPLATES['chatml'].replace('messages %}', 'messages[-3:] %}'), 'for a conversation of 5'),
    (CHATML_TOKENS, "{{ messages[0]['content'] }}" + TEMPLATES['chatml'], "renders the message 'Qfirst' 2 times"),
    (CHATML_TOKENS, 'nothing', "renders the message 'Qfirst' 0 times"),
    (CHATML_TOKENS, '{% for', 'fails for a conversation of 1 message'),
    (CHATML_TOKENS, "{{ raise_exception('a system message is needed') }}", 'fails .*: a system message is needed'),
    (CHATML_TOKENS, "{{ messages[0]['content'] + missing }}", 'fails for a conversation'),
    (CHATML_TOKENS, "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", 'fails .*: maximum recursion depth exceeded'),
    (CHATML_TOKENS, "{{ 'a'.encode('nothing') }}", 'fails .*: unknown encoding: nothing'),
    (CHATML_TOKENS, "{{ ''.join(5) }}", 'fails for a conversation'),
    (CHATML_TOKENS, "{% for i in range(10 ** 7) %}{% endfor %}", 'fails for a conversation'),
    (CHATML_TOKENS, "{% for i in range(99999) %}{{ messages[0]['content'] }}{% endfor %}", '99999 times instead'),
    (CHATML_TOKENS, TEMPLATES['chatml'].replace("'<|im_end|>", "' <|im_end|>"), 'ends replies .*does not begin with a control token'),
    ([], TEMPLATES['chatml'], 'ends replies with .* does not begin with a control token'),
    (CHATML_TOKENS, "{% for m in messages %}{{ m['content'] }}{% endfor %}", "ends replies with ''"),
    (CHATML_TOKENS, "{% for m in messages %}{{ '<|im_start|>' + m['content'] }}{% endfor %}"
                    "{% if add_generation_prompt %}{{ '<|im_start|>' }}{% endif %}",
     "ends earlier replies with '<|im_start|>', but not the last reply"),
])
def test_rejected_templates(control, template, message, make):
    tokenizer = make(control, template, *(('<s>', '</s>') if '</s>' in control else (None, None)))
    if control is LLAMA3_TOKENS:
        tokenizer.bos_token = '<|begin_of_text|>'
    with pytest.raises(ChatTemplateError, match=message.replace('|>', r'\|>').replace('<|', r'<\|')) as caught:
        chat_segments(tokenizer)
    assert len(str(caught.value)) < 1200
    assert 'another template (chatml, llama3, mistral, gemma, qwen3) or to the path of a .jinja file' in str(caught.value)


def test_missing_templates_raise(make, smollm2_tokenizer, tmp_path):
    with pytest.raises(ChatTemplateError, match='the tokenizer has no chat template. Set chat_template'):
        chat_segments(make(CHATML_TOKENS, None))
    bare = copy.deepcopy(smollm2_tokenizer)
    bare.chat_template = None
    assert chat_segments(bare, 'chatml').end == 2
    for unknown in ('vicuna', tmp_path / 'none.jinja', tmp_path):
        with pytest.raises(ChatTemplateError, match='neither the name of a chat template .* nor a file'):
            chat_segments(bare, unknown)
