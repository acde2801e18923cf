"""Channel-aware gates: the SNR branch against its formula, laws of permutation, of links that come and go, and of missing measurements."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from nmoe.moe import ChannelAwareGate, Gate, Mix, Routing, SnrGate, TopKGate, combine, pick
from nmoe.moe.channel_gate import link_levels

DIM, EXPERTS = 5, 4
EVERYONE = torch.ones(EXPERTS, dtype=torch.bool)
PERFECT, UNKNOWN = math.inf, math.nan


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def trained(gate: Gate) -> Gate:
    """Any weights but those it starts with."""
    with torch.no_grad():
        for index, parameter in enumerate(gate.parameters()):
            parameter.normal_(generator=generator(index))
    return gate


def aware(*, joint: bool, trunk_dim: int = 0) -> ChannelAwareGate:
    return trained(ChannelAwareGate(feature_dim=DIM, num_experts=EXPERTS, trunk_dim=trunk_dim, joint=joint, generator=generator()))


def some_features(batch: int = 6) -> Tensor:
    return torch.randn(batch, DIM, generator=generator(9))


def some_snr(batch: int = 6, links: int = EXPERTS) -> Tensor:
    return 60 * torch.rand(batch, links, generator=generator(8)) - 20


each_form = pytest.mark.parametrize("joint", [False, True], ids=["additive", "joint"])
each_trunk = pytest.mark.parametrize("trunk_dim", [0, 3])
GATES = {
    "additive": lambda: aware(joint=False),
    "joint": lambda: aware(joint=True),
    "snr": lambda: trained(SnrGate(feature_dim=DIM, num_experts=EXPERTS, generator=generator())),
}
each_gate = pytest.mark.parametrize("make", GATES.values(), ids=GATES.keys())
anything_db = st.one_of(st.floats(-200, 200, width=32), st.sampled_from([PERFECT, -PERFECT, UNKNOWN]))


@st.composite
def links(draw, *, num_links: int = EXPERTS):
    rows = st.lists(anything_db, min_size=num_links, max_size=num_links)
    return torch.tensor(draw(st.lists(rows, min_size=1, max_size=4)), dtype=torch.float32)


@each_form
@each_trunk
def test_told_of_no_links_it_is_the_naive_gate(joint, trunk_dim):
    gate = aware(joint=joint, trunk_dim=trunk_dim)
    naive = TopKGate(feature_dim=DIM, num_experts=EXPERTS, trunk_dim=trunk_dim, noisy=False, generator=generator())
    naive.load_state_dict({name: tensor for name, tensor in gate.state_dict().items() if not name.startswith("branch.")})
    features = some_features()
    assert torch.equal(gate.scores(features), naive.scores(features))
    assert torch.equal(naive.scores(features, snr_db=some_snr()), naive.scores(features))
    torch.testing.assert_close(gate.scores(features, snr_db=torch.full((6, EXPERTS), PERFECT)), naive.scores(features))
    one, other = (chosen(features, k=2, mask=EVERYONE) for chosen in (gate, naive))
    assert torch.equal(one.experts, other.experts)
    assert torch.equal(one.weights, other.weights)


@each_form
@each_trunk
def test_a_fresh_gate_treats_every_expert_alike_whatever_the_links(joint, trunk_dim):
    gate = ChannelAwareGate(feature_dim=DIM, num_experts=EXPERTS, trunk_dim=trunk_dim, joint=joint, generator=generator())
    routing = gate(some_features(), k=EXPERTS, mask=EVERYONE, snr_db=some_snr())
    torch.testing.assert_close(routing.dense(EXPERTS), torch.full((6, EXPERTS), 0.25))


@each_form
@given(snr_db=links())
def test_the_branch_is_its_formula(joint, snr_db):
    """Spelled out link by link, with Python's numbers."""
    gate = aware(joint=joint)
    branch = gate.branch
    features = some_features(len(snr_db))
    found = gate.scores(features, snr_db=snr_db) - gate.scores(features)
    for row, ratios in enumerate(snr_db.tolist()):
        clamped = [min(max(ratio, -20.0), 40.0) / 10 for ratio in ratios]  # NaN stays NaN
        known = [level for ratio, level in zip(ratios, clamped, strict=True) if not math.isnan(ratio) and ratio != math.inf]
        if not known:
            assert not found[row].any()
            continue
        mean = sum(known) / len(known)
        levels = [mean if math.isnan(ratio) else level for ratio, level in zip(ratios, clamped, strict=True)]
        for link, level in enumerate(levels):
            seen = torch.tensor([level, mean] if joint else [level])
            hidden = branch.levels.weight @ seen + branch.levels.bias
            if joint:
                hidden = hidden + branch.features.weight @ features[row]
            wanted = (branch.output.weight[0] * hidden.clamp_min(0)).sum()
            torch.testing.assert_close(found[row, link], wanted, rtol=1e-4, atol=1e-3)


def test_levels_by_hand():
    levels = link_levels(torch.tensor([[10.0, UNKNOWN, PERFECT, -PERFECT, 300.0], [PERFECT, UNKNOWN, UNKNOWN, PERFECT, PERFECT]]))
    torch.testing.assert_close(levels.mean, torch.tensor([[1.0], [0.0]]))  # of 1, -2 and 4: a perfect link is no measurement
    assert levels.levels[0].tolist() == [1.0, 1.0, 4.0, -2.0, 4.0]
    assert levels.measured.tolist() == [[True], [False]]


@each_gate
@given(snr_db=links(), order=st.permutations(range(EXPERTS)))
def test_permuting_links_permutes_what_they_add(make, snr_db, order):
    gate, features = make(), some_features(len(snr_db))
    torch.testing.assert_close(gate.link_scores(features, snr_db[:, order]), gate.link_scores(features, snr_db)[:, order])


@each_form
@each_trunk
@given(order=st.permutations(range(EXPERTS)))
def test_permuting_experts_with_their_links_permutes_the_gate(joint, trunk_dim, order):
    gate, other = aware(joint=joint, trunk_dim=trunk_dim), aware(joint=joint, trunk_dim=trunk_dim)
    with torch.no_grad():
        other.output.weight.copy_(gate.output.weight[order])
        other.output.bias.copy_(gate.output.bias[order])
    features, snr_db = some_features(), some_snr()
    permuted = other(features, k=2, mask=EVERYONE, snr_db=snr_db[:, order]).dense(EXPERTS)
    torch.testing.assert_close(permuted, gate(features, k=2, mask=EVERYONE, snr_db=snr_db).dense(EXPERTS)[:, order])


@each_form
@given(level_db=st.floats(-30, 50), k=st.integers(1, EXPERTS))
def test_links_of_equal_quality_change_no_routing(joint, level_db, k):
    gate, features = aware(joint=joint), some_features()
    one = gate(features, k=k, mask=EVERYONE, snr_db=torch.full((6, EXPERTS), level_db))
    naive = gate(features, k=k, mask=EVERYONE)
    torch.testing.assert_close(one.dense(EXPERTS), naive.dense(EXPERTS), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("make", [GATES["additive"], GATES["snr"]], ids=["additive", "snr"])
@given(snr_db=links(num_links=EXPERTS + 2), kept=st.sets(st.integers(0, EXPERTS + 1), min_size=1))
def test_links_that_come_or_go_leave_the_others_unchanged(make, snr_db, kept):
    """Where every link is measured; one that is not takes the mean of the others."""
    gate, features, kept = make(), some_features(len(snr_db)), sorted(kept)
    snr_db = snr_db.nan_to_num(nan=5.0, posinf=35.0)
    torch.testing.assert_close(gate.link_scores(features, snr_db)[:, kept], gate.link_scores(features, snr_db[:, kept]))


@each_gate
def test_a_link_without_measurement_leaves_the_others_unchanged(make):
    gate, features, snr_db = make(), some_features(), some_snr()
    more = torch.cat((snr_db, torch.full((6, 1), UNKNOWN)), dim=1)
    torch.testing.assert_close(gate.link_scores(features, more)[:, :EXPERTS], gate.link_scores(features, snr_db))


@each_form
def test_experts_out_of_reach_are_as_if_they_were_not(joint):
    """A gate over three of four experts, with their columns and links, routes as the whole one does with the fourth masked."""
    gate = aware(joint=joint)
    smaller = ChannelAwareGate(feature_dim=DIM, num_experts=3, joint=joint, generator=generator())
    state = dict(gate.state_dict())
    smaller.load_state_dict(state | {"output.weight": state["output.weight"][:3], "output.bias": state["output.bias"][:3]})
    features, snr_db = some_features(), some_snr()
    snr_db[:, 3] = UNKNOWN
    whole = gate(features, k=2, mask=torch.tensor([True, True, True, False]), snr_db=snr_db)
    alone = smaller(features, k=2, mask=torch.ones(3, dtype=torch.bool), snr_db=snr_db[:, :3])
    assert torch.equal(whole.experts, alone.experts)
    torch.testing.assert_close(whole.weights, alone.weights)


@each_gate
@given(row=st.lists(st.floats(-40, 60, width=32), min_size=1, max_size=5))
def test_links_without_measurement_count_as_the_mean_in_db(make, row):
    gate, features = make(), some_features(1)
    mean = sum(min(max(ratio, -20.0), 40.0) for ratio in row) / len(row)
    unknown, filled = torch.tensor([[*row, UNKNOWN]]), torch.tensor([[*row, mean]])
    torch.testing.assert_close(gate.link_scores(features, unknown), gate.link_scores(features, filled), rtol=1e-3, atol=1e-3)


@each_gate
@pytest.mark.parametrize("row", [[UNKNOWN] * 4, [PERFECT, UNKNOWN, UNKNOWN, UNKNOWN], [PERFECT] * 4])
def test_where_nothing_is_measured_links_add_nothing(make, row):
    """A node that knows nothing but its own expert does not take strangers for perfect."""
    gate, features = make(), some_features(2)
    assert torch.equal(gate.scores(features, snr_db=torch.tensor([row, row])), gate.scores(features))


@each_gate
@pytest.mark.parametrize(("absurd", "bound"), [(1e30, 40.0), (41.0, 40.0), (-1e30, -20.0), (-PERFECT, -20.0)])
def test_beyond_the_range_a_link_is_as_good_or_as_bad_as_it_gets(make, absurd, bound):
    gate, features, one, other = make(), some_features(), some_snr(), some_snr()
    one[:, 1], other[:, 1] = absurd, bound
    assert torch.equal(gate.scores(features, snr_db=one), gate.scores(features, snr_db=other))


@each_gate
def test_a_perfect_link_beside_measured_ones_is_as_good_as_it_gets(make):
    """In the additive form it is one at 40 dB; in the joint one it has no part in the mean."""
    gate, features, snr_db = make(), some_features(), some_snr()
    snr_db[:, 0] = PERFECT
    levels = link_levels(snr_db)
    assert (levels.levels[:, 0] == 4).all()
    torch.testing.assert_close(levels.mean[:, 0], snr_db[:, 1:].mean(dim=1) / 10)
    assert gate.scores(features, snr_db=snr_db).isfinite().all()


def test_the_joint_form_holds_the_additive_one():
    additive, joint = aware(joint=False), aware(joint=True)
    state = dict(additive.state_dict())
    wide = torch.cat((state["branch.levels.weight"], torch.zeros_like(state["branch.levels.weight"])), dim=1)
    none = torch.zeros_like(joint.state_dict()["branch.features.weight"])
    joint.load_state_dict(state | {"branch.levels.weight": wide, "branch.features.weight": none})
    features, snr_db = some_features(), some_snr()
    torch.testing.assert_close(joint.scores(features, snr_db=snr_db), additive.scores(features, snr_db=snr_db))


def test_only_the_joint_form_weighs_links_by_the_features():
    snr_db = some_snr(1).expand(6, -1)
    parts = {joint: aware(joint=joint).link_scores(some_features(), snr_db).detach() for joint in (False, True)}
    torch.testing.assert_close(parts[False], parts[False][:1].expand(6, -1))
    assert float(parts[True].std(dim=0).min()) > 1e-3


def test_the_snr_gate_ignores_features_and_without_links_finds_all_equal():
    gate = GATES["snr"]()
    snr_db = some_snr()
    assert torch.equal(gate.scores(some_features(), snr_db=snr_db), gate.scores(-some_features(), snr_db=snr_db))
    assert not gate.scores(some_features()).any()
    assert gate.hidden(some_features()).shape == (6, 0)
    assert gate.columns.shape == (EXPERTS, 0)


@each_gate
def test_every_parameter_gets_a_gradient(make):
    gate = make()
    features = some_features().requires_grad_()
    weights = gate(features, k=2, mask=EVERYONE, snr_db=some_snr()).weights
    weights[:, 0].sum().backward()
    assert [name for name, parameter in gate.named_parameters() if parameter.grad is None or not parameter.grad.any()] == []
    assert isinstance(gate, SnrGate) or bool(features.grad.any())


@each_gate
def test_gradients_stay_finite_whatever_the_links(make):
    gate = make()
    snr_db = torch.tensor([[UNKNOWN, PERFECT, -PERFECT, 3.0], [UNKNOWN, UNKNOWN, PERFECT, PERFECT]])
    gate.scores(some_features(2), snr_db=snr_db).square().sum().backward()
    assert all(bool(parameter.grad.isfinite().all()) for parameter in gate.parameters())


@each_form
def test_hidden_units_of_a_fresh_branch_bend_inside_the_range(joint):
    gate = ChannelAwareGate(feature_dim=DIM, num_experts=EXPERTS, hidden_dim=500, joint=joint, generator=generator())
    grid = torch.linspace(-2, 4, 50)
    inputs = torch.cartesian_prod(grid, grid) if joint else grid.unsqueeze(1)
    active = (gate.branch.levels(inputs) > 0).float().mean(dim=0)
    assert float(((active > 0) & (active < 1)).float().mean()) > 0.99
    assert 0.4 < float(active.mean()) < 0.6


@each_gate
@pytest.mark.parametrize("shape", [(6, 3), (6, 5), (6, 0)])
def test_as_many_snrs_as_experts_are_wanted(make, shape):
    for gate in (make(), TopKGate(feature_dim=DIM, num_experts=EXPERTS, trunk_dim=0, noisy=False, generator=generator())):
        with pytest.raises(ValueError, match=rf"wanted, \[6, 4\], got \[6, {shape[1]}\]"):
            gate.scores(some_features(), snr_db=torch.zeros(shape))


@pytest.mark.parametrize("arguments", [{"hidden_dim": 0}, {"num_experts": 0}, {"feature_dim": 0}])
def test_sizes_below_one_are_refused(arguments):
    sizes = {"feature_dim": DIM, "num_experts": EXPERTS} | arguments
    with pytest.raises(ValueError, match=f"{next(iter(arguments))}.* must be at least 1, got"):
        ChannelAwareGate(**sizes, joint=False, generator=generator())
    with pytest.raises(ValueError, match="at least 1, got"):
        SnrGate(**sizes, generator=generator())


def toy_mixture(batch: int, *, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Three experts that know the sign of a sample, heard through noise of their link's SNR: features, links, logits, labels."""
    draw = generator(seed)
    features = torch.randn(batch, DIM, generator=draw)
    labels = (features[:, 0] > 0).long()
    snr_db = 30 * torch.rand(batch, 3, generator=draw) - 10
    noise = torch.randn(batch, 3, 2, generator=draw) * 10 ** (-snr_db / 20).unsqueeze(2)
    sure = (2 * functional.one_hot(labels, 2) - 1).float().unsqueeze(1)
    return features, snr_db, 3 * (sure + noise), labels


def loss_of(routing: Routing, logits: Tensor, labels: Tensor) -> Tensor:
    mixed = combine(pick(logits, routing), routing.weights, mix=Mix.PROBABILITIES)
    return functional.nll_loss(mixed.clamp_min(1e-30).log(), labels)


@pytest.mark.parametrize("kind", ["additive", "joint", "snr"])
def test_trained_on_a_toy_it_asks_an_expert_more_when_its_link_is_better(kind):
    if kind == "snr":
        gate = SnrGate(feature_dim=DIM, num_experts=3, generator=generator())
    else:
        gate = ChannelAwareGate(feature_dim=DIM, num_experts=3, joint=kind == "joint", generator=generator())
    everyone = torch.ones(3, dtype=torch.bool)
    optimiser = torch.optim.Adam(gate.parameters(), lr=0.02)
    for step in range(150):
        features, snr_db, logits, labels = toy_mixture(128, seed=step)
        optimiser.zero_grad()
        loss_of(gate(features, k=2, mask=everyone, snr_db=snr_db), logits, labels).backward()
        optimiser.step()
    features, snr_db, logits, labels = toy_mixture(2000, seed=999)
    with torch.no_grad():
        told, untold = gate(features, k=2, mask=everyone, snr_db=snr_db), gate(features, k=2, mask=everyone)
        assert float(loss_of(told, logits, labels)) < 0.5 * float(loss_of(untold, logits, labels))
        for expert in range(3):
            shares, weights = [], []
            for lift_db in (-10.0, 0.0, 10.0):
                lifted = snr_db.clone()
                lifted[:, expert] += lift_db
                routing = gate(features, k=1, mask=everyone, snr_db=lifted)
                shares.append(float((routing.experts == expert).float().mean()))
                weights.append(float(gate(features, k=3, mask=everyone, snr_db=lifted).dense(3)[:, expert].mean()))
            assert shares == sorted(shares)
            assert weights == sorted(weights)
            assert shares[2] > shares[0] + 0.3
