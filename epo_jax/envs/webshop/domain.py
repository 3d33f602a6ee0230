"""WebShop as an experiment meets it."""

from ml_collections import ConfigDict

from epo_jax.envs.base import Domain
from epo_jax.envs.webshop import experts
from epo_jax.envs.webshop.nouns import TAGGERS
from epo_jax.envs.webshop.shopping import Scenario, WebShop
from epo_jax.envs.webshop.variants import SEED, VARIANTS, find_variant, load_shop

SCRIPTS = {'': None, 'buyer': experts.buyer, 'weak_buyer': experts.weak_buyer}


def check(options: ConfigDict) -> list[str]:
    """See Domain.check."""
    wrong = []
    for name, known in (('variant', VARIANTS), ('tagger', TAGGERS), ('script', SCRIPTS)):
        if options[name] not in known:
            wrong.append(f'environment.{name} must be one of {", ".join(map(repr, known))}; it is {options[name]!r}')
    if options.constrained and not options.begun:
        wrong.append("environment.constrained needs environment.begun: the choices follow on 'Action:'")
    return wrong


def scenarios(path: str, options: ConfigDict) -> list[Scenario]:
    """See Domain.scenarios: one for every goal of the variant's splits."""
    variant = find_variant(options.variant)
    shop = load_shop(variant.name, path, options.tagger, options.seed)
    splits = dict(zip(('train', 'held_out'), variant.splits(len(shop.goals))))
    both = set(splits['train']) & set(splits['held_out'])
    category = lambda goal: shop.goals[goal].category
    return [Scenario(f'{variant.name}/{goal}', split, category(goal), rewarded(options), shop, goal, goal in both)
            for split, goals in splits.items() for goal in goals]


def rewarded(options: ConfigDict) -> str:
    """The variant with what changes its rewards."""
    changed = [options.tagger] * (options.tagger != 'words') + [f'seed{options.seed}'] * (options.seed != SEED)
    return '+'.join([options.variant, *changed])


def variant(options: ConfigDict) -> str:
    """See Domain.variant."""
    return environment(options).variant(rewarded(options))


def environment(options: ConfigDict) -> WebShop:
    """See Domain.environment."""
    return WebShop(find_variant(options.variant).max_steps, options.short, options.begun, options.constrained,
                   SCRIPTS[options.script])


DOMAIN = Domain(
    seats=1,
    options=dict(
        variant='webshop-small-synth-15',  # see variants.py; all but webshop-small-* need data (config.scenarios)
        # Results with one of the following changed bear another name, such as webshop-1k-human+spacy+short.
        tagger='words',       # who finds nouns for the reward: words, or spacy (the official way)
        seed=SEED,            # of prices and price limits
        short=False,          # short prompts and pages, for small models
        begun=False,          # replies are begun for the models: 'Thought:', 'Action:'
        constrained=False,    # the actor can only click what is there
        script=''),           # buyer or weak_buyer: a scripted customer acts in place of the actor
    check=check, scenarios=scenarios, environment=environment, variant=variant)
