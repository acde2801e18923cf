"""Views: a contract over every final class, and each operation against an oracle written by hand."""

import colorsys
import math
import re
from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import interpolate

import nmoe.data
from nmoe.core.seeds import torch_generator
from nmoe.data import ColourViews, DigitViews, FashionViews, Views, to_unit, views_for
from nmoe.data.views import colour, colourful
from nmoe.data.views.crop import Crops, draw_crops, resize_crops

EXAMPLES: dict[type[Views], tuple[Views, int]] = {
    DigitViews: (DigitViews(), 1),
    FashionViews: (FashionViews(), 1),
    ColourViews: (ColourViews(), 3),
}
EXPORTED = [kind for kind in vars(nmoe.data).values() if isinstance(kind, type) and issubclass(kind, Views) and kind is not Views]


def batch(size: int, channels: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(size, channels, height, width, generator=torch_generator(seed, "images"))


def test_every_exported_class_has_an_example():
    assert set(EXPORTED) == set(EXAMPLES)


@pytest.mark.parametrize(("views", "channels"), [EXAMPLES[kind] for kind in EXPORTED if kind in EXAMPLES], ids=repr)
class TestContract:
    @settings(max_examples=20, deadline=None)
    @given(size=st.integers(1, 5), height=st.integers(1, 12), width=st.integers(1, 12), seed=st.integers(0, 9))
    def test_shape_range_and_seed(self, views, channels, size, height, width, seed):
        images = batch(size, channels, height, width, seed)
        before = images.clone()
        drawn = views.draw(images, torch_generator(seed))
        assert drawn.shape == images.shape
        assert drawn.dtype == images.dtype
        assert drawn.isfinite().all()
        assert 0 <= drawn.min() <= drawn.max() <= 1
        assert torch.equal(images, before)
        assert torch.equal(drawn, views.draw(images, torch_generator(seed)))

    def test_two_draws_differ_and_so_do_two_images(self, views, channels):
        images = batch(1, channels, 16, 16).expand(8, -1, -1, -1)
        generator = torch_generator(0)
        one, two = views.draw(images, generator), views.draw(images, generator)
        assert not torch.equal(one, two)
        assert len({tuple(view.flatten().tolist()) for view in one}) == 8

    def test_double_precision(self, views, channels):
        images = batch(4, channels, 8, 8)
        double = views.draw(images.double(), torch_generator(0))
        assert double.dtype == torch.float64
        assert torch.allclose(double.float(), views.draw(images, torch_generator(0)), atol=1e-4)

    def test_bad_images_are_named(self, views, channels):
        good, generator = batch(2, channels, 8, 8), torch_generator(0)
        for bad, line in (
            (good[0], f"images must be float32 or float64 [batch, channel, height, width], got torch.float32 [{channels}, 8, 8]"),
            (
                (good * 255).byte(),
                f"images must be float32 or float64 [batch, channel, height, width], got torch.uint8 [2, {channels}, 8, 8]",
            ),
            (good[:, :1].expand(-1, 2, -1, -1), "channels, got 2"),
            (good * 255, "images must be in [0, 1], got ["),
            (good * math.nan, "images must be in [0, 1], got [nan, nan] (see to_unit)"),
        ):
            with pytest.raises(ValueError, match=re.escape(line)):
                views.draw(bad, generator)


def neutral_digits(**changes) -> DigitViews:
    return DigitViews(**({"max_shift": 0, "max_turn_rad": 0, "scale": (1, 1), "brightness": 0, "contrast": 0, "noise": 0} | changes))


def neutral_colours(**changes) -> ColourViews:
    still = {"scale": (1, 1), "ratio": (1, 1), "brightness": 0, "contrast": 0, "saturation": 0, "hue": 0, "flip": 0, "grey": 0}
    return ColourViews(**(still | changes))


@pytest.mark.parametrize(
    ("views", "channels"), [(neutral_digits(), 1), (FashionViews(scale=(1, 1), ratio=(1, 1), flip=0), 1), (neutral_colours(), 3)], ids=repr
)
def test_neutral_hyperparameters_change_nothing(views, channels):
    images = batch(6, channels, 9, 9)
    assert torch.allclose(views.draw(images, torch_generator(0)), images, atol=1e-5)


@pytest.mark.parametrize("views", [FashionViews(scale=(1, 1), ratio=(1, 1), flip=1), neutral_colours(flip=1)], ids=repr)
def test_flip_mirrors_left_to_right(views):
    images = batch(3, 3, 7, 7)
    assert torch.allclose(views.draw(images, torch_generator(0)), images.flip(3), atol=1e-5)


def test_grey_and_jitter_probabilities():
    images = batch(4000, 3, 2, 2)
    drawn = neutral_colours(grey=0.2).draw(images, torch_generator(0))
    assert (drawn.std(1) < 1e-6).all((1, 2)).float().mean() == pytest.approx(0.2, abs=0.02)
    jittered = neutral_colours(brightness=0.4).draw(images, torch_generator(0))
    same = torch.isclose(jittered, images, atol=1e-6).all(1).all(1).all(1)
    assert same.float().mean() == pytest.approx(0.2, abs=0.02)


def test_jitter_order_is_random_for_each_image(monkeypatch):
    """Operations that each append a digit write their order into the pixels: all 24 orders occur, about equally often."""
    operations = tuple(lambda images, factor, number=number: (images + number) / 10 for number in (1, 2, 3, 4))
    monkeypatch.setattr(colourful, "_OPERATIONS", operations)
    drawn = neutral_colours(jitter=1).draw(torch.zeros(4800, 3, 1, 1), torch_generator(0))
    digits = (drawn[:, 0, 0, 0] * 10_000).round().long().tolist()
    counts = [digits.count(int("".join(order))) for order in permutations("1234")]
    assert sum(counts) == 4800
    assert min(counts) > 140
    assert max(counts) < 260


@given(
    pixel=st.tuples(*[st.integers(0, 255)] * 3),
    shift=st.floats(-0.5, 0.5, width=32),
)
def test_hue_is_that_of_colorsys(pixel, shift):
    red, green, blue = (value / 255 for value in pixel)
    hue, saturation, value = colorsys.rgb_to_hsv(red, green, blue)
    wanted = colorsys.hsv_to_rgb((hue + shift) % 1, saturation, value)
    image = torch.tensor([red, green, blue], dtype=torch.float64).reshape(1, 3, 1, 1)
    assert colour.hue(image, torch.tensor([shift], dtype=torch.float64)).flatten().tolist() == pytest.approx(wanted, abs=1e-6)


def test_brightness_contrast_saturation_and_grey_by_hand():
    images = batch(3, 3, 4, 5).double()
    factor = torch.tensor([0.6, 1.0, 1.4], dtype=torch.float64)
    pixels = images.numpy()
    for number, by in enumerate(factor.tolist()):
        red, green, blue = pixels[number]
        luma = 0.2989 * red + 0.587 * green + 0.114 * blue
        for operation, other in ((colour.brightness, 0.0), (colour.contrast, luma.mean()), (colour.saturation, luma)):
            wanted = np.clip(by * pixels[number] + (1 - by) * other, 0, 1)
            assert operation(images, factor)[number].numpy() == pytest.approx(wanted, abs=1e-6)
        assert colour.grey(images)[number, 0].numpy() == pytest.approx(luma, abs=1e-6)


@given(
    side=st.tuples(st.integers(2, 16), st.integers(2, 16)),
    fractions=st.tuples(*[st.floats(0, 1, exclude_max=True)] * 4),
    flip=st.booleans(),
)
@settings(deadline=None)
def test_resized_crop_is_that_of_interpolate(side, fractions, flip):
    height, width = side
    crop_height, crop_width = 1 + int(fractions[0] * height), 1 + int(fractions[1] * width)
    top, left = int(fractions[2] * (height - crop_height + 1)), int(fractions[3] * (width - crop_width + 1))
    images = batch(1, 3, height, width).double()
    window = images[:, :, top : top + crop_height, left : left + crop_width]
    wanted = interpolate(window, size=(height, width), mode="bilinear", align_corners=False)
    crops = Crops(*(torch.tensor([value]) for value in (top, left, crop_height, crop_width)))
    got = resize_crops(images, crops, torch.tensor([flip]))
    assert torch.allclose(got, wanted.flip(3) if flip else wanted, atol=1e-9)


def test_crops_follow_torchvision():
    """Areas and ratios stay in their intervals up to rounding to whole pixels, and places cover all there are."""
    images = torch.empty(5000, 1, 32, 32)
    crops = draw_crops(images, (0.2, 1.0), (3 / 4, 4 / 3), torch_generator(0))
    assert (crops.top >= 0).all()
    assert (crops.left >= 0).all()
    assert (crops.top + crops.height <= 32).all()
    assert (crops.left + crops.width <= 32).all()
    area = crops.height * crops.width / 32**2
    ratio = crops.width / crops.height
    assert area.min() > 0.2 - 0.04
    assert 3 / 4 - 0.06 < ratio.min() < 0.78
    assert 4 / 3 - 0.06 < ratio.max() < 4 / 3 + 0.1
    assert abs(ratio.log().mean()) < 0.02
    oracle = [crop_by_hand(32, 32, np.random.default_rng(0 + number)) for number in range(2000)]
    assert area.mean() == pytest.approx(np.mean([high * wide for _, _, high, wide in oracle]) / 32**2, abs=0.02)
    assert crops.top.float().mean() == pytest.approx(np.mean([top for top, *_ in oracle]), abs=0.5)


def crop_by_hand(height: int, width: int, generator: np.random.Generator) -> tuple[int, int, int, int]:
    """Draw one window as torchvision's RandomResizedCrop.get_params does."""
    for _ in range(10):
        area = height * width * generator.uniform(0.2, 1.0)
        aspect = math.exp(generator.uniform(math.log(3 / 4), math.log(4 / 3)))
        wide, high = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < wide <= width and 0 < high <= height:
            return int(generator.integers(0, height - high + 1)), int(generator.integers(0, width - wide + 1)), high, wide
    return 0, 0, height, width


@pytest.mark.parametrize(("shape", "window"), [((4, 40), (4, 5)), ((40, 4), (5, 4)), ((6, 6), (6, 6))])
def test_crops_that_never_fit_fall_back_to_the_centre(shape, window):
    crops = draw_crops(torch.empty(50, 1, *shape), (1.0, 1.0), (3 / 4, 4 / 3), torch_generator(0))
    if shape[0] == shape[1]:
        assert ((crops.height <= shape[0]) & (crops.width <= shape[1])).all()
        return
    assert (crops.height == window[0]).all()
    assert (crops.width == window[1]).all()
    assert (crops.top == (shape[0] - window[0]) // 2).all()
    assert (crops.left == (shape[1] - window[1]) // 2).all()


def test_digit_shift_moves_by_whole_pixels_into_black():
    image = torch.zeros(1, 1, 8, 8)
    image[0, 0, 3, 4] = 1
    drawn = neutral_digits(max_shift=0.25).draw(image.expand(500, -1, -1, -1), torch_generator(0))
    places = torch.arange(8.0)
    down, across = (drawn[:, 0].sum(2) * places).sum(1), (drawn[:, 0].sum(1) * places).sum(1)
    assert torch.allclose(drawn.sum((1, 2, 3)), torch.ones(500), atol=1e-4)
    assert (down.min(), down.max()) == pytest.approx((1, 5), abs=0.05)
    assert (across.min(), across.max()) == pytest.approx((2, 6), abs=0.05)


def test_digit_turn_keeps_the_centre_and_the_distance():
    image = torch.zeros(1, 1, 9, 17)
    image[0, 0, 4, 8] = image[0, 0, 4, 12] = 1
    drawn = neutral_digits(max_turn_rad=math.pi / 4).draw(image.expand(200, -1, -1, -1), torch_generator(0))
    assert torch.allclose(drawn[:, 0, 4, 8], torch.ones(200), atol=1e-4)
    drawn = drawn[:, 0].clone()
    drawn[:, 3:6, 7:10] = 0
    mass = drawn.sum((1, 2))
    down = (drawn.sum(2) * torch.arange(-4.0, 5.0)).sum(1) / mass
    across = (drawn.sum(1) * torch.arange(-8.0, 9.0)).sum(1) / mass
    assert torch.allclose((down**2 + across**2).sqrt(), torch.full((200,), 4.0), atol=0.3)
    assert down.min() < -2
    assert down.max() > 2


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: DigitViews(max_shift=2), "max_shift must be in [0, 1], got 2"),
        (lambda: DigitViews(max_turn_rad=-1), "max_turn_rad must be in [0, pi], got -1"),
        (lambda: DigitViews(scale=(0, 1)), "scale must be an ordered pair above 0 and at most 10, got (0, 1)"),
        (lambda: FashionViews(scale=(0.5, 0.2)), "scale must be an ordered pair above 0 and at most 1, got (0.5, 0.2)"),
        (lambda: FashionViews(flip=1.5), "flip must be in [0, 1], got 1.5"),
        (lambda: ColourViews(hue=0.6), "hue must be in [0, 0.5], got 0.6"),
        (lambda: ColourViews(grey=math.nan), "grey must be in [0, 1], got nan"),
        (lambda: views_for("odd", (8, 8, 2)), "images must have 1 or 3 channels, got 2"),
        (lambda: to_unit(np.zeros((2, 8, 8), np.uint8)), "images must be uint8 [N, H, W, C], got uint8 [2, 8, 8]"),
        (lambda: to_unit(np.zeros((2, 8, 8, 1))), "images must be uint8 [N, H, W, C], got float64 [2, 8, 8, 1]"),
    ],
)
def test_bad_input_is_named(make, line):
    with pytest.raises(ValueError, match=f"^{re.escape(line)}$"):
        make()


def test_views_for_each_data_set():
    assert views_for("digits", (8, 8, 1)) == DigitViews()
    assert views_for("fashion-mnist", (28, 28, 1)) == FashionViews()
    assert views_for("cifar10", (32, 32, 3)) == views_for("mine", (16, 16, 3)) == ColourViews()
    assert views_for("mine", (16, 16, 1)) == DigitViews()


def test_to_unit_scales_and_moves_channels():
    images = np.arange(2 * 3 * 4 * 3, dtype=np.uint8).reshape(2, 3, 4, 3)
    images.setflags(write=False)
    got = to_unit(images)
    assert got.shape == (2, 3, 3, 4)
    assert got.dtype == torch.float32
    assert got.is_contiguous()
    assert got[1, 2, 0, 3].item() == pytest.approx(images[1, 0, 3, 2] / 255)
    assert to_unit(np.full((1, 1, 1, 1), 255, np.uint8)).item() == 1
