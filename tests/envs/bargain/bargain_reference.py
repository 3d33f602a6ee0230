"""A reference implementation of the bargaining rules, in plain Python and exact fractions."""

from fractions import Fraction
import itertools

from epo_jax.envs.bargain import opponents


class Table:
    """One bargain between side 0 and side 1. An offer is (items of side 0, items of side 1)."""

    def __init__(self, scenario, rounds, against_family):
        self.counts, self.values, self.rounds = scenario.counts, scenario.values, rounds
        self.opponent = next((o for o in opponents.FAMILY if o.name == scenario.opponent), None)
        self.against_family = against_family
        self.offers = ([], [])
        self.taken, self.deal, self.over, self.invalid, self.insults = 0, None, False, [0, 0], 0

    def copy(self):
        other = object.__new__(Table)
        other.__dict__.update(
            self.__dict__, offers=tuple(list(made) for made in self.offers), invalid=list(self.invalid))
        return other

    def points(self, side, offer):
        return sum(n * v for n, v in zip(offer[side], self.values[side]))

    def splits(self):
        for first in itertools.product(*(range(n + 1) for n in self.counts)):
            yield first, tuple(n - a for n, a in zip(self.counts, first))

    def proposal(self, side, ask):
        """Return the offer of at least `ask` points that looks best for the partner, then is best for the side."""
        kept = [offer[1 - side] for offer in self.offers[1 - side]] + [self.counts]
        estimate = [Fraction(sum(items[i] for items in kept), n) for i, n in enumerate(self.counts)]
        possible = [offer for offer in self.splits() if self.points(side, offer) >= ask]
        partner_points = lambda offer: sum(weight * n for weight, n in zip(estimate, offer[1 - side]))
        return max(possible, key=lambda offer: (partner_points(offer), self.points(side, offer)))

    def say(self, side, word):
        """Apply one message of a side, and the answer of the environment's opponent if it plays."""
        made = False
        if word.startswith('ask:'):
            self.offers[side].append(self.proposal(side, int(word[4:])))
            made = True
        elif word == 'accept' and self.offers[1 - side]:
            self.deal, self.over = self.offers[1 - side][-1], True
        elif word == 'walk':
            self.over = True
        elif word != 'wait':
            self.invalid[side] += 1
        self._count()
        if self.against_family and not self.over:
            self._answer(made)

    def _count(self):
        self.taken += 1
        self.over = self.over or self.taken == 2 * self.rounds

    def _answer(self, made):
        kind, worths = self.opponent, [self.points(1, offer) for offer in self.offers[0]]
        schedule = kind.schedule[min(self.taken // 2, len(kind.schedule) - 1)]
        gained = max(worths) - worths[0] if worths else 0
        ask = max(kind.floor, schedule - kind.reciprocity * gained)
        self.insults += made and worths[-1] < kind.respect
        if worths and worths[-1] >= ask:
            self.deal, self.over = self.offers[0][-1], True
        elif self.insults > kind.patience:
            self.over = True
        elif not (made and worths[-1] < kind.respect):
            self.offers[1].append(self.proposal(1, ask))
        self._count()

    def rewards(self):
        if self.deal is None:
            return 0.0, 0.0
        points = [self.points(side, self.deal) for side in (0, 1)]
        most = max(sum(self.points(side, offer) for side in (0, 1)) for offer in self.splits())
        return tuple(float(Fraction(own, 10) * Fraction(sum(points), most) * Fraction(9, 10) ** invalid)
                     for own, invalid in zip(points, self.invalid))
