"""From a file of conversations to a folder that transformers loads, with equal logits."""

import json
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sotopia_dialogues import FOLDER, dialogues, raw_row
from test_experiment import small_config

from epo_jax import experiment, export, label, offline, prepare, runs
from epo_jax.models import weights
from epo_jax.models.gemma_config import GemmaConfig
from epo_jax.testing import byte_tokenizer, dummy_config, dummy_params

ROOT = pathlib.Path(__file__).parent.parent


def command(*parts):
    done = subprocess.run([sys.executable, '-m', *map(str, parts)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def our_logits(workdir, ids):
    """Return the logits [N, L, V] of the last checkpoint."""
    config = runs.read_config(workdir)
    language, lora = runs.load_run_language(config), runs.lora_of(config)
    _, params = runs.restore_params(workdir, config, language)
    if lora is not None:
        params = lora.join(language.with_params(jnp.float32, config.seed).params, params)
    model, positions = language.learner('none'), jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
    hidden, _ = model.apply({'params': params}, ids, positions)
    return np.asarray(model.apply({'params': params}, hidden, method='logits'))


def assert_loads(folder, workdir, conversations, tolerance, base=None):
    """Check that transformers renders, tokenizes and computes as epo_jax does.

    `base` is the folder of an adapter's base model.
    """
    torch = pytest.importorskip('torch')
    import transformers
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(base or folder, dtype=torch.float32).eval()
    language = runs.load_run_language(runs.read_config(workdir))
    chat = language.chat
    if base:
        model = pytest.importorskip('peft').PeftModel.from_pretrained(model, folder)
    else:
        stops = model.generation_config.eos_token_id
        assert set(chat.stop) == set(stops if isinstance(stops, list) else [stops])
    for texts in conversations:
        messages = [{'role': ('user', 'assistant')[i % 2], 'content': text} for i, text in enumerate(texts)]
        rendered = tokenizer.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
        ids = tokenizer(rendered, add_special_tokens=False)['input_ids']
        assert ids == chat.join([language.tokenizer(text, add_special_tokens=False)['input_ids']
                                 for text in texts[:-1]])
        with torch.no_grad():
            want = model(torch.tensor([ids])).logits.numpy()
        got = our_logits(workdir, np.array([ids]))
        assert np.abs(got - want).max() < tolerance and np.abs(want).max() > 1e-3


def test_label_prepare_train_export_load(tmp_path):
    rows = [{'conversations': [
        {'from': 'human', 'value': f'It is row {n}.'}, {'from': 'gpt', 'value': 'Strategy: be kind.'},
        {'from': 'human', 'value': 'And now?'}, {'from': 'gpt', 'value': 'Strategy: offer a trade.'}],
        'score': n % 11} for n in range(9)]
    (tmp_path / 'raw.json').write_text(json.dumps(rows))
    work, out = tmp_path / 'run', tmp_path / 'model'
    label.main([f'--data={tmp_path}/raw.json', f'--out={tmp_path}/labeled.json', '--domain=sotopia', '--judge=local',
                '--model=dummy', '--capacity=512', '--batch=4'])
    labeled = json.loads((tmp_path / 'labeled.json').read_text())
    assert all(set(row['location']) <= {1, 3} for row in labeled)
    prepare.main([f'--data={tmp_path}/labeled.json', f'--out={tmp_path}/prepared.json', '--domain=sotopia'])
    config = offline.default_config()
    config.data, config.model.path, config.capacity = f'{tmp_path}/prepared.json', 'dummy', 512
    config.learner.update(batch=4, epochs=1, learning_rate=1e-2, length_bucket=256)
    offline.run(config, work)
    export.main([f'--workdir={work}', f'--out={out}'])
    assert_loads(out, work, [[m['value'] for m in row['conversations']] for row in rows[:2]], 1e-4)
    before = dummy_params(dummy_config(), stacked=True)
    _, after = weights.load(out, stacked=True)
    moved = jax.tree.leaves(jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), before, after))
    assert all(change > 1e-4 for change in moved)

    with pytest.raises(export.ExportError, match='already exists'):
        export.export(str(work), str(out))
    with pytest.raises(runs.RunError, match='workdir of a run'):
        export.export(str(tmp_path), str(tmp_path / 'other'))
    assert sorted(p.name for p in out.iterdir()) == [
        'chat_template.jinja', 'config.json', 'generation_config.json', 'model.safetensors', 'tokenizer.json',
        'tokenizer_config.json']


GEMMA = GemmaConfig(**vars(dummy_config()) | dict(
    qk_norm=True, sliding_window=64, local_layers=(True, False), query_scale=8.0, logit_cap=20.0))


@pytest.mark.parametrize('model, rank', [
    pytest.param(dummy_config(), 0, id='llama'),
    pytest.param(dummy_config(), 2, id='llama adapter', marks=pytest.mark.slow),
    pytest.param(GEMMA, 0, id='gemma', marks=pytest.mark.slow), pytest.param(GEMMA, 2, id='gemma adapter')])
def test_online_runs_with_and_without_an_adapter(model, rank, tmp_path):
    base, work = tmp_path / 'base', tmp_path / 'run'
    weights.save(base, model, dummy_params(model, stacked=True))
    byte_tokenizer().save_pretrained(base)
    config = small_config()
    config.iterations, config.model.path, config.lora.rank = 1, str(base), rank
    config.learner.learning_rate, config.model.remat = 3e-2, 'none'
    config.reward.outcome = 'test_experiment:count_of_letters'
    experiment.run(config, work)
    talk = ['What now?', 'Strategy: be kind.', 'They said: no.', 'Strategy: ask why.']
    whole = [f'--workdir={work}', f'--out={tmp_path}/whole']
    export.main(whole + ['--merged'] * bool(rank))
    assert_loads(tmp_path / 'whole', work, [talk], 1e-4)
    _, before = weights.load(base, stacked=True)
    _, after = weights.load(tmp_path / 'whole', stacked=True)
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()) > 1e-4, before, after)
    assert all(jax.tree.leaves(moved['layers']['q'] if rank else moved)) and moved['embed'] == (rank == 0)
    if rank:
        export.main([f'--workdir={work}', f'--out={tmp_path}/adapter'])
        assert sorted(p.name for p in (tmp_path / 'adapter').iterdir()) == [
            'adapter_config.json', 'adapter_model.safetensors', 'chat_template.jinja', 'tokenizer.json',
            'tokenizer_config.json']
        assert json.loads((tmp_path / 'adapter/adapter_config.json').read_text())['base_model_name_or_path'] == str(
            base)
        assert_loads(tmp_path / 'adapter', work, [talk], 1e-4, base)
        with pytest.raises(export.ExportError, match='use --merged to write the whole model in bfloat16'):
            export.export(str(work), str(tmp_path / 'other'), 'bfloat16')
    else:
        with pytest.raises(SystemExit, match='no adapter to merge'):
            export.main([f'--workdir={work}', f'--out={tmp_path}/other', '--merged'])
    assert not (tmp_path / 'other').exists() and not list(tmp_path.glob('.*'))


@pytest.mark.slow
def test_real_dialogues_with_smollm2(tmp_path, smollm2_gguf):
    """100 real dialogues: rate those without a score, then label, prepare, train, export and load."""
    if not FOLDER.exists():
        pytest.skip('needs the SOTOPIA dialogues')
    rows = [row for dialogue in dialogues() if (row := raw_row(*dialogue)) is not None]
    rows = sorted(rows, key=lambda row: row['score'] is None)[:120]  # some are too long to be rated
    rows = rate(rows)[:100]
    (tmp_path / 'raw.json').write_text(json.dumps(rows, ensure_ascii=False, indent=4))
    work, out = tmp_path / 'run', tmp_path / 'model'
    print(command('epo_jax.label', f'--data={tmp_path}/raw.json', f'--out={tmp_path}/labeled.json',
                  '--domain=sotopia', '--judge=local', '--capacity=1024', '--batch=4'))
    labeled = json.loads((tmp_path / 'labeled.json').read_text())
    assert len(labeled) == 100 and sum('location' in row for row in labeled) >= 80
    print(command('epo_jax.prepare', f'--data={tmp_path}/labeled.json', f'--out={tmp_path}/prepared.json',
                  '--domain=sotopia'))
    print(command('epo_jax.main', '--config=configs/offline.py:smollm2', f'--config.data={tmp_path}/prepared.json',
                  f'--workdir={work}', '--config.capacity=256', '--config.learner.epochs=1', '--config.skip_bad=True',
                  '--config.learner.batch=10', '--config.learner.micro_batch=2',
                  '--config.learner.length_bucket=256'))
    metrics = [json.loads(line) for line in (work / 'metrics.jsonl').read_text().splitlines()]
    assert metrics and all(np.isfinite(row['learner/loss']) for row in metrics)
    print(command('epo_jax.export', f'--workdir={work}', f'--out={out}'))
    assert_loads(out, work, [[m['value'] for m in row['conversations'][:4]] for row in rows[:3]], 2e-3)


def rate(rows):
    """Let SmolLM2 rate the rows without a score, in integers as in SOTOPIA, and drop rows that are too long for it."""
    from epo_jax.data.local_judge import LocalJudge
    from epo_jax.rewards.process import assess
    from epo_jax.rewards.prompts import JudgePrompt, encode_prompts
    unrated = [row for row in rows if row['score'] is None]
    judge = LocalJudge('smollm2', 'sotopia', 1024, 4, None)._judge
    texts = [[m['value'] for m in row['conversations']] for row in unrated]
    prompts = [JudgePrompt(t[0], 0, tuple((i % 2, line) for i, line in enumerate(t[1:])), tuple(t[1::2]), None, True)
               for t in texts]
    verdict = assess(judge, encode_prompts(judge, prompts, 10, 'none', read=True), 'none', rate=True)
    for row, outcome, valid in zip(unrated, verdict.outcome, verdict.outcome_valid):
        row['score'] = round(10 * float(outcome)) if valid else None
    return [row for row in rows if row['score'] is not None]
