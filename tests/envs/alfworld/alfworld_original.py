"""The original game engine, step by step: alfworld's texts on textworld's PDDL environment (extra `alfworld`)."""

from alfworld.agents.environment.alfred_tw_env import AlfredDemangler
import textworld
from textworld.envs.pddl.pddl import PddlEnv


class Original:
    """One game in the original engine.

    Args:
      row: of a file of games; domain, grammar: texts, the grammar with '@@TASK@@' for the task.
    """

    def __init__(self, row, domain, grammar):
        self.env = AlfredDemangler(PddlEnv(textworld.EnvInfos(won=True, admissible_commands=True)))
        self.env.load({'pddl_domain': domain, 'grammar': grammar.replace('@@TASK@@', row['task']),
                       'pddl_problem': row['pddl_problem'], 'walkthrough': row['walkthrough'], 'solvable': True})
        self.state = self.env.reset()

    def step(self, command):
        self.state, _, _ = self.env.step(command)

    def seen(self):
        """(observation, admissible commands, won)."""
        return self.state.feedback, list(self.state['admissible_commands']), bool(self.state['won'])


def older(domain, grammar):
    """Domain and grammar as they were in releases 0.2.2 to 0.3.3."""
    domain = domain[:domain.index('(:action help')] + ')'
    grammar = grammar[:grammar.index('action help {')]
    for new, old in (('You arrive at {r.name}', 'You arrive at {lend.name}'),
                     ('move {o} to {r}', 'put {o} in/on {r}'),
                     ('You move the {o.name} to the {r.name}', 'You put the {o.name} in/on the {r.name}')):
        assert new in grammar
        grammar = grammar.replace(new, old)
    return domain, grammar
