"""Spectral contrastive loss: the must-have tests 1 to 3 of FedSC, and the clipping that privacy rests on."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from nmoe.learn import ProjectionHead, annealed_alpha, clip, correlation, spectral_contrastive_loss

MU = 2.0


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def two_views(sizes: list[int], dim: int = 6) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Per client, two fixed views of its images; every client around a centre of its own, so that data are not iid."""
    views = []
    for client, size in enumerate(sizes):
        centre = 2 * torch.randn(1, dim, generator=generator(100 + client), dtype=torch.float64)
        images = centre + torch.randn(size, dim, generator=generator(client), dtype=torch.float64)
        noise = 0.3 * torch.randn(2, size, dim, generator=generator(50 + client), dtype=torch.float64)
        views.append((images + noise[0], images + noise[1]))
    return views


def an_encoder() -> ProjectionHead:
    return ProjectionHead(feature_dim=6, embedding_dim=4, generator=generator(7)).double()


def embed(encoder: ProjectionHead, views: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    first, second = views
    return clip(encoder(first), mu=MU), clip(encoder(second), mu=MU)


def gradient(encoder: ProjectionHead, loss: torch.Tensor) -> torch.Tensor:
    return torch.cat([part.reshape(-1) for part in torch.autograd.grad(loss, list(encoder.parameters()))])


def plain_loss(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Return -2 tr(R+) + ||R||_F^2 from the definition: all pairs, no matrix."""
    both = torch.cat((first, second))
    return -2 * torch.stack([a @ b for a, b in zip(first, second, strict=True)]).mean() + (both @ both.T).square().mean()


@pytest.mark.parametrize("sizes", [[5, 9, 20], [1, 2, 30, 7], [8, 8]])
def test_weighted_client_gradients_are_the_central_gradient(sizes):
    """FedSC's main claim (spec 1.8, test 1): with alpha = q_j and exact matrices nothing is lost by staying apart."""
    encoder, views = an_encoder(), two_views(sizes)
    shares = [size / sum(sizes) for size in sizes]
    matrices = [correlation(torch.cat(embed(encoder, pair))).detach() for pair in views]
    local = torch.zeros(())
    wrong = torch.zeros(())
    for j, pair in enumerate(views):
        others = sum(shares[k] * matrices[k] for k in range(len(sizes)) if k != j) / (1 - shares[j])
        for alpha in (shares[j], 1.0):
            loss = spectral_contrastive_loss(*embed(encoder, pair), external=others, alpha=alpha)
            if alpha == shares[j]:
                local = local + shares[j] * gradient(encoder, loss)
            else:
                wrong = wrong + shares[j] * gradient(encoder, loss)
    pooled = (torch.cat([pair[0] for pair in views]), torch.cat([pair[1] for pair in views]))
    central = gradient(encoder, plain_loss(*embed(encoder, pooled)))
    assert float((local - central).norm() / central.norm()) < 1e-6
    assert float((wrong - central).norm() / central.norm()) > 0.05, "local losses alone must miss it, or this test shows nothing"


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_a_lone_client_has_the_plain_loss(alpha):
    encoder, views = an_encoder(), two_views([12])[0]
    first, second = embed(encoder, views)
    alone = spectral_contrastive_loss(first, second, external=None, alpha=alpha)
    torch.testing.assert_close(alone, plain_loss(first, second))
    torch.testing.assert_close(gradient(encoder, alone), gradient(encoder, plain_loss(*embed(encoder, views))))


def test_alpha_one_is_the_plain_loss_whatever_the_others_say():
    first, second = embed(an_encoder(), two_views([12])[0])
    outside = torch.randn(4, 4, generator=generator(3), dtype=torch.float64)
    loss = spectral_contrastive_loss(first, second, external=outside, alpha=1.0)
    assert torch.equal(loss, spectral_contrastive_loss(first, second, external=None, alpha=1.0))
    torch.testing.assert_close(loss, plain_loss(first, second))


def test_loss_by_hand():
    """One image, both views (1, 0): R = e1 e1^T; outside [[3, 1], [5, 0]]: -2 + a + 2 (1 - a) 3."""
    view = torch.tensor([[1.0, 0.0]])
    outside = torch.tensor([[3.0, 1.0], [5.0, 0.0]])
    for alpha in (0.0, 0.25, 1.0):
        loss = spectral_contrastive_loss(view, view, external=outside, alpha=alpha)
        assert float(loss) == pytest.approx(-2 + alpha + 2 * (1 - alpha) * 3)


def test_only_the_symmetric_part_of_the_others_counts():
    first, second = embed(an_encoder(), two_views([12])[0])
    outside = torch.randn(4, 4, generator=generator(3), dtype=torch.float64)
    losses = [
        spectral_contrastive_loss(first, second, external=matrix, alpha=0.4) for matrix in (outside, outside.T, (outside + outside.T) / 2)
    ]
    torch.testing.assert_close(losses[0], losses[1])
    torch.testing.assert_close(losses[0], losses[2])


def test_the_others_are_constants():
    first, second = embed(an_encoder(), two_views([12])[0])
    outside = torch.eye(4, dtype=torch.float64, requires_grad=True)
    (found,) = torch.autograd.grad(
        spectral_contrastive_loss(first, second, external=outside, alpha=0.4), [outside], allow_unused=True, retain_graph=True
    )
    assert found is None


@pytest.mark.parametrize("alpha", [-0.1, 1.1, math.nan])
def test_alpha_out_of_range_is_refused(alpha):
    view = torch.ones(1, 2)
    with pytest.raises(ValueError, match="alpha must be between 0 and 1"):
        spectral_contrastive_loss(view, view, external=None, alpha=alpha)


rows = st.lists(st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=3, max_size=3), min_size=1, max_size=6)


@given(rows, st.floats(0.01, 100))
def test_clipped_norm_never_exceeds_the_bound(values, mu):
    clipped = clip(torch.tensor(values, dtype=torch.float32), mu=mu)
    assert clipped.isfinite().all()
    assert float(clipped.double().norm(dim=1).max()) <= math.sqrt(mu) * (1 + 1e-6)


@given(st.lists(st.lists(st.floats(-1e6, 1e6), min_size=3, max_size=3), min_size=1, max_size=6), st.floats(0.01, 100))
def test_clip_is_the_projection_into_the_ball(values, mu):
    embeddings = torch.tensor(values, dtype=torch.float64)
    clipped = clip(embeddings, mu=mu)
    for row, found in zip(embeddings, clipped, strict=True):
        norm = math.hypot(*row.tolist())
        wanted = row if norm <= math.sqrt(mu) else row * (math.sqrt(mu) / norm)
        torch.testing.assert_close(found, wanted)


def test_clip_keeps_what_lies_inside_exactly_and_projects_twice_to_the_same():
    embeddings = torch.tensor([[0.0, 0.0], [0.3, -0.4], [30.0, 40.0]])
    clipped = clip(embeddings, mu=1.0)
    assert torch.equal(clipped[:2], embeddings[:2])
    torch.testing.assert_close(clipped[2], torch.tensor([0.6, 0.8]))
    torch.testing.assert_close(clip(clipped, mu=1.0), clipped)


@given(st.sampled_from([0.0, 1e-30, 1.0, 3.0, 1e10, 1e18]), st.floats(0.1, 10))
def test_gradient_of_the_clipping_is_finite(size, mu):
    embeddings = torch.tensor([[size, -size, size], [0.0, 0.0, 0.0]], requires_grad=True)
    clipped = clip(embeddings, mu=mu)
    (clipped * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    assert embeddings.grad.isfinite().all()
    assert embeddings.grad[1].tolist() == pytest.approx([1.0, 2.0, 3.0]), "at zero clipping is the identity"


def test_gradient_of_the_clipping_outside_is_tangential():
    embeddings = torch.tensor([[3.0, 4.0]], dtype=torch.float64, requires_grad=True)
    jacobian = torch.autograd.functional.jacobian(lambda z: clip(z, mu=4.0), embeddings).squeeze()
    unit = embeddings.detach()[0] / 5
    torch.testing.assert_close(jacobian, (2 / 5) * (torch.eye(2, dtype=torch.float64) - torch.outer(unit, unit)))


@pytest.mark.parametrize("mu", [0.0, -1.0, math.nan])
def test_mu_out_of_range_is_refused(mu):
    with pytest.raises(ValueError, match="mu must be above 0"):
        clip(torch.ones(1, 2), mu=mu)


@given(rows, st.floats(0.01, 100))
def test_matrix_is_psd_with_bounded_trace(values, mu):
    matrix = correlation(clip(torch.tensor(values, dtype=torch.float32), mu=mu)).double()
    assert torch.equal(matrix, matrix.T)
    assert float(matrix.trace()) <= mu * (1 + 1e-5)
    assert float(torch.linalg.eigvalsh(matrix).min()) >= -1e-6 * mu


def test_correlation_is_the_mean_of_outer_products():
    embeddings = torch.randn(7, 3, generator=generator(), dtype=torch.float64)
    torch.testing.assert_close(correlation(embeddings), torch.stack([torch.outer(row, row) for row in embeddings]).mean(dim=0))


def test_schedule_of_alpha():
    assert annealed_alpha(0, 200, last=0.2) == 1.0
    assert annealed_alpha(200, 200, last=0.2) == pytest.approx(0.2)
    assert [annealed_alpha(t, 4, last=0.2) for t in range(4)] == pytest.approx([1.0, 0.8, 0.6, 0.4])
    assert all(annealed_alpha(t, 10, last=1.0) == 1.0 for t in range(10))


def test_projection_head_is_two_layers_of_twice_the_width():
    head = ProjectionHead(feature_dim=6, embedding_dim=4, generator=generator())
    features = torch.randn(5, 6, generator=generator(1))
    hidden = functional.relu(features @ head.hidden.weight.T + head.hidden.bias)
    assert hidden.shape == (5, 12)
    torch.testing.assert_close(head(features), hidden @ head.output.weight.T + head.output.bias)
    assert float(head.hidden.weight.detach().abs().max()) <= 1 / math.sqrt(6)  # PyTorch's default bound
