"""SOTOPIA's rubric: the seven dimensions in which a judge rates both characters.

Names, ranges and meanings are those of SOTOPIA-Eval (Zhou et al., ICLR 2024, section 3); the wording is different.
Changing any of these texts changes results.
"""

from epo_jax.envs.base import GOAL, Dimension

RUBRIC = (
    Dimension(
        'believability', 0, 10,
        'Does this character act naturally, as a real person would, and in keeping with who the character is? First '
        'consider naturalness: confusion about who one is, repetition without a reason, and more politeness than the '
        'situation calls for all lower the score. Then consider consistency with the personality, values and '
        'background of the character. 0: not believable; 10: entirely believable.'),
    Dimension(
        'relationship', -5, 5,
        'What did the conversation do to the relationship of this character with the other one, and to the social '
        'standing and reputation of this character? State what the relationship was before and what it is afterwards. '
        '-5: great harm; 0: no change; 5: great improvement.'),
    Dimension(
        'knowledge', 0, 10,
        'What did this character learn in the conversation? Count only what was new to the character, and give '
        'important information more weight. 0: nothing new; 10: much that is both new and important.'),
    Dimension(
        'secret', -10, 0,
        'Which secret or hidden intention does this character have, and how well was it kept? Consider everything '
        'private that the character gave away. -10: a critical secret or intention was revealed; 0: nothing was '
        'revealed, or there was nothing to hide.'),
    Dimension(
        'social_rules', -10, 0,
        'Did this character break the law, or moral or social rules? -10: a severe violation; 0: no violation.'),
    Dimension(
        'financial_and_material_benefits', -5, 5,
        'What did this character gain or lose in money or material goods? Consider short-term effects, such as '
        'payments, food or goods, and long-term effects, such as a job or an investment. -5: a great loss; 0: neither '
        'gain nor loss; 5: a great gain.'),
    Dimension(
        GOAL.name, GOAL.low, GOAL.high,
        'How far did this character reach its own goal? First restate the goal with all its conditions, and then say '
        'what was reached of each. 0: nothing was reached; 10: the goal was reached completely.'),
)
