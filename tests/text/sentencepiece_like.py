"""Small tokenizers of the SentencePiece kind, in the forms of published checkpoints, and the templates that come with them."""

import json

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers

CORPUS = (
    'Hello! How are you today?', "I'm fine, thanks. The 12 apples cost $34.50, don't they?",
    'First line\nsecond line\n\n- a list\n- of two', 'user assistant system INST SYS USER ASSISTANT',
    'Shall we meet at ten? Rather at eleven, or twelve. Yes or No, yes or no.',
    'the rain in the plain; a negotiation about a price') * 9

# The templates of published checkpoints, by the control tokens that these have.
TEMPLATES = {
    'Llama 2': (  # meta-llama/Llama-2-7b-chat-hf
        "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
        "{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}"
        "{% set system_message = false %}{% endif %}{% for message in loop_messages %}"
        "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
        "{% if loop.index0 == 0 and system_message != false %}"
        "{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}"
        "{% else %}{% set content = message['content'] %}{% endif %}"
        "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
        "{% elif message['role'] == 'assistant' %}{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"),
    'Mistral 7B v0.1': (
        "{{ bos_token }}{% for message in messages %}"
        "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
        "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
        "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token + ' ' }}"
        "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"),
    'Mistral 7B v0.2': (
        "{{ bos_token }}{% for message in messages %}"
        "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
        "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token }}{% endif %}{% endfor %}"),
    'Mistral 7B v0.2, revised': (
        "{{- bos_token }}\n{%- for message in messages %}\n    {%- if message['role'] == 'user' %}\n"
        "        {{- ' [INST] ' + message['content'] + ' [/INST]' }}\n    {%- elif message['role'] == 'assistant' %}\n"
        "        {{- ' ' + message['content'] + eos_token}}\n    {%- endif %}\n{%- endfor %}\n"),
    'Mistral 7B v0.3': (  # its [INST] and [/INST] are control tokens
        "{{- bos_token }}\n{%- for message in messages %}\n    {%- if message['role'] == 'user' %}\n"
        "        {{- '[INST] ' + message['content'] + '[/INST]' }}\n    {%- elif message['role'] == 'assistant' %}\n"
        "        {{- ' ' + message['content']|trim + eos_token}}\n    {%- endif %}\n{%- endfor %}\n"),
    'TinyLlama': (
        "{% for message in messages %}\n{% if message['role'] == 'user' %}\n"
        "{{ '<|user|>\n' + message['content'] + eos_token }}\n{% elif message['role'] == 'system' %}\n"
        "{{ '<|system|>\n' + message['content'] + eos_token }}\n{% elif message['role'] == 'assistant' %}\n"
        "{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n{% endif %}\n"
        "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}"),
    'Vicuna': (
        "{{ bos_token }}A chat between a curious user and an artificial intelligence assistant. "
        "{% for message in messages %}{% if message['role'] == 'user' %}{{ 'USER: ' + message['content'] + ' ' }}"
        "{% else %}{{ 'ASSISTANT: ' + message['content'] + eos_token }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"),
    'no markers': "{{ bos_token }}{% for m in messages %}{{ m['content'] + eos_token }}{% endfor %}",
}
TEMPLATES['Zephyr'] = TEMPLATES['TinyLlama']
CONTROL = {'Mistral 7B v0.3': ('[INST]', '[/INST]'), 'mistral': ('[INST]', '[/INST]'),
           'chatml': ('<|im_start|>', '<|im_end|>'), 'qwen3': ('<|im_start|>', '<|im_end|>')}
FORMS = ('prepend', 'first', 'always')


def sentencepiece(form: str, control=()) -> tokenizers.Tokenizer:
    """Return a tokenizer with Llama 2's layout: <unk> <s> </s>, control tokens, 256 bytes, pieces.

    Args:
      form: how it puts a space in front of a text: a normalizer ('prepend'), or a Metaspace at the first piece of a text
        ('first') or at every piece ('always').
      control: further control tokens.
    """
    trained = tokenizers.Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Metaspace(prepend_scheme='always'), pre_tokenizers.Digits(individual_digits=True)])
    trained.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=400, show_progress=False))
    model = json.loads(trained.to_str())['model']
    vocab = {}
    for piece in ['<unk>', '<s>', '</s>', *control, *(f'<0x{i:02X}>' for i in range(256)),
                  *sorted(model['vocab'], key=model['vocab'].get)]:
        if piece != '\n':  # is spelled as a byte, as in Llama 2
            vocab.setdefault(piece, len(vocab))
    merges = [tuple(merge) for merge in model['merges'] if '\n' not in ''.join(merge)]
    backend = tokenizers.Tokenizer(models.BPE(vocab, merges, unk_token='<unk>', fuse_unk=True, byte_fallback=True))
    if form == 'prepend':
        backend.normalizer = normalizers.Sequence([normalizers.Prepend('\u2581'), normalizers.Replace(' ', '\u2581')])
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=form, split=False)
    backend.decoder = decoders.Sequence([
        decoders.Replace('\u2581', ' '), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(' ', 1, 0)])
    backend.add_special_tokens([
        AddedToken(token, special=True, normalized=False) for token in ('<unk>', '<s>', '</s>', *control)])
    backend.post_processor = processors.TemplateProcessing(single='<s> $A', special_tokens=[('<s>', 1)])
    return backend


def write_folder(folder, form, template, control=(), kind='PreTrainedTokenizerFast', **config):
    """Write the tokenizer of a checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    sentencepiece(form, control).save(str(folder / 'tokenizer.json'))
    (folder / 'tokenizer_config.json').write_text(json.dumps({
        'tokenizer_class': kind, 'bos_token': '<s>', 'eos_token': '</s>', 'unk_token': '<unk>',
        'clean_up_tokenization_spaces': False, 'chat_template': template, **config}))
    return folder
