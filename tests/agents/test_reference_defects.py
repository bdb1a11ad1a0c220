"""What the released code of mean-field MARL gets wrong has a test here, or elsewhere, that fails on it.

The code is mlii/mfrl @d9a2dbc of Yang et al. 2018, arXiv 1802.05438, and XuanCe 1.4.4. Tested elsewhere: acting is
`argmax(softmax(q / T))` (test_conformance, `a_temperature_is_that_of_a_draw`; test_training, `the_temperature_of_
exploration`); the last steps of the dead and of cut episodes are dropped (test_training, `the_dead_are_taught`,
`who_waits_for_its_turn`); columns of the replay are permuted apart (test_memory, `keeps_columns_together`); a battle
that is tied counts as won by both (test_elo); the largest order parameter is reported and not the mean
(test_results); spins move all at once and are held against a law of spins that do not (test_ising).
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mfmarl import random
from mfmarl.learning.agent import Transition
from mfmarl.learning.episode import Episode
from mfmarl.learning.training import Training
from mfmarl.options import options_of
from mfmarl.population.simulation import Simulation
from mfmarl.random import Key
from mfmarl.registry import entries, lookup
from mfmarl.statmech import gibbs
from tests.learning.mini import Arms, Lattice, finish, train

SMALL: dict[str, Any] = {
    "hidden": (8,), "warm_up": 8, "batch_size": 16, "rollout": 6,
    "candidates": 6, "elites": 2, "iterations": 2, "members": 3, "habit_rows": 2, "horizon": 4,
}  # fmt: skip


def small(name: str, **options: Any) -> dict[str, Any]:
    known = {o.name for o in options_of(lookup("agent", name).load().Config)}
    return {k: v for k, v in SMALL.items() if k in known} | options


def having(option: str) -> list[str]:
    """The package's agents that have that option, in their own name."""
    found = []
    for name, entry in entries("agent").items():
        if entry.origin == "mfmarl" and not entry.overrides:
            found += [name] * (option in {o.name for o in options_of(entry.load().Config)})
    return found


def learner(name: str, **options: Any) -> Any:
    """One mind for three arms that feels the others, its target moved away from its values."""
    agent = train(Arms(8, pay=(0.0, 1.0, 2.0)), name, small(name, **options), evaluate=False).players[0].agent
    with torch.no_grad():
        for i, (path, weight) in enumerate(agent.named_parameters()):
            scale = 2.0 if "target" in path else 1.0
            weight.add_(scale * random.normal(Key.of(7).fold(i), torch.arange(weight.numel())).view(weight.shape))
    return agent


def batch(agent: Any, rows: int = 64, legal: bool = False, **given: Any) -> Transition:
    """Transitions of random fields, rewards and masks."""
    ids, key = torch.arange(rows).unsqueeze(0), Key.of(1)

    def shares(what: str) -> Tensor:
        return torch.softmax(random.normal(key.fold(what), ids, agent.field_size), -1)

    masks = random.uniform(key.fold("masks"), ids, 3) < 0.5
    masks[..., 1] |= ~masks.any(-1)
    usual = {
        "obs": torch.ones(1, rows, 1), "field": shares("felt"), "legal": None,
        "action": random.integers(key.fold("action"), ids, 3), "reward": random.normal(key.fold("reward"), ids),
        "next_obs": torch.ones(1, rows, 1), "next_field": shares("next"), "next_legal": masks if legal else None,
        "terminated": torch.zeros(1, rows, dtype=torch.bool),
    }  # fmt: skip
    return Transition(**{**usual, **given})  # type: ignore[arg-type]


def values_of(agent: Any, name: str) -> tuple[Any, Any]:
    return (agent.values, agent.target) if name == "mfq" else (agent.critic, agent.target)


@pytest.mark.parametrize("name", ["mfq", "mfac"])
def test_a_terminal_step_is_learned_from_with_nothing_after_it(name: str) -> None:
    """The reference masks it out of the loss: a batch of deaths would teach nothing."""
    agent = learner(name, gamma=0.9)
    online, _ = values_of(agent, name)
    dying = batch(agent, terminated=torch.ones(1, 64, dtype=torch.bool))
    before = [w.clone() for w in online.parameters()]
    with torch.no_grad():
        q = online(dying.obs, dying.field).gather(-1, dying.action.unsqueeze(-1)).squeeze(-1)
    loss = agent.learn(dying)["loss"]
    torch.testing.assert_close(loss, (q - dying.reward).square().mean())
    assert any(not torch.equal(a, b) for a, b in zip(before, online.parameters(), strict=True))


@pytest.mark.parametrize("name", ["mfq", "mfac"])
@pytest.mark.parametrize("legal", [False, True])
def test_the_value_of_what_follows_is_the_policys_average_and_no_maximum(name: str, legal: bool) -> None:
    """y = r + gamma sum_a pi(a) Q_-(a), over what is legal; the reference takes Q_- at the largest online Q."""
    agent = learner(name, gamma=0.9, temperature="0.7")
    online, target = values_of(agent, name)
    rows = batch(agent, legal=legal)
    mask = rows.next_legal if legal else torch.ones(1, 64, 3, dtype=torch.bool)
    assert mask is not None
    with torch.no_grad():
        later = target(rows.next_obs, rows.next_field)
        score = later / 0.7 if name == "mfq" else agent.actor(rows.next_obs, rows.next_field)
        p = torch.softmax(score.masked_fill(~mask, float("-inf")), -1)
        average = (p * later).sum(-1)
        largest = later.masked_fill(~mask, float("-inf")).max(-1).values
        double = later.gather(-1, online(rows.next_obs, rows.next_field).argmax(-1, keepdim=True)).squeeze(-1)
        q = online(rows.obs, rows.field).gather(-1, rows.action.unsqueeze(-1)).squeeze(-1)

    def loss(value: Tensor) -> Tensor:
        return (q - rows.reward - 0.9 * value).square().mean()

    found = agent.learn(rows)["loss"]
    torch.testing.assert_close(found, loss(average), rtol=1e-4, atol=1e-5)
    for wrong in (largest, double):
        assert (found - loss(wrong)).abs() > 0.01


@pytest.mark.parametrize("name", ["mfq", "mfac"])
def test_only_what_has_ended_for_good_is_cut_off(name: str) -> None:
    """Of one batch, half terminated: each row has its own target."""
    agent = learner(name, gamma=0.9)
    online, _ = values_of(agent, name)
    rows = batch(agent, terminated=(torch.arange(64) % 2 == 0).unsqueeze(0))
    with torch.no_grad():
        value = (
            agent.mean_field_value(rows.next_obs, rows.next_field, None)
            if name == "mfq"
            else agent.mean_field_value(rows)
        )
        q = online(rows.obs, rows.field).gather(-1, rows.action.unsqueeze(-1)).squeeze(-1)
        target = rows.reward + 0.9 * value * (torch.arange(64) % 2)
    assert value.abs().mean() > 0.1
    torch.testing.assert_close(agent.learn(rows)["loss"], (q - target).square().mean())


LEARNERS: dict[str, tuple[str, dict[str, Any]]] = {
    "table": ("mfq", {"values": "table", "learning_rate": 0.3}),
    "mfq": ("mfq", {"hidden": (16,), "learning_rate": 5e-3, "target_rate": 0.05}),
    "mfac": ("mfac", {"hidden": (16,), "critic_rate": 5e-3, "target_rate": 0.05}),
    "mfppo": ("mfppo", {"hidden": (16,), "learning_rate": 5e-3}),
}


def worth(training: Training, kind: str) -> float:
    """What the learner takes the only state to be worth."""
    agent: Any = training.players[0].agent
    episode = training.episode
    obs, felt = agent.by_mind(episode.timestep.obs), agent.by_mind(episode.felt[0])
    with torch.no_grad():
        if kind == "mfppo":
            return float(agent.value(obs, felt).mean())
        critic = agent.critic if kind == "mfac" else agent.values
        return float(critic(obs, felt).mean())


@pytest.mark.parametrize("kind", LEARNERS)
def test_an_episode_that_is_cut_off_goes_on_in_its_values(kind: str) -> None:
    """Pay 1 for ever at gamma = 0.8 is worth 5; cut every third step and taken as ended, it would be worth at most 2.44."""
    name, options = LEARNERS[kind]
    given = {**options, "gamma": 0.8, "field": "nothing"}
    training = train(Arms(16, pay=(1.0, 1.0), horizon=3), name, given, evaluate=False, steps=800)
    finish(training)
    assert worth(training, kind) == pytest.approx(5.0, rel=0.08)


@pytest.mark.parametrize("name", having("gradient_clip"))
@pytest.mark.parametrize("sharing", ["all", "none"])
@pytest.mark.parametrize("largest", [0.05, 0.0])
def test_gradients_are_clipped_where_the_config_says_so(name: str, sharing: str, largest: float) -> None:
    """Of each network and mind, at the moment of the step; the reference overwrites the clipped step by a plain one."""
    given = small(name, gradient_clip=largest, field="nothing")
    training = train(Arms(3, pay=(0.0, 100.0)), name, given, evaluate=False, sharing=sharing, steps=30)
    agent = training.players[0].agent
    networks = {part: dict(getattr(agent, part).named_parameters()) for part, _ in agent.named_children()}
    norms: list[Tensor] = []

    def look(optimiser: torch.optim.Optimizer, *_: Any) -> None:
        stepping = {id(p) for group in optimiser.param_groups for p in group["params"]}
        for part, weights in networks.items():
            # Networks of an ensemble are each clipped by themselves.
            stacked = agent.minds * (agent.config.members if part == "ensemble" else 1)
            grads = [w.grad for w in weights.values() if id(w) in stepping and w.grad is not None]
            if grads:
                norms.append(torch.stack([g.reshape(stacked, -1).square().sum(1) for g in grads]).sum(0).sqrt())

    for optimiser in agent.optimisers().values():
        optimiser.register_step_pre_hook(look)
    finish(training)
    assert norms
    found = torch.cat(norms)
    if largest:
        assert bool((found <= largest * 1.001).all())
        assert bool((found > largest * 0.98).any()), "the limit was met"
    else:
        assert found.max() > 0.06


@pytest.mark.parametrize("name", sorted({*having("carry"), *having("rollout")}))
def test_who_acts_feels_the_field(name: str) -> None:
    """The reference's actor does not see the mean action that its critic sees."""
    agent = learner(name)
    obs, field = torch.ones(1, 2, 1), torch.tensor([[[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]])
    with torch.no_grad():
        p = gibbs.probabilities(agent.energy(obs, field), agent.temperature)[0]
    assert (p[0] - p[1]).abs().max() > 1e-3
    independent = learner(name, field="nothing")
    assert independent.field_size == 0


def test_the_mean_action_is_of_the_living_others() -> None:
    """Not of oneself, not over N - 1 where some are dead (rows then sum to less than 1), and never NaN for the dead."""
    rules = Lattice(risk=0.12, turns=False, horizon=None)
    training = train(rules, "random", {"field": "actions over everyone"}, evaluate=False)
    episode = Episode(Simulation(rules, 3), training.players, Key.of(2))
    seen_dead = 0
    for _ in range(12):
        _, _, after, now = episode.play()
        alive = after.alive.float()
        one_hot = torch.nn.functional.one_hot(after.action, 2).float() * alive.unsqueeze(-1)
        others = one_hot.sum(1, keepdim=True) - one_hot
        count = (alive.sum(1, keepdim=True) - alive).unsqueeze(-1)
        expected = torch.where(count > 0, others / count.clamp(min=1), 0.0)
        living = after.alive & (count.squeeze(-1) > 0)
        torch.testing.assert_close(now[0][after.alive], expected[after.alive])
        torch.testing.assert_close(now[0][living].sum(-1), torch.ones(int(living.sum())))
        assert bool(torch.isfinite(now[0]).all())
        seen_dead += int((~after.alive).sum())
        episode.go_on(after, now)
    assert seen_dead
