"""Inference in a crowd: beliefs by Bayes' rule step by step, energies by enumeration, known equilibria, and cost."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mfmarl.agents.mean_field_inference import MeanFieldInference
from mfmarl.envs.congestion import Congestion
from mfmarl.envs.el_farol import ElFarol
from mfmarl.envs.foraging import Foraging
from mfmarl.envs.ising import Ising
from mfmarl.envs.stag_hunt import StagHunt
from mfmarl.errors import ConfigError
from mfmarl.inference import crowd
from mfmarl.learning import checkpoint
from mfmarl.learning.training import Training
from mfmarl.population.environment import PopulationEnv
from tests.learning.mini import train


def begin(rules: PopulationEnv, steps: int = 40, name: str = "mean_field_inference", **options: Any) -> Training:
    return train(rules, name, options, steps=steps, report_every=steps, evaluate=False)


def of(training: Training) -> MeanFieldInference:
    agent = training.players[0].agent
    assert isinstance(agent, MeanFieldInference)
    return agent


def parts(training: Training) -> tuple[list[Tensor], Tensor, Tensor]:
    """What the first agents of all copies believe now."""
    agent = of(training)
    own, q, before = agent._unpack(agent.by_mind(training.episode.seen[0].obs))
    return [x[0] for x in own], q[0], before[0]


# ------------------------------------------------------------------------------------------------ beliefs


def test_beliefs_about_the_crowd_are_the_filter_of_a_hidden_markov_model():
    """Without a model of the world and before anything is known of payoffs: prediction by B and the evidence of shares."""
    training = begin(
        Congestion(num_agents=9, horizon=None),
        learn_crowd=False,
        points=10,
        stay=0.7,
        field="actions over sampled(4)",
        model="learned",
    )
    agent, theta = of(training), crowd.simplex(4, 10)
    B = crowd.persistence(theta, 0.7)
    expected = torch.full((len(theta),), 1 / len(theta), dtype=torch.float64)
    episode = training.episode
    for _ in range(6):
        felt = episode.felt[0][0, 3].double()
        weighed = expected * (theta ** (4 * felt)).prod(-1)
        q = weighed / weighed.sum()
        _, found, _ = parts(training)
        torch.testing.assert_close(found[3].double(), q, rtol=0, atol=1e-5)
        expected = B @ q
        _, _, after, now = episode.play()
        episode.go_on(after, now)
    assert agent.kappa == 4


def test_what_was_paid_is_evidence_of_the_crowd_that_paid_it():
    training = begin(ElFarol(num_agents=30), points=5, field="actions over sampled(2)", novelty=0.0)
    list(training.rows())
    agent, episode = of(training), training.episode
    _, q, _ = parts(training)
    _, action, after, now = episode.play()
    transitions = agent.transitions()[0, :, :, 0]
    p = agent.rewards.counts() / agent.rewards.counts().sum(3, keepdim=True)
    low, high = agent.span[0].tolist()
    _, found, _ = agent._unpack(agent.by_mind(episode.seen_after[0].obs))
    context = agent._context(episode.timestep.obs)
    for i in (0, 11, 29):
        place = (float(after.reward[0, i]) - low) / (high - low) * 10
        below = min(max(math.floor(place), 0), 9)
        column = p[0, context[0, i], action[0, i]].log()
        seen = column[below] + (place - below) * (column[below + 1] - column[below])
        log_q = (transitions @ q[i]).log() + seen + 2 * agent.theta.log() @ now[0][0, i]
        torch.testing.assert_close(found[0, i], torch.softmax(log_q, -1), rtol=1e-3, atol=1e-5)


def test_in_a_given_model_the_crowd_is_inferred_from_the_field_and_from_ones_own_catch():
    training = begin(
        StagHunt(num_agents=12, horizon=None), learn_crowd=False, field="actions over sampled(3)", points=7, stay=0.9
    )
    game = training.episode.env.env  # type: ignore[attr-defined]
    theta, episode = crowd.simplex(2, 7), training.episode
    B = crowd.persistence(theta, 0.9)
    enough = torch.as_tensor(game.success(theta[:, 1].numpy()))
    expected = torch.full((7,), 1 / 7, dtype=torch.float64)
    for _ in range(5):
        felt, catch = episode.felt[0][0, 2].double(), int(episode.timestep.obs[0, 2])
        likelihood = {0: torch.ones(7, dtype=torch.float64), 1: 1 - enough, 2: enough}[catch]
        weighed = expected * (theta ** (3 * felt)).prod(-1) * likelihood
        q = weighed / weighed.sum()
        own, found, _ = parts(training)
        torch.testing.assert_close(found[2].double(), q, rtol=0, atol=1e-5)
        assert float(own[0][2, 1]) == pytest.approx(float(catch > 0), abs=1e-6)
        expected = B @ q
        _, _, after, now = episode.play()
        episode.go_on(after, now)


def test_a_new_episode_begins_with_nothing_remembered():
    training = begin(StagHunt(num_agents=6, horizon=3), steps=3, field="actions over sampled(3)")
    list(training.rows())
    again = begin(StagHunt(num_agents=6, horizon=3), steps=3, field="actions over sampled(3)", learn_crowd=False)
    assert int(training.episode.timestep.step[0]) == 0
    _, _, before = parts(training)
    assert not bool(before.any())
    # The same moment, seen by an agent to whom nothing has happened: the first belief, and what is felt.
    _, q, _ = parts(training)
    fresh = torch.softmax(of(again)._of_crowd(training.episode.felt[0]), -1)[0]
    catch = training.episode.timestep.obs[0]
    game = training.episode.env.env  # type: ignore[attr-defined]
    enough = torch.as_tensor(game.success(of(again).theta[:, 1].double().numpy())).float()
    likelihood = torch.stack([torch.ones_like(enough), 1 - enough, enough])[catch]
    weighed = fresh * likelihood
    torch.testing.assert_close(q[:6], weighed / weighed.sum(-1, keepdim=True), rtol=0, atol=1e-5)


@pytest.mark.parametrize("model", ["given", "learned"])
def test_a_copy_that_begins_anew_forgets_while_another_goes_on(model):
    """Of two copies that have seen the same, the one whose step is 0 believes as if nothing had been before."""
    training = begin(StagHunt(num_agents=6, horizon=None), field="actions over sampled(3)", model=model, stay=1.0)
    agent, episode = of(training), training.episode
    for _ in range(4):
        _, _, after, now = episode.play()
        episode.go_on(after, now)
    moment, felt, ids = episode.timestep, episode.felt[0], episode.env.ids
    begun = moment._replace(step=torch.tensor([0, 4]))
    view, _ = agent.perceive(episode.carried[0], begun, felt, ids, episode.key)
    nothing, _ = agent.perceive({}, moment, felt, ids, episode.key)
    going_on, _ = agent.perceive(episode.carried[0], moment, felt, ids, episode.key)
    torch.testing.assert_close(view[0], nothing[0], rtol=1e-5, atol=1e-6)
    assert torch.equal(view[1], going_on[1])
    assert not torch.allclose(view[0], going_on[0])


# ------------------------------------------------------------------------------------------------ acting


def test_the_energy_in_a_given_model_is_the_expected_payoff_and_information_by_enumeration():
    training = begin(StagHunt(num_agents=12), learn_crowd=False, points=7, stay=0.8)
    agent = of(training)
    game = training.episode.env.env  # type: ignore[attr-defined]
    theta = agent.theta.double()
    enough = torch.as_tensor(game.success(theta[:, 1].numpy()))
    _, q, _ = parts(training)
    later = (crowd.persistence(theta, 0.8) @ q[0].double()).clamp(min=1e-300)
    p = float(later @ enough)

    def entropy(x: Tensor | float) -> Tensor:
        x = torch.as_tensor(x, dtype=torch.float64)
        return -torch.special.xlogy(x, x) - torch.special.xlogy(1 - x, 1 - x)

    told = float(entropy(p) - (later * entropy(enough)).sum())
    energy = agent.energy(agent.by_mind(training.episode.seen[0].obs), agent.by_mind(training.episode.felt[0]))[0, 0]
    gap = float(energy[0] - energy[1])
    assert gap == pytest.approx(game.stag * p + told - game.hare, abs=1e-4)


def test_an_agent_that_is_not_curious_has_expected_reward_for_its_energy():
    training = begin(ElFarol(num_agents=30), points=9, curiosity=0.0, novelty=0.0)
    list(training.rows())
    agent = of(training)
    obs = agent.by_mind(training.episode.seen[0].obs)
    own, q, _ = agent._unpack(obs)
    alpha = agent.rewards.counts()
    mean = (alpha / alpha.sum(3, keepdim=True) * agent.rewards.levels().view(1, 1, 1, -1, 1)).sum(3)[0]
    later = q[0] @ agent.transitions()[0, :, :, 0].T
    expected = torch.einsum("bak,bk->ba", mean[own[0][0, :, 0].long()], later)
    torch.testing.assert_close(-agent.energy(obs, obs)[0], expected, rtol=1e-4, atol=1e-5)


# ----------------------------------------------------------------------------------------------- learning


def test_how_the_crowd_moves_is_counted_from_belief_to_belief():
    training = begin(ElFarol(num_agents=30), steps=1, points=4, forgetting=0.0, field="actions over sampled(5)")
    agent, episode = of(training), training.episode
    _, before, _ = parts(training)
    training.step()
    _, after, remembered = agent._unpack(agent.by_mind(episode.seen_after[0].obs))
    assert torch.equal(remembered[0], before)
    pairs = torch.einsum("bi,bj->ij", after[0], before) / len(before)
    torch.testing.assert_close(agent.moves[0, :, :, 0], pairs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["mean_field_inference", "independent_inference"])
def test_learned_payoffs_lead_drivers_to_the_logit_equilibrium(name):
    """Shares of the routes within .03 of the exact equilibrium of N = 100 at T = .1, the mean of the last steps."""
    game = Congestion()
    training = begin(game, 150, name, temperature="0.1", novelty=0.0, curiosity=0.0)
    list(training.rows())
    agent, episode = of(training), training.episode
    shares = []
    for _ in range(20):
        _, action, after, now = episode.play()
        episode.go_on(after, now)
        shares.append(torch.bincount(action[0], minlength=4).double() / 100)
    known = [game.reference(0.1)[f"share/{k}"].value for k in range(4)]
    found = torch.stack(shares).mean(0)
    assert agent.memory == "latest"
    assert float((found - torch.tensor(known)).abs().max()) < 0.03


@pytest.mark.parametrize(("trust", "share"), [(0.9, 1.0), (0.1, 0.0)])
def test_hunters_who_believe_in_the_crowd_settle_where_its_first_choices_lie(trust, share):
    """Either equilibrium of the stag hunt is kept by hunters who know the game and see the crowd."""
    game = StagHunt(num_agents=50, trust=trust, horizon=None)
    training = begin(game, 15, curiosity=0.0)
    list(training.rows())
    assert float(training.episode.timestep.action.float().mean()) == pytest.approx(share, abs=0.05)


def test_the_crowd_tells_of_the_patch_to_those_who_learned_how_crowds_behave():
    """E ln B(m' | m, w) by explicit sums; and foragers who heed it are more often at the patch than those who do not."""
    rules = Foraging(num_agents=60, accuracy=0.6, rich=0.5, horizon=None)
    found = []
    for social in (True, False):
        training = begin(rules, 120, social=social, field="actions over sampled(8)")
        rows = list(training.rows())
        found.append(rows[-1]["train/at_patch"])
        if social:
            agent = of(training)
            _, q, before = agent._unpack(agent.by_mind(training.episode.seen[0].obs))
            told = agent._of_world(q, before)[0, 5]
            B = agent.transitions()[0]
            brute = torch.stack([(q[0, 5].unsqueeze(1) * before[0, 5] * B[:, :, w].log()).sum() for w in range(4)])
            torch.testing.assert_close(told, brute, rtol=1e-4, atol=1e-4)
    assert found[0] > found[1] + 0.02


# -------------------------------------------------------------------------------------------------- limits


def test_what_is_carried_and_learned_does_not_depend_on_how_many_others_there_are():
    sizes = []
    for n in (10, 1000):
        agent = of(
            begin(Ising(num_agents=n, graph="complete", order="synchronous"), steps=1, field="actions over sampled(5)")
        )
        sizes.append(sum(x.numel() for x in agent.buffers()))
    assert sizes[0] == sizes[1]


@pytest.mark.verify
def test_a_hundred_thousand_agents_fit_in_a_gigabyte():
    program = (
        "import resource, torch\n"
        "torch.set_num_threads(1)\n"
        "from tests.agents.test_mean_field_inference import begin\n"
        "from mfmarl.envs.foraging import Foraging\n"
        "from mfmarl.envs.el_farol import ElFarol\n"
        "for rules in (Foraging(num_agents=100_000), ElFarol(num_agents=100_000)):\n"
        "    list(begin(rules, 3, field='actions over sampled(8)').rows())\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 1_000_000  # kilobytes, Python and torch (about 300,000) included


@pytest.mark.parametrize(
    ("rules", "options", "told"),
    [
        (Congestion(), {"model": "given"}, "crowd_model"),
        (StagHunt(), {"field": "moments(2) over everyone"}, "shares of actions"),
        (ElFarol(), {"model": "learned", "depth": 2}, "one step ahead"),
    ],
)
def test_what_cannot_be_believed_is_refused_in_a_sentence(rules, options, told):
    with pytest.raises(ConfigError, match=told):
        begin(rules, **options)


def test_a_run_that_is_given_its_model_is_saved(tmp_path: Path) -> None:
    """Nothing is ever paid into the levels of reward that it does not learn: they must be numbers all the same."""
    training = train(Foraging(num_agents=6), "mean_field_inference", {}, steps=4, report_every=4)
    list(training.rows())
    tensors, plain = training.state_dict()
    may_be_nan = ("train.env.timestep.action", "evaluation.env.timestep.action")
    checkpoint.save(tmp_path, training.tick, tensors, plain, config_digest="0" * 64, nonfinite=may_be_nan)
    again = train(Foraging(num_agents=6), "mean_field_inference", {}, steps=8, report_every=4)
    found = checkpoint.load(tmp_path)
    again.load_state_dict(found.tensors, found.state)
    assert all(math.isfinite(row["train/reward"]) for row in again.rows())
