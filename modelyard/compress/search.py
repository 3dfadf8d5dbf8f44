"""The search: what to try next. Pure: it builds nothing, measures nothing, knows no store. Who won is in decision.py.

`Search.ask` says what to do, `Search.tell` takes what came of it, in any order. What is asked next depends only on what
was told, so a search that was interrupted goes on where its results end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from modelyard.compress.config import SearchConfig
from modelyard.compress.decision import Judge
from modelyard.compress.outcomes import Ask, Decision, Outcome, Recipe, Told
from modelyard.compress.quality import broken_limits
from modelyard.errors import ConversionFailed
from modelyard.model_package import FLOAT_FORM


class Search:
    """The state of one search.

    Args:
        headline: the task's main metric, whose drop is limited where the budget names none.
    """

    def __init__(self, config: SearchConfig, headline: str) -> None:
        self.config = config
        self._told = Told()
        self._judge = Judge(config, headline, self._told)
        self._rounds = _rounds(config)
        self.recipes = {recipe.name: recipe for recipes in self._rounds for recipe in recipes}

    def ask(self) -> Ask | None:
        """What to do next; None when all is done."""
        if FLOAT_FORM in self._told.fell:
            return None
        for recipes in self._rounds:
            if open_ones := [one for one in recipes if self._is_open(one)]:
                return Ask(what="build", recipes=open_ones)
        waiting = [name for name in self.recipes if self._judge.may_win(name) and name not in self._told.measured]
        if waiting and waiting != [FLOAT_FORM]:
            names = dict.fromkeys([FLOAT_FORM, *waiting])
            return Ask(what="measure", recipes=[self.recipes[name] for name in names])
        return None

    def tell(self, name: str, outcome: Outcome) -> None:
        """Take what came of a recipe."""
        self._told.take(name, outcome)

    def fell(self, name: str) -> str:
        """Why a recipe fell; empty: it did not."""
        return self._told.fell.get(name, "")

    def decide(self) -> Decision:
        """The winner, why, and why each other candidate lost."""
        return self._judge.decide({name: self._why_dropped(recipe) for name, recipe in self.recipes.items()})

    def _is_open(self, recipe: Recipe) -> bool:
        known = recipe.name in self._told.built or recipe.name in self._told.fell
        return not known and not self._why_dropped(recipe)

    def _why_dropped(self, recipe: Recipe) -> str:
        """Why a form of a smaller network is not tried, judged by the network's float form; empty: it is."""
        if recipe.network is None or recipe.form is None:
            return ""
        trunk = recipe.network.label
        if trunk in self._told.fell:
            return f"its network {trunk} fell: {self._told.fell[trunk]}"
        if trunk not in self._told.built:
            return ""
        built, whole = self._told.built[trunk], self._told.built.get(FLOAT_FORM)
        if broken := broken_limits(built.drops, self._judge.limits):
            return f"its network {trunk} is outside the budget as it is: {'; '.join(broken)}"
        if whole and built.macs >= whole.macs and built.parameters >= whole.parameters:
            return f"its network {trunk} has no fewer parameters or multiplications than the trained one"
        return ""


def conduct(
    search: Search,
    build: Callable[[Sequence[Recipe]], Mapping[str, Outcome]],
    measure: Callable[[Sequence[Recipe]], Mapping[str, Outcome]],
) -> Decision:
    """Do what a search asks until it asks no more.

    Args:
        build, measure: carry out what is asked; every recipe asked for must have an outcome.

    Raises:
        ConversionFailed: the float form itself fell: there is nothing to hold the others against, and nothing to serve.
    """
    while asked := search.ask():
        outcomes = (build if asked.what == "build" else measure)(asked.recipes)
        for recipe in asked.recipes:
            search.tell(recipe.name, outcomes[recipe.name])
    if reason := search.fell(FLOAT_FORM):
        raise ConversionFailed(f"the form {FLOAT_FORM!r} cannot be made: {reason}")
    return search.decide()


def _rounds(config: SearchConfig) -> list[list[Recipe]]:
    """Cheap first: float, forms of the trained network, networks that need no training, those that do, their forms."""
    forms = [Recipe(form=form) for form in config.forms]
    quick = [Recipe(network=one) for one in config.networks if not one.needs_training]
    slow = [Recipe(network=one) for one in config.networks if one.needs_training]
    trunks = [trunk for trunk in (*quick, *slow) if trunk.network and trunk.network.takes_forms]
    combined = [Recipe(network=trunk.network, form=form) for trunk in trunks for form in config.forms]
    return [[Recipe()], forms, quick, slow, combined]
