"""The WebShop domain: options, scenarios, and the names under which results are reported."""

from ml_collections import ConfigDict

from epo_jax.config import SEEDS, Key
from epo_jax.envs.base import Domain
from epo_jax.envs.webshop.nouns import TAGGERS
from epo_jax.envs.webshop.scripted import SCRIPTS
from epo_jax.envs.webshop.shopping import Scenario, WebShop
from epo_jax.envs.webshop.variants import SEED, VARIANTS, find_variant, load_shop


def check(options: ConfigDict) -> list[str]:
    """See Domain.check."""
    errors = []
    for name, known in (('variant', VARIANTS), ('tagger', TAGGERS), ('script', SCRIPTS)):
        if options[name] not in known:
            errors.append(f'environment.{name} must be one of {", ".join(map(repr, known))}; it is {options[name]!r}')
    if options.constrained and not options.begun:
        errors.append("environment.constrained needs environment.begun=True, because the choices follow 'Action:'")
    return errors


def scenarios(path: str, options: ConfigDict) -> list[Scenario]:
    """Return one scenario for every goal in the variant's splits; see Domain.scenarios."""
    variant = find_variant(options.variant)
    shop = load_shop(variant.name, path, options.tagger, options.seed)
    splits = dict(zip(('train', 'held_out'), variant.splits(len(shop.goals))))
    in_both = set(splits['train']) & set(splits['held_out'])
    category = lambda goal: shop.goals[goal].category
    return [Scenario(f'{variant.name}/{goal}', split, category(goal), _reward_variant(options), shop, goal,
                     goal in in_both)
            for split, goals in splits.items() for goal in goals]


def variant(options: ConfigDict) -> str:
    """See Domain.variant."""
    return text_environment(options).variant(_reward_variant(options))


def text_environment(options: ConfigDict) -> WebShop:
    """See Domain.text_environment."""
    return WebShop(find_variant(options.variant).max_steps, options.short, options.begun, options.constrained,
                   SCRIPTS[options.script])


def _reward_variant(options: ConfigDict) -> str:
    """Return the variant's name with a suffix for every option that changes its rewards."""
    suffixes = [options.tagger] * (options.tagger != 'words') + [f'seed{options.seed}'] * (options.seed != SEED)
    return '+'.join([options.variant, *suffixes])


DOMAIN = Domain(
    seats=1,
    # Every option that is not at its default, the variant aside, adds a suffix to the name of the results, such as
    # webshop-1k-human+spacy+short.
    options={
        'variant': Key('webshop-small-synth-15',
                       'catalog, goals and number of steps; all but webshop-small-* need data (`scenarios`)'),
        'tagger': Key('words', "how the reward finds nouns: words, or spacy as in the original"),
        'seed': Key(SEED, 'seed of prices and price limits', SEEDS),
        'short': Key(False, 'short prompts and pages, for small models'),
        'begun': Key(False, "prefill the replies of the models with 'Thought:' and 'Action:'"),
        'constrained': Key(False, "restrict the actor's clicks to what the page offers; needs begun"),
        'script': Key('', "buyer or weak_buyer: a scripted customer acts in place of the actor; '' for none")},
    check=check, scenarios=scenarios, text_environment=text_environment, variant=variant,
    repeats=True)
