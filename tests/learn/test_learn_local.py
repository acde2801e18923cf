"""Local training: batches, schedules, optimisers and the loop against closed forms."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from nmoe.learn import Adam, Classifier, LocalTraining, Sgd, accuracy, cosine_scale, predict, train_supervised
from nmoe.learn.gating import gate_loss
from nmoe.learn.local import batches
from nmoe.moe import ConvExtractor, LinearHead, Mix, importance_cv2, route


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(st.integers(1, 50), st.integers(1, 60), st.integers(0, 9))
def test_batches_are_a_permutation_in_full_batches(num_samples, batch_size, seed):
    found = list(batches(num_samples, batch_size, generator(seed)))
    assert sorted(torch.cat(found).tolist()) == list(range(num_samples))
    assert [len(batch) for batch in found[:-1]] == [batch_size] * (len(found) - 1)
    assert 1 <= len(found[-1]) <= batch_size
    again = list(batches(num_samples, batch_size, generator(seed)))
    assert all(torch.equal(one, other) for one, other in zip(found, again, strict=True))


def test_passes_are_shuffled_anew_and_differ_by_seed():
    draws = generator()
    first, second = next(batches(40, 40, draws)), next(batches(40, 40, draws))
    assert not torch.equal(first, second)
    assert not torch.equal(first, next(batches(40, 40, generator(1))))
    assert not torch.equal(first, torch.arange(40))


def least_squares() -> tuple[torch.Tensor, torch.Tensor]:
    inputs = torch.randn(30, 4, generator=generator(), dtype=torch.float64)
    return inputs, inputs @ torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64) + torch.randn(30, generator=generator(1)).double()


def a_line(start: float = 0.0) -> nn.Linear:
    line = nn.Linear(4, 1, bias=False, dtype=torch.float64)
    nn.init.constant_(line.weight, start)
    return line


@pytest.mark.parametrize("optimiser", [Sgd(lr=0.2), Sgd(lr=0.05, momentum=0.9), Adam(lr=0.05)])
def test_least_squares_reaches_the_normal_equations(optimiser):
    inputs, targets = least_squares()
    line = a_line()
    training = LocalTraining(optimiser=optimiser, batch_size=30, epochs=600)
    training.run(line, 30, lambda batch: (line(inputs[batch]).squeeze(1) - targets[batch]).square().mean(), generator=generator())
    wanted = torch.linalg.lstsq(inputs, targets.unsqueeze(1)).solution.squeeze(1)
    torch.testing.assert_close(line.weight.detach()[0], wanted, rtol=1e-4, atol=1e-4)


def test_weight_decay_reaches_ridge_regression():
    inputs, targets = least_squares()
    line = a_line()
    training = LocalTraining(optimiser=Sgd(lr=0.1, weight_decay=0.7), batch_size=30, epochs=600)
    training.run(line, 30, lambda batch: (line(inputs[batch]).squeeze(1) - targets[batch]).square().mean(), generator=generator())
    gram = 2 * inputs.T @ inputs / 30 + 0.7 * torch.eye(4, dtype=torch.float64)
    torch.testing.assert_close(line.weight.detach()[0], torch.linalg.solve(gram, 2 * inputs.T @ targets / 30))


def test_one_step_by_hand_with_scale_and_clipping():
    """Loss w . c has gradient c = (3, 4, 0, 0), norm 5; clipped to 1 and stepped by lr x scale."""
    direction = torch.tensor([[3.0, 4.0, 0.0, 0.0]], dtype=torch.float64)
    for norm, length in ((math.inf, 5.0), (1.0, 1.0), (10.0, 5.0)):
        line = a_line(1.0)
        training = LocalTraining(optimiser=Sgd(lr=0.1), batch_size=7, epochs=1, max_gradient_norm=norm)
        loss = training.run(line, 7, lambda _, line=line: (line.weight * direction).sum(), generator=generator(), scale=0.5)
        assert loss == pytest.approx(7.0)
        torch.testing.assert_close(line.weight.detach(), 1 - 0.05 * length * direction / 5, rtol=1e-5, atol=1e-6)


def test_mean_loss_is_over_all_steps_and_the_optimiser_is_new_each_time():
    line = a_line()
    seen: list[list[int]] = []

    def loss(batch: torch.Tensor) -> torch.Tensor:
        seen.append(sorted(batch.tolist()))
        return line.weight.sum() * 0 + len(seen)

    training = LocalTraining(optimiser=Sgd(lr=0.1, momentum=0.9), batch_size=4, epochs=3)
    assert training.run(line, 10, loss, generator=generator()) == pytest.approx(sum(range(1, 10)) / 9)
    assert [len(batch) for batch in seen] == [4, 4, 2] * 3
    for epoch in range(3):
        assert sorted(index for batch in seen[3 * epoch : 3 * epoch + 3] for index in batch) == list(range(10))


def test_momentum_does_not_survive_between_runs():
    steps = []
    line = a_line()
    training = LocalTraining(optimiser=Sgd(lr=0.1, momentum=0.9), batch_size=5, epochs=1)
    for _ in range(2):
        before = line.weight.detach().clone()
        training.run(line, 5, lambda _: line.weight.sum(), generator=generator())
        steps.append(line.weight.detach() - before)
    torch.testing.assert_close(steps[0], steps[1])


def test_frozen_parameters_stay():
    model = nn.Sequential(a_line(1.0), nn.Linear(1, 1, dtype=torch.float64))
    model[0].requires_grad_(False)
    inputs, targets = least_squares()
    before = model[1].weight.detach().clone()
    training = LocalTraining(optimiser=Sgd(lr=0.1, weight_decay=0.5), batch_size=30, epochs=2)
    training.run(model, 30, lambda batch: (model(inputs[batch]).squeeze(1) - targets[batch]).square().mean(), generator=generator())
    assert (model[0].weight == 1).all()
    assert not torch.equal(model[1].weight, before)


@pytest.mark.parametrize(("batch_size", "epochs"), [(0, 1), (1, 0), (-1, 5)])
def test_bad_training_is_refused(batch_size, epochs):
    with pytest.raises(ValueError, match=f"at least 1, got {batch_size} and {epochs}"):
        LocalTraining(optimiser=Sgd(lr=0.1), batch_size=batch_size, epochs=epochs)


def test_cosine_schedule():
    assert cosine_scale(0, 10) == 1.0
    assert cosine_scale(5, 10) == pytest.approx(0.5)
    assert cosine_scale(10, 10) == pytest.approx(0.0)
    scales = [cosine_scale(t, 10) for t in range(10)]
    assert scales == sorted(scales, reverse=True)
    assert scales[-1] > 0


def test_optimisers_carry_their_fields():
    weight = nn.Parameter(torch.zeros(1))
    sgd = Sgd(lr=0.2, momentum=0.8, weight_decay=0.1).make([weight], scale=0.5).param_groups[0]
    assert (sgd["lr"], sgd["momentum"], sgd["weight_decay"]) == (0.1, 0.8, 0.1)
    assert Adam(lr=0.2).make([weight], scale=0.25).param_groups[0]["lr"] == 0.05


def test_supervised_training_of_a_classifier_separates_two_bars():
    """Images with a bright left or right half: separable, so the error must vanish."""
    images = torch.rand(40, 1, 8, 8, generator=generator()) * 0.3
    labels = torch.arange(40) % 2
    images[labels == 0, :, :, :4] += 0.7
    images[labels == 1, :, :, 4:] += 0.7
    extractor = ConvExtractor(in_channels=1, feature_dim=8, generator=generator())
    model = Classifier(extractor=extractor, head=LinearHead(feature_dim=8, num_classes=2, generator=generator(1)))
    assert torch.equal(model(images), model.head(extractor(images)))
    training = LocalTraining(optimiser=Adam(lr=0.01), batch_size=10, epochs=30)
    loss = train_supervised(model, images, labels, training, generator=generator())
    final = functional.cross_entropy(predict(model, images), labels)
    assert float(final) < loss
    assert accuracy(predict(model, images), labels) == 1.0
    assert not model.training


def test_predict_does_not_depend_on_its_batches():
    head = LinearHead(feature_dim=3, num_classes=4, generator=generator())
    inputs = torch.randn(10, 3, generator=generator())
    torch.testing.assert_close(predict(head, inputs, batch_size=3), predict(head, inputs))
    assert not predict(head, inputs).requires_grad


def test_accuracy_by_hand():
    scores = torch.tensor([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4]])
    assert accuracy(scores, torch.tensor([1, 1, 1, 0])) == 0.75


@pytest.mark.parametrize("mix", Mix)
@pytest.mark.parametrize("balance", [0.0, 0.5])
def test_gate_loss_is_the_mixtures_likelihood_by_a_loop(mix, balance):
    scores = torch.randn(6, 4, generator=generator(), requires_grad=True)
    logits = torch.randn(6, 4, 3, generator=generator(1), requires_grad=True)
    labels = torch.randint(0, 3, (6,), generator=generator(2))
    routing = route(scores, k=2, mask=torch.ones(4, dtype=torch.bool))
    loss = gate_loss(routing, logits.detach(), labels, mix=mix, balance=balance)
    total = torch.zeros(())
    for row in range(6):
        answers = [logits[row, j].detach() for j in routing.experts[row]]
        if mix is Mix.PROBABILITIES:
            answer = sum(w * a.softmax(0) for w, a in zip(routing.weights[row], answers, strict=True))
        else:
            answer = sum(w * a for w, a in zip(routing.weights[row], answers, strict=True)).softmax(0)
        total = total - answer[labels[row]].log() / 6
    if balance:
        total = total + balance * importance_cv2(routing.dense(4))
    torch.testing.assert_close(loss, total)
    loss.backward()
    assert scores.grad.isfinite().all()
    assert scores.grad.any()


def test_gate_loss_of_a_certain_mistake_is_finite():
    """Two experts sure of the wrong class: the probability of the truth underflows to 0."""
    scores = torch.zeros(1, 2, requires_grad=True)
    logits = torch.tensor([[[200.0, 0.0], [200.0, 0.0]]])
    routing = route(scores, k=2, mask=torch.ones(2, dtype=torch.bool))
    loss = gate_loss(routing, logits, torch.tensor([1]), mix=Mix.PROBABILITIES, balance=0.0)
    loss.backward()
    assert loss.isfinite()
    assert scores.grad.isfinite().all()
